"""Rehearse a recovery: build a blank machine, use it, lose it, and rebuild it from the off-site copy alone.

minipc rehearse [--as production] [--keep] [--strict]
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import CouldNotVerifyError
from minipc.core.formatting import duration
from minipc.evidence.event_stream import OperationEnd, PhaseEnd, read
from minipc.evidence.records import Gate, Record
from minipc.evidence.run import PhaseFailedError, Run
from minipc.pyinfra_ext.converge import converge, plan
from minipc.remote import certificates
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import versions
from minipc.verification.runner import verify
from playbooks import up
from playbooks.phases import PUBLIC_NAME
from rehearsal import exposure, lab, rehearse_qemu
from rehearsal.data_loss import AcknowledgedWrites, load_running, measure_data_loss, use_and_back_up
from rehearsal.lab.inventory import overrides
from rehearsal.load_generator import read_acknowledged
from rehearsal.machines import (
    Options,
    RehearsalMachines,
    conclude,
    group_in_environment,
    prepare_images,
    prepare_secrets,
    publish,
)
from rehearsal.second_controller import SecondController, end

# The rehearsal has a VPN client of its own, and seals the bundle later, when there is something to lose.
FIRST_DAY = [step for step in up.STEPS if step not in (up.VPN, up.BUNDLE)]
CONVERGE = up.CONVERGE.name
# Users write for a while before and after the backup. The loss comes at a random moment.
USE_S = 6.0
LOSS_WITHIN_S = 12.0


def rehearse(options: Options) -> tuple[Record, Path, Path]:
    """Run the rehearsal.

    Returns:
        The record, its path, and the path of the HTML report.

    Raises:
        KeyboardInterrupt: it was interrupted; its record says so.
    """
    run = Run("rehearsal")
    machines = RehearsalMachines(options)
    runtime = None
    components: tuple[str, ...] = ()
    with group_in_environment(options.group), machines.recorded(run):
        with run.phase("prepare", "programs, base image, secrets"):
            emulated = lab.ensure_backend(options.backend)
            prepare_secrets(options.group)
            if not emulated:
                prepare_images(run, options.group)
        if emulated:
            components = rehearse_qemu.COMPONENTS
            rehearse_qemu.rehearse(run, machines, CONVERGE)
        else:
            target, offsite = machines.boot_both(run)
            runtime = target.settings.services.runtime
            _build(run, target, offsite)
            _lose_and_rebuild(run, machines, target)
    record = conclude(
        run,
        machines.description,
        group=options.group,
        runtime=runtime,
        converge_phase=CONVERGE,
        overrides=overrides(options.group, machines.zone) if options.group is not LAB else [],
        components=components,
    )
    record_path, report_path = publish(run, record)
    if options.keep:
        machines.print_how_to_reach()
    if machines.interrupted:
        raise KeyboardInterrupt
    return record, record_path, report_path


def _build(run: Run, target: Target, offsite: Target | None) -> None:
    """Do the steps of `minipc up` on blank machines. A second converge and a plan must then find nothing to do."""
    began = time.time()
    state = run.directory / "up.json"
    failure = up.go_through(up.Context(run, LAB, target.alias), FIRST_DAY, state, None)
    if failure:
        raise failure
    _print_first_answer(run, began)
    operations_before = len(_operations(run))
    with run.phase("converge again", "must change nothing") as detail:
        converge(LAB, deploy_files(), log=run.log, events=run.events, limit=target.alias)
        changed = [operation for operation in _operations(run)[operations_before:] if operation.changed]
        detail("; ".join(f"{operation.component}: {operation.name}" for operation in changed) or "0 changes")
        run.gates.append(Gate.judge("changes of the second converge", budget=0, seen=len(changed), unit="changes"))
    with run.phase("plan", "must find nothing pending") as detail:
        pending, _ = plan(LAB, deploy_files(), limit=target.alias)
        detail("; ".join(f"{operation.component}: {operation.name}" for operation in pending) or "0 changes")
        run.gates.append(Gate.judge("changes that a plan finds", budget=0, seen=len(pending), unit="changes"))
    if offsite:
        with run.phase("verify off-site", "the backups' host, and the monitoring from outside") as detail:
            # Its checks of the host and the firewall are those of the mini PC: the record would count them as its.
            detail(verify(LAB, offsite, ["offsite", "watcher"], events=run.events, log=run.log).demand().summary)
    with run.phase("exposure proof", "which ports each side reaches") as detail:
        detail(exposure.short_proof(run, target))


def _print_first_answer(run: Run, began: float) -> None:
    """Print the time from blank machines to the first answer of the services over HTTPS, if any of them gave one."""
    state = json.loads((run.directory / "up.json").read_text(encoding="utf-8"))
    ends = [event for event in read(run.events) if isinstance(event, PhaseEnd)]
    if up.CERTIFICATE.name in state:
        answered = next(each.t for each in ends if each.phase == up.CERTIFICATE.name)
        run.note(f"From blank machines to the first answer over HTTPS: {duration(answered - began)}")


def _operations(run: Run) -> list[OperationEnd]:
    return [event for event in read(run.events) if isinstance(event, OperationEnd)]


def _lose_and_rebuild(run: Run, machines: RehearsalMachines, target: Target) -> None:
    """Let users write, lose the machine at a random moment, and rebuild it on a blank one."""
    name = machines.options.name
    bundle = machines.seal_bundle(run)
    with load_running(run, machines.by_name[name], target) as list_file:
        with run.phase("use and back up", "users keep writing") as detail:
            detail(use_and_back_up(target, USE_S))
            certificate_before = _certificate(machines.by_name[name], target)
        with run.phase("lose the machine", "power and disk are lost at a random moment") as detail:
            time.sleep(random.uniform(0, LOSS_WITHIN_S))  # noqa: S311 - not a secret
            machines.destroy(name)
            lost_at = time.time()
            detail(f"{len(read_acknowledged(list_file))} writes had been acknowledged")
    acknowledged = AcknowledgedWrites.before(lost_at, run, list_file)
    with run.phase("boot again", "a blank machine replaces it"):
        machine = machines.boot(f"{name}-2")
    try:
        _rebuild(run, machines.open_bundle(run, bundle, machine, machines.offsite), machine)
        target = the_target(LAB, machine.name)
        with run.phase("measure data loss", "compare acknowledged writes with restored writes") as detail:
            measure_data_loss(run, target, acknowledged)
            detail("; ".join(f"{each.name}: {each.detail}" for each in run.data_classes))
            reissued = _certificate(machine, target) != certificate_before
            run.gates.append(Gate.judge("certificates reissued", budget=0, seen=int(reissued), unit="certificates"))
        run.versions |= versions(target)
    finally:
        # A rebuild that failed after the ingress opened still has an RTO.
        _measure_rto(run, target, lost_at)


def _rebuild(run: Run, controller: SecondController, machine: lab.Machine) -> None:
    """Rebuild in a separate process that has a clean clone, an empty home and the bundle, and nothing else.

    Raises:
        PhaseFailedError: the rebuild failed; its phases say why.
    """
    process = controller.rebuild(machine, run=run.directory, log=run.log)
    try:
        code = process.wait()
    except BaseException:
        end(process)
        raise
    finally:
        controller.copy_keys_back(machine.name)
    if code:
        raise PhaseFailedError(f"the rebuild ended with {code}")


def _measure_rto(run: Run, target: Target, lost_at: float) -> None:
    """Set the RTO: the time from the loss until the rebuild saw the service answer through the public ingress."""
    ends = [event for event in read(run.events) if isinstance(event, PhaseEnd)]
    answered = next((phase.t for phase in ends if phase.phase == PUBLIC_NAME.name and phase.verdict == "pass"), None)
    run.rto_budget_seconds = target.settings.backups.rto_budget_s
    run.rto_seconds = None if answered is None else answered - lost_at


def _certificate(machine: lab.Machine, target: Target) -> bytes:
    """Return the fingerprint of a public certificate; empty if no service has a public name.

    A rebuilt machine restores it and needs no new one.

    Raises:
        CouldNotVerifyError: no certificate is served.
    """
    if not target.settings.services.public:
        return b""
    domain = str(target.settings.services.public[0].domain)
    certificate = certificates.served(machine.public_ipv4, domain, ("ip", "netns", "exec", "public"))
    if certificate is None:
        raise CouldNotVerifyError(
            f"no certificate is served for {domain} at {machine.public_ipv4}",
            f"`minipc verify edge --inventory lab --host {machine.name}` shows why",
        )
    return certificate.fingerprint(hashes.SHA256())
