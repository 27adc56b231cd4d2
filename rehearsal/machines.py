"""The disposable machines of a rehearsal, the options of a run, and how a run is concluded."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minipc import config
from minipc.config import Settings
from minipc.config.load import group_data
from minipc.core.environment import LAB, Environment
from minipc.core.errors import ConfigError
from minipc.core.formatting import count
from minipc.core.variables import REHEARSE_AS_VARIABLE
from minipc.evidence import records
from minipc.evidence.display import console_for, print_summary, watch
from minipc.evidence.event_stream import PhaseEnd, PhaseStart, read
from minipc.evidence.records import Record
from minipc.evidence.run import PhaseFailedError, Run
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import describe
from minipc.secrets import open_store
from minipc.secrets.catalogue import DNS_TOKEN, whole
from minipc.secrets.generate import alphanumeric, generate
from minipc.services import images
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab import bucket, storage_box
from rehearsal.lab.inventory import OFFSITE, entry, is_offsite, public_names, stand_in_data
from rehearsal.lab.zone import Zone, serve
from rehearsal.second_controller import SealedBundle, SecondController, seal

DISK_GB = 6
# K3s needs space for image files and for their unpacked copies in containerd.
K3S_GB = 4


@dataclass(frozen=True)
class Options:
    """Options of a rehearsal.

    Attributes:
        group: group_data to use.
        keep: leave the machines up afterwards.
        k3s: run the service in K3s with ArgoCD; otherwise run it under systemd.
        offsite: what keeps the backups. With "s3" the off-site machine only runs an S3 server, with "sftp" only an
            SFTP server.
        zone: serve a public DNS zone in the lab and cut it over through the provider's API.
        name: name of the machine that is lost. `NAME-2` replaces it; `offsite-NAME` is its off-site host.
    """

    group: Environment = LAB
    backend: lab.BackendName = "nspawn"
    keep: bool = False
    name: str = "rehearsal"
    k3s: bool = False
    zone: bool = False
    offsite: Literal["machine", "s3", "sftp"] = "machine"


@dataclass
class RehearsalMachines:
    """The machines of a rehearsal that exist now, and the sealed bundle, which is on none of them.

    Attributes:
        description: the mini PC as the record describes it; mostly empty until it is booted.
        interrupted: the run was interrupted.
    """

    options: Options
    description: records.Target = field(init=False)
    by_name: dict[str, lab.Machine] = field(default_factory=dict)
    bundle: SealedBundle | None = None
    zone: Zone | None = None
    interrupted: bool = False
    resources: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.description = unknown_target(self.options.name, self.options.backend)

    @property
    def offsite(self) -> lab.Machine:
        """Return the off-site host."""
        return self.by_name[OFFSITE + self.options.name]

    def boot(self, name: str, *, disk_gb: int = DISK_GB) -> lab.Machine:
        """Boot a blank machine."""
        k3s = self.options.k3s and not is_offsite(name)
        disk_gb += K3S_GB if k3s else 0
        backend = self.options.backend
        podman = not k3s and not is_offsite(name)
        keep = self.options.keep
        self.by_name[name] = lab.up(name, disk_gb=disk_gb, k3s=k3s, podman=podman, keep=keep, backend=backend)
        return self.by_name[name]

    def enrol(self, name: str) -> Target:
        """Boot a blank machine and enrol it."""
        machine = self.boot(name)
        group = self.options.group
        host = entry(machine, **(stand_in_data(group) if group is not LAB else {}))
        adopt(LAB, host, machine.host_key_fingerprint)
        return the_target(LAB, name)

    def boot_both(self, run: Run) -> tuple[Target, Target | None]:
        """Boot and enrol the off-site host and the mini PC. Returns the mini PC and the off-site host.

        An S3 or SFTP server is not enrolled: None is returned for it.
        """
        with run.phase("boot", "two blank machines: the mini PC and the off-site host"):
            offsite = None
            if self.options.offsite == "s3":
                bucket.serve(self.boot(OFFSITE + self.options.name))
            elif self.options.offsite == "sftp":
                storage_box.serve(self.boot(OFFSITE + self.options.name))
            else:
                offsite = self.enrol(OFFSITE + self.options.name)
            if self.options.zone:
                self._serve_zone()
            mini = self.enrol(self.options.name)
            self.description = describe(mini, self.options.backend)
        return mini, offsite

    def seal_bundle(self, run: Run) -> SealedBundle:
        """Seal the bundle of the current state."""
        with run.phase("seal the bundle", "stored outside the machine, for the rebuild") as detail:
            self.bundle = seal(LAB)
            secrets = [item for item in self.bundle.manifest.fingerprints.items if item.startswith("secret ")]
            detail(f"{count(len(secrets), 'secret')}, keys, inventory, pins")
        return self.bundle

    def open_bundle(self, run: Run, bundle: SealedBundle, *reachable: lab.Machine) -> SecondController:
        """Open the bundle on a second controller that reaches some machines. It is removed at the end."""
        with run.phase("break glass", "on another computer: empty home, clean clone, the bundle") as detail:
            controller = SecondController()
            self.resources.callback(controller.remove)
            controller.open(bundle)
            controller.connect(reachable)
            detail(f"rebuilt from: the bundle, {controller}")
        for path in controller.copied:
            run.note(f"not committed, copied into the clone: {path}")
        if controller.copied:
            files = count(len(controller.copied), "file")
            run.not_exercised("a rebuild from the commit alone", f"{files} not committed")
        return controller

    def _serve_zone(self) -> None:
        """Serve a DNS zone for the public name as long as the machines are up."""
        names = public_names(group_data(self.options.group.name))
        if not names:
            raise ConfigError("there is no public service whose name could be cut over", "rehearse without --zone")
        domain = names[0]
        parent = domain.partition(".")[2] if domain.count(".") > 1 else domain
        served = serve(self.options.name, parent, _dns_token(), keep=self.options.keep)
        self.zone = self.resources.enter_context(served)

    def destroy(self, name: str) -> None:
        """Cut the power of a machine and delete its disk."""
        lab.destroy(self.by_name.pop(name))

    def clean_up(self) -> None:
        """Remove the bundle and, unless they are kept, the machines."""
        self.resources.close()
        if self.bundle:
            self.bundle.remove()
        if not self.options.keep:
            lab.down(list(self.by_name))

    @contextmanager
    def recorded(self, run: Run) -> Iterator[None]:
        """Show the run while the block lasts, and clean up afterwards, also after a failed phase or an interruption.

        Neither is raised: the caller writes the record, and raises KeyboardInterrupt if `interrupted` is set.
        """
        with watch(run.events), _sigterm_interrupts():
            try:
                yield
            except PhaseFailedError:
                run.note(f"log: {run.log}")
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                self.clean_up()
        if self.interrupted:
            note_interruption(run)

    def print_how_to_reach(self) -> None:
        """Print how to reach the remaining machines."""
        console = console_for()
        for name, machine in self.by_name.items():
            console.print(f"  Kept     {name}: `minipc lab ssh {name}`; remove it with `minipc lab down {name}`")
            console.print(f"           public side {machine.public_ipv4}, operator side {machine.operator_ipv4}")


def unknown_target(name: str, backend: str = "nspawn") -> records.Target:
    """Return the description of a machine about which nothing is known."""
    return records.Target(backend=backend, name=name, os="", kernel="", cpus=0, memory_mb=0)


def lab_settings(group: Environment) -> Settings:
    """Return the settings of a group with what the lab replaces."""
    return config.parse(stand_in_data(group)) if group is not LAB else config.load(LAB.name)


def prepare_images(run: Run, group: Environment) -> None:
    """Build the image of each service, or find it in the cache. A service without one is NOT EXERCISED by name."""
    for service in lab_settings(group).services.declared:
        found = images.ensure(service)
        if isinstance(found, images.Missing):
            run.not_exercised(f"the service {service.name}", found.reason, "services")


def prepare_secrets(group: Environment) -> None:
    """Generate the lab's secrets for the settings of a group, also those that in production only a person can supply.

    A secret of a service gets a random value: production's are never used in the lab.
    """
    settings = lab_settings(group)
    missing = generate(LAB.name, whole(settings)).to_supply
    own = {f"{service.name}.{key}" for service in settings.services.declared for key in service.secrets}
    open_store(LAB.name).set_many({entry.name: alphanumeric() for entry in missing if entry.name in own})


def _dns_token() -> str:
    """Return the token of the zone's API. It is one of the lab's own secrets."""
    store = open_store("lab")
    if DNS_TOKEN not in store.read([DNS_TOKEN]):
        store.set_many({DNS_TOKEN: alphanumeric()})
    return store.get(DNS_TOKEN).reveal()


@contextmanager
def group_in_environment(group: Environment) -> Iterator[None]:
    """Make the inventory use a group's values, here and in child processes."""
    if group is not LAB:
        os.environ[REHEARSE_AS_VARIABLE] = group.name
    try:
        yield
    finally:
        os.environ.pop(REHEARSE_AS_VARIABLE, None)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: machines are removed and a record is written."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def note_interruption(run: Run) -> None:
    """Make sure that the record of an interrupted run is not a pass."""
    phases = [event for event in read(run.events) if isinstance(event, PhaseEnd)]
    if all(phase.verdict == "pass" for phase in phases):
        run.write(PhaseStart(phase="interrupted"))
        run.write(PhaseEnd(phase="interrupted", verdict="could-not-verify", detail="interrupted"))


def conclude(run: Run, target: records.Target, **fields: Any) -> Record:
    """Return the record of a run. By default: of the lab, without a converge and without components.

    Args:
        fields: other arguments of `Run.conclude`.
    """
    defaults: dict[str, Any] = {
        "group": LAB,
        "runtime": None,
        "converge_phase": "",
        "overrides": [],
        "components": None,
    }
    return run.conclude(target=target, **(defaults | fields))


def publish(run: Run, record: Record) -> tuple[Path, Path]:
    """Write the record and the report, and print the summary. Returns the paths of the record and the report."""
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return record_path, report_path
