"""Converges or checks a machine of the inventory, with timing, a record and a report.

minipc apply [COMPONENT…]      minipc verify [COMPONENT…]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minipc.bundle.checking import check as look
from minipc.bundle.state import read_state
from minipc.config.components import deploy_files, select
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, EXIT_REFUSED, ConfigError, MinipcError, RefusedError
from minipc.core.verdicts import SIGNS
from minipc.evidence.display import console_for, print_summary, watch
from minipc.evidence.records import exit_code
from minipc.evidence.run import PhaseFailedError, Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import describe, versions
from minipc.verification.runner import Verification, smoke, verify
from playbooks import vpn_bypass
from playbooks.bundle_metrics import push
from playbooks.gitops import heal

CONVERGE = "converge"


def apply(
    environment: Environment,
    names: Sequence[str],
    alias: str | None,
    *,
    first: tuple[str, Callable[[], str]] | None = None,
) -> int:
    """Converge, release again what is gone from the cluster, and verify. Return the exit code.

    Args:
        first: name of a phase before the converge, and what it does; it returns one line.

    Raises:
        ConfigError: the configuration or a name is wrong; nothing was changed.
        RefusedError: it is not the machine in the inventory; nothing was changed.
    """
    target = the_target(environment, alias)
    chosen = [component.name for component in select(names, target.role)]
    files = deploy_files(names, target.role)
    # Unreachable or not ours: an error message, not a record.
    facts = describe(target, environment.backend)
    run = Run("converge")
    refused = False
    with watch(run.events):
        try:
            if first:
                with run.phase(first[0]) as detail:
                    detail(first[1]())
            with run.phase(CONVERGE, " ".join(names) or "everything"):
                converge(environment, files, log=run.log, events=run.events, limit=target.alias)
            run.versions |= versions(target)
            _tell_of_the_bundle(run, environment, target)
            if target.role == "mini" and "services" in chosen:
                with run.phase("services", "those that are gone from the cluster") as detail:
                    detail(heal(environment, target) or "none is gone")
            with run.phase("verify") as detail:
                detail(verify(environment, target, chosen, events=run.events, log=run.log).demand().summary)
        except PhaseFailedError as failed:
            run.note(f"log: {run.log}")
            refused = isinstance(failed.__cause__, RefusedError)
        vpn_bypass.tell(run, environment, target)
    record = run.conclude(
        target=facts,
        group=environment,
        runtime=target.settings.services.runtime,
        converge_phase=CONVERGE,
        overrides=[],
        components=chosen,
        role=target.role,
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return EXIT_REFUSED if refused else exit_code(record)


def _tell_of_the_bundle(run: Run, environment: Environment, target: Target) -> None:
    """Send the bundle's metrics, because a converge may have installed a secret that is not in the bundle."""
    if target.role != "mini" or read_state(environment.name) is None:
        return
    try:
        found = look(environment.name)
    except MinipcError as error:
        run.note(f"the break-glass bundle could not be checked: {error.what}")
        found = None
    for line in push(environment, found, target):
        run.note(f"break-glass bundle: {line}")


def check(environment: Environment, names: Sequence[str], alias: str | None, *, smoke_only: bool = False) -> int:
    """Verify only. Print failures and what was NOT EXERCISED. Return the exit code.

    Args:
        smoke_only: the smoke list instead of the components' checks.
    """
    if smoke_only and names:
        raise ConfigError("--smoke selects the checks itself", "omit the components")
    target = the_target(environment, alias)
    run = Run("converge")
    if smoke_only:
        seen = smoke(environment, target, events=run.events, log=run.log)
    else:
        seen = verify(environment, target, names, events=run.events, log=run.log)
    _print(seen, vpn_bypass.why_open(environment, target))
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
        console.print(f"{sign} NOT-EXERCISED firewall: {vpn_bypass.WHAT}: {beside}", markup=False)
    console.print(seen.summary)
