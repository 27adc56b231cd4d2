"""Rehearsals on disposable machines. They may import everything; nothing used in production imports them.

| module | started by | what it does |
|---|---|---|
| `rehearse` | `minipc rehearse` | builds, loses and rebuilds a machine; verified, timed, recorded |
| `machines`, `data_loss` | rehearse, faults | boot and remove the machines; measure which writes were lost |
| `rehearse_qemu` | `minipc rehearse --backend qemu` | runs the short rehearsal on an emulated machine |
| `faults` | `minipc rehearse --fault` | lists the faults and runs a rebuild under each |
| `fault_setup`, `fault_actions` | faults | prepare the machine that is lost; inject the fault |
| `exposure` | `minipc prove exposure` | proves who reaches which port, from each side |
| `second_controller` | rehearse, faults | an empty home, a clean clone and the bundle |
| `load_generator` | rehearse, faults | writes as users do, and keeps what was acknowledged |
| `selftest` | `minipc test` | runs the project's tests |
| `lab` | `minipc lab` | disposable machines |
| `doubles` | lab | servers for services that the lab cannot reach |
"""
