"""Everything from a described machine to the first request of a user.

minipc up [--from STEP]

Each step does what the command named in it does, and finds nothing to do the second time. The steps that are done are
kept in the state directory, so the same command continues where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click

from minipc.artifacts import default_store
from minipc.bundle import creation
from minipc.config.components import deploy_files
from minipc.config.offsite import place_of
from minipc.core import paths
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, ConfigError, CouldNotVerifyError, MinipcError
from minipc.core.files import write_atomic
from minipc.core.formatting import count
from minipc.core.verdicts import SIGNS
from minipc.evidence.display import print_summary, watch
from minipc.evidence.records import exit_code
from minipc.evidence.run import PhaseFailedError, Run
from minipc.gitops.cluster import SshCluster
from minipc.gitops.repository import open_repository
from minipc.pyinfra_ext.converge import converge
from minipc.remote.host_keys import fingerprint_of
from minipc.remote.inventory import Target, offsite_target, the_target
from minipc.remote.operator_lock import held
from minipc.remote.queries import architecture, versions
from minipc.services import images
from minipc.verification.runner import verify
from playbooks import argocd_sync, backup, deploy_repository, doctor, gitops, restore_drill, vpn_bypass, vpn_clients
from playbooks.adopt import adopt
from playbooks.preflight import NOT_ASKED, demand, pins_for, preflight
from playbooks.rebuild import answers_users, cut_over, record_of

CLIENT = "operator"
CERTIFICATE_S = 300


class NotHereError(Exception):
    """A step does not apply here. It is NOT EXERCISED, and asked again the next time."""


@dataclass
class Context:
    """What the steps act on.

    Attributes:
        bundle: where the break-glass bundle goes; None: it is not made.
        later: what is shown at the end, such as a QR code.
    """

    run: Run
    environment: Environment
    alias: str
    bundle: Path | None = None
    passphrase: str = ""
    later: list[str] = field(default_factory=list)

    @property
    def target(self) -> Target:
        """Return the mini PC, as the inventory has it now."""
        return the_target(self.environment, self.alias)

    @property
    def offsite(self) -> Target | None:
        return offsite_target(self.environment, self.target)

    def converge(self, target: Target, *components: str) -> None:
        files = deploy_files(components, target.role)
        with held(target, "minipc up"):
            converge(self.environment, files, log=self.run.log, events=self.run.events, limit=target.alias)

    def demand_k3s(self) -> None:
        """Raise NotHereError where services run without K3s."""
        if self.target.settings.services.runtime != "k3s":
            raise NotHereError("services run under podman, without K3s")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        detail: what it does, and with which command it can be done alone.
        do: returns what became of it; raises NotHereError if it does not apply.
    """

    name: str
    detail: str
    do: Callable[[Context], str]


def up(
    environment: Environment,
    alias: str | None = None,
    *,
    begin_at: str | None = None,
    bundle: Path | None = None,
    passphrase: str = "",
) -> int:
    """Do the steps that are left, and return the exit code.

    Args:
        begin_at: name of the step to begin with, although it and later ones may be done.
        bundle, passphrase: where the break-glass bundle goes, and what it is sealed with.

    Raises:
        ConfigError: there is no such step, or the configuration is wrong.
    """
    target = the_target(environment, alias)
    run = Run("converge")
    context = Context(run, environment, target.alias, bundle, passphrase)
    with watch(run.events):
        failure = go_through(context, STEPS, state_file(environment, target.alias), begin_at)
        if failure:
            run.note(f"log: {run.log}; fix the cause, then run the same command again: it continues here")
        vpn_bypass.tell(run, environment, context.target)
    record = record_of(run, environment, target.alias, components=None if failure else (), converge_phase=CONVERGE.name)
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    if failure:
        cause = failure.__cause__
        click.echo(str(cause) if isinstance(cause, MinipcError) else str(failure), err=True)
        return cause.exit_code if isinstance(cause, MinipcError) else EXIT_FAIL
    for text in [*context.later, *checklist(context)]:
        click.echo(text)
    return exit_code(record)


def state_file(environment: Environment, alias: str) -> Path:
    """Return the file with the steps that are done."""
    return paths.state_dir("up", environment.name) / f"{alias}.json"


