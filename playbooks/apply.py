"""Converges or checks a machine of the inventory, with timing, a record and a report.

minipc apply [COMPONENT…]      minipc verify [COMPONENT…]
"""

from __future__ import annotations

from collections.abc import Sequence

from minipc.bundle.checking import check as look
from minipc.bundle.state import read_state
from minipc.components import deploy_files, select
from minipc.converge import converge
from minipc.display import console_for, print_summary, watch
from minipc.errors import EXIT_FAIL, EXIT_PASS, EXIT_REFUSED, ConfigError, MinipcError, RefusedError
from minipc.inventory import Environment, Target, the_target
from minipc.records import exit_code
from minipc.remote import describe, versions
from minipc.run import PhaseFailedError, Run
from minipc.verdicts import SIGNS
from minipc.verification import Verification, smoke, verify
from playbooks import beside_the_vpn
from playbooks.bundle_metrics import push

CONVERGE = "converge"


def apply(environment: Environment, names: Sequence[str], alias: str | None) -> int:
    """Converges and verifies; returns the exit code.

    Raises:
        ConfigError: the configuration or a name is wrong; nothing was changed.
        RefusedError: it isn't the machine that the inventory means; nothing was changed.
    """
    target = the_target(environment, alias)
    chosen = [component.name for component in select(names, target.role)]
    files = deploy_files(names, target.role)
    # Unreachable or not ours: an error message, not a record.
    facts = describe(target, "hardware" if environment == "production" else "nspawn")
    run = Run("converge")
    refused = False
    with watch(run.events):
        try:
            with run.phase(CONVERGE, " ".join(names) or "everything"):
                converge(environment, files, log=run.log, events=run.events, limit=target.alias)
            run.versions |= versions(target)
            _tell_of_the_bundle(run, environment, target)
            with run.phase("verify") as detail:
                detail(verify(environment, target, chosen, events=run.events, log=run.log).demand().summary)
        except PhaseFailedError as failed:
            run.note(f"what was printed: {run.log}")
            refused = isinstance(failed.__cause__, RefusedError)
        beside_the_vpn.tell(run, environment, target)
    record = run.conclude(
        target=facts,
        group=environment,
        runtime=target.settings.workload.runtime,
        converge_phase=CONVERGE,
        overrides=[],
        components=chosen,
        role=target.role,
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return EXIT_REFUSED if refused else exit_code(record)


def _tell_of_the_bundle(run: Run, environment: Environment, target: Target) -> None:
    """A converge may have put a new secret in place, which the bundle hasn't: monitoring learns it now."""
    if target.role != "mini" or read_state(environment) is None:
        return
    try:
        found = look(environment)
    except MinipcError as error:
        run.note(f"the break-glass bundle could not be checked: {error.what}")
        found = None
    for line in push(environment, found, target):
        run.note(f"break-glass bundle: {line}")


def check(environment: Environment, names: Sequence[str], alias: str | None, *, smoke_only: bool = False) -> int:
    """Verifies only, and prints what failed and what could not be tried; returns the exit code.

    Args:
        smoke_only: the smoke list instead of the components' checks.
    """
    if smoke_only and names:
        raise ConfigError("--smoke is a list of its own", "leave the components out")
    target = the_target(environment, alias)
    run = Run("converge")
    if smoke_only:
        seen = smoke(environment, target, events=run.events, log=run.log)
    else:
        seen = verify(environment, target, names, events=run.events, log=run.log)
    _print(seen, beside_the_vpn.why_open(environment, target))
    return EXIT_FAIL if seen.failed else EXIT_PASS


def _print(seen: Verification, beside: str) -> None:
    console = console_for()
    for each in seen.checks:
        if each.outcome != "passed":
            console.print(
                f"{SIGNS[each.outcome]} {each.outcome.upper()} {each.component}: {each.name}: {each.message}",
                markup=False,
            )
    if beside:
        sign = SIGNS["not-exercised"]
        console.print(f"{sign} NOT-EXERCISED firewall: {beside_the_vpn.WHAT}: {beside}", markup=False)
    console.print(seen.summary)
