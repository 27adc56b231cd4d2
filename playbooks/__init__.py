"""Procedures: what a person starts, and what they need.

| procedure | started by | what it does |
|---|---|---|
| `rehearse` | `minipc rehearse` | builds, loses and rebuilds a machine; verified, timed, recorded |
| `faults` | `minipc rehearse --fault` | the table of faults, and a rebuild under each |
| `rebuild` | `minipc rebuild` | a lost machine comes back on a blank one |
| `restore_drill` | `minipc drill` | a backup comes back beside the living database |
| `backup` | `minipc backup` | backups at once; old ones go |
| `adopt` | `minipc adopt` | enrols a machine |
| `apply` | `minipc apply`, `verify` | converges, verifies |
| `drift` | `minipc drift` | plans, and tells monitoring |
| `status` | `minipc status`, `triage` | puts the questions of `checks.yaml` |
| `release` | `minipc release`, `trace` | a version of the service, forwards and back |
| `argocd_sync` | `minipc argocd sync` | the cluster takes over what Git says of ArgoCD itself |
| `dns_cutover` | `minipc dns` | moves the public name |
| `separation` | `minipc prove separation` | who reaches what |
| `runbook` | `minipc runbook` | renders docs/runbook.md |

| helper | of | what it is |
|---|---|---|
| `phases` | rebuild, faults, runbook | the one list of a rebuild's phases |
| `gitops` | rehearse, rebuild | the lab's deploy repository, and the first release from it |
| `users` | rehearse, faults | users who write, and what they were promised |
| `elsewhere` | rehearse, faults | another computer: empty home, clean clone, the bundle |
| `stage`, `plays` | faults | the machine that is lost each time; what is played against it |
| `real_kernel` | rehearse, with qemu | the short rehearsal on an emulated machine |
| `beside_the_vpn` | rebuild, apply | says when the operator's ports answer beside the VPN |
| `bundle_metrics` | apply, `minipc bundle check` | monitoring learns of the bundle |

Data: `checks.yaml` (the operator's questions), `log_queries.yaml` (saved log queries).
"""