def go_through(context: Context, steps: Sequence[Step], state: Path, begin_at: str | None) -> PhaseFailedError | None:
    """Do the steps in order, and keep each that is done in a file. Return what ended it early, if anything did.

    Raises:
        ConfigError: there is no step `begin_at`.
        KeyboardInterrupt: it was interrupted.
    """
    names = [step.name for step in steps]
    if begin_at is not None and begin_at not in names:
        raise ConfigError(f"there is no step {begin_at!r}", f"there are: {', '.join(names)}")
    done: dict[str, str] = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    if begin_at is not None:
        done = {name: when for name, when in done.items() if name in names[: names.index(begin_at)]}
    for step in steps:
        if step.name in done:
            context.run.note(f"{SIGNS['pass']} {step.name}: done at {done[step.name]}")
            continue
        try:
            with context.run.phase(step.name, step.detail) as say:
                try:
                    say(step.do(context))
                    done[step.name] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
                except NotHereError as error:
                    say(f"NOT EXERCISED: {error}")
                    context.run.not_exercised(step.name, str(error))
        except PhaseFailedError as failure:
            return failure
        finally:
            write_atomic(state, json.dumps(done, indent=2).encode())
    return None


# --- the steps --------------------------------------------------------------------------------------------------------


def _doctor(context: Context) -> str:
    findings = doctor.controller()
    production = context.environment.in_repository
    troubles = [str(each) for each in findings if each.trouble or (each.note and production)]
    if troubles:
        raise MinipcError("; ".join(troubles), "`minipc doctor` shows all of it")
    return count(len(findings), "prerequisite")


def _artifacts(context: Context) -> str:
    """Download what is not in the cache, and build images. The preflight says what cannot be done without the rest."""
    store, arch = default_store(), architecture(context.target)
    found = [store.resolve(pin.name, pin.arch) for pin in pins_for(context.target, arch)]
    missing = [each for each in found if each.path is None]
    for each in missing:
        context.run.not_exercised(each.name, each.why_missing or "it is missing", "")
    for service in context.target.settings.services.declared:
        image = images.ensure(service) if service.build else None
        if isinstance(image, images.Missing):
            context.run.not_exercised(f"image of {service.name}", image.reason, "services")
    return f"{len(found) - len(missing)} of {count(len(found), 'file')} for {arch}"


def _preflight(context: Context) -> str:
    findings = preflight(context.target, "first")
    for each in findings:
        # The components of missing files say so themselves.
        if each.note.startswith(NOT_ASKED) and each.name != "upstream files":
            context.run.not_exercised(each.name, each.note.removeprefix(NOT_ASKED))
    return demand(findings)


def _adopt(context: Context) -> str:
    machines = [each for each in (context.target, context.offsite) if each]
    for each in machines:
        known_hosts = Path(each.data["ssh_known_hosts_file"]).read_text(encoding="utf-8").split()
        if len(known_hosts) < 3:
            raise ConfigError(f"{each.alias}: no host key was compared", "run `minipc init`, or `minipc adopt`")
        adopt(context.environment, (each.alias, each.data), fingerprint_of(" ".join(known_hosts[1:3])))
    return ", ".join(each.alias for each in machines)


def _offsite(context: Context) -> str:
    offsite = context.offsite
    if place := place_of(context.target.settings):
        raise NotHereError(f"the backups are kept in {place}")
    if offsite is None:
        raise NotHereError("there is no off-site host (backups_offsite is None): no data outlives the machine")
    context.converge(offsite)
    return offsite.alias


def _converge(context: Context) -> str:
    context.converge(context.target)
    context.run.versions |= versions(context.target)
    return context.alias


def _deploy_repository(context: Context) -> str:
    context.demand_k3s()
    return f"{deploy_repository.fill(context.target, context.offsite, replace=False)[:12]} is approved"


def _argocd(context: Context) -> str:
    context.demand_k3s()
    cluster = SshCluster(context.target)
    found = [gitops.wait_for_application(cluster, name) for name in argocd_sync.APPLICATIONS]
    argocd_sync.adopt(cluster, open_repository(context.target, found[-1]))
    return "it manages itself and knows the services"


def _first_release(context: Context) -> str:
    context.demand_k3s()
    return gitops.bring_up(context.environment, context.target)


def _certificate(context: Context) -> str:
    target = context.target
    services = [each for each in target.settings.services.declared if each.ingress]
    if not services:
        raise NotHereError("no service has an ingress")
    if target.settings.dns.provider != "none":
        context.converge(target, "dns")
        cut_over(context.run, target)
    return answers_users(target, services, CERTIFICATE_S)


def _verify(context: Context) -> str:
    run = context.run
    return verify(context.environment, context.target, [], events=run.events, log=run.log).demand().summary


def _backup_and_drill(context: Context) -> str:
    outcomes = backup.take(context.target, "full")
    failed = [f"{name}: {each.error}" for name, each in sorted(outcomes.items()) if not each.success]
    if failed:
        raise MinipcError("; ".join(failed), "`minipc backup now` shows the outcome of each")
    result = restore_drill.run_on_machine(context.target)
    if result.verdict != "pass":
        kind = MinipcError if result.verdict == "fail" else CouldNotVerifyError
        raise kind(f"the drill: {result.reason}", "`minipc drill` shows each check")
    return f"in {', '.join(sorted(outcomes))}; restored from repo{result.repo} and checked"


def _vpn(context: Context) -> str:
    if not context.environment.in_repository:
        raise NotHereError("the lab has its own VPN client")
    target = context.target
    if target.settings.vpn.peers:
        context.converge(target, "vpn")
        return f"{count(len(target.settings.vpn.peers), 'client')} can connect"
    added = vpn_clients.add(target, CLIENT, paths.config_dir("vpn") / f"{CLIENT}.conf")
    context.converge(context.target, "vpn")
    context.later.append(f"VPN client {CLIENT}: {added.path} (it contains the private key)")
    context.later += vpn_clients.shown(added)
    return f"{CLIENT} has the addresses {', '.join(added.addresses)}"


def _bundle(context: Context) -> str:
    if context.bundle is None:
        raise NotHereError("no file was given: `minipc up --bundle /media/usb/minipc.bundle`")
    made = creation.create(context.environment.name, context.bundle, context.passphrase, replace=True)
    return f"{context.bundle}, {made.size // 1024} KB, opened again and compared"


CONVERGE = Step("converge", "configure the mini PC (minipc apply)", _converge)
CERTIFICATE = Step(
    "certificate", "point the names here, wait until users get answers over HTTPS (minipc dns cutover)", _certificate
)
VPN = Step("VPN", "add the operator's client (minipc vpn add)", _vpn)
BUNDLE = Step("break-glass bundle", "seal what a rebuild needs (minipc bundle create)", _bundle)
STEPS = (
    Step("doctor", "check this computer (minipc doctor)", _doctor),
    Step(
        "artifacts",
        "download upstream files, build images (minipc artifacts fetch, minipc service image build)",
        _artifacts,
    ),
    Step("preflight", "check that everything is available (minipc preflight --for first)", _preflight),
    Step("adopt", "pin the machines and give them identities (minipc adopt)", _adopt),
    Step("off-site host", "configure the host that keeps the backups (minipc apply --host)", _offsite),
    Step(
        "deploy repository",
        "create it, sign and approve it (minipc service render, minipc release pin)",
        _deploy_repository,
    ),
    CONVERGE,
    Step("ArgoCD", "let it manage itself (minipc argocd sync)", _argocd),
    Step("first release", "migrate, start and check each service (minipc release sync)", _first_release),
    CERTIFICATE,
    Step("verify", "check everything from both sides (minipc verify)", _verify),
    Step(
        "backup and drill",
        "back up, restore it next to the database, check it (minipc backup now, drill)",
        _backup_and_drill,
    ),
    VPN,
    BUNDLE,
)


def checklist(context: Context) -> list[str]:
    """Return what only a person can do, one line each."""
    settings, environment = context.target.settings, context.environment
    address = context.target.data["ssh_hostname"]
    todo = []
    if environment.in_repository:
        todo.append(f"keep a copy of {environment.age_key_file} away from this computer")
        todo.append("commit inventory/, group_data/, services/, secrets/ and artifacts.lock")
        todo.append(f"behind a router: forward TCP 80, 443 and UDP {settings.vpn.port} to {address}")
    if settings.dns.provider == "none" and settings.services.public:
        todo.append("keep the DNS records of your domains pointing to the machine's public address")
    if context.bundle is None:
        todo.append("seal a break-glass bundle onto a USB stick: minipc bundle create FILE")
    else:
        todo.append(f"take {context.bundle} and its passphrase to another place, apart from each other")
    if settings.firewall.operator_access != "vpn":
        todo.append("allow SSH only through the VPN: docs/howto/vpn.md")
    return ["", "Only you can do this:", *(f"  - {each}" for each in todo)]
