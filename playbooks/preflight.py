"""Check that everything that a procedure needs is available, before it does anything that cannot be undone.

minipc preflight [--push]

`minipc up` calls it before it adopts a machine, `minipc rebuild` before it revokes the lost machine's key, and
`minipc drift` each night: what is missing is then noticed by an alert, not after a loss.
"""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Literal

import urllib3
import yaml

from minipc.artifacts import Artifact, default_store, own_arch, resolve
from minipc.artifacts.catalogue import Pin
from minipc.config.offsite import bucket_of
from minipc.config.service import NO_REGISTRY, Service
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError
from minipc.dns.address import public_address
from minipc.gitops.deploy_files import release_file
from minipc.gitops.repository import Repository, trust_of
from minipc.pyinfra_ext.guards import NEEDED_MB
from minipc.remote.inventory import Target, offsite_target
from minipc.remote.queries import architecture, on, publish_metrics
from minipc.secrets import load as load_secrets
from minipc.secrets.catalogue import S3_ACCESS_KEY, S3_SECRET_KEY
from minipc.services import images, registry, signatures
from minipc_machine import bucket
from minipc_machine.metrics import Gauge
from minipc_machine.program import FailedError
from playbooks import deploy_repository, storage_box
from playbooks.doctor import Finding

Moment = Literal["first", "rebuild", "daily"]

NOT_ASKED = "NOT EXERCISED: "
CLOCK_OFF_S = 60
# A file is copied to the machine, and unpacked there.
COPIES = 3
REQUIRED = ("k3s", "argocd-manifest")
"""Artifacts without which no service runs in K3s. Without another one, its component is NOT EXERCISED."""
# perl is in every Debian; it ends by itself.
_LISTEN = """
ss --no-header --listening --tcp --numeric 'sport = :80' | grep -q . && exit 0
setsid timeout 20 perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 80, Listen => 5, ReuseAddr => 1);
close $c while $s and $c = $s->accept' </dev/null >/dev/null 2>&1 &
sleep 0.5
"""


class UnknownError(Exception):
    """The question could not be asked. It is shown, and stops nothing."""


@dataclass(frozen=True)
class _Subject:
    """The machine that is checked.

    Attributes:
        offsite: its off-site host; None: there is none.
    """

    target: Target
    offsite: Target | None

    @cached_property
    def arch(self) -> str:
        return architecture(self.target)

    @cached_property
    def files(self) -> list[Artifact]:
        """Return the machine's upstream files, fetched and verified. A host that does not answer is asked once."""
        return [resolve(pin.name, pin.arch) for pin in pins_for(self.target, self.arch)]

    @property
    def in_k3s(self) -> bool:
        return self.target.settings.services.runtime == "k3s"

    @property
    def services(self) -> tuple[Service, ...]:
        return self.target.settings.services.declared


def preflight(target: Target, moment: Moment) -> list[Finding]:
    """Return what was found, with the reason for each that is not met.

    Args:
        moment: "first": a new machine. "rebuild": the name still points to the lost machine. "daily": it runs.

    Raises:
        ConfigError: the configuration is wrong.
    """
    subject = _Subject(target, offsite_target(target.settings.where, target))
    checks: list[tuple[str, Callable[[_Subject], str]]] = [("upstream files", _artifacts), ("images", _images)]
    if target.settings.offsite.s3:
        checks.append(("bucket", _bucket))
    if target.settings.offsite.sftp:
        checks.append(("storage box", _storage_box))
    if moment != "daily":
        checks += [("clock", _clock), ("disk space", _disk)]
    if moment != "rebuild":
        checks += [("public names", _names), ("port 80", _port)]
    return [_asked(name, check, subject) for name, check in checks]


def demand(findings: Iterable[Finding]) -> str:
    """Return the notes in one line. Raise MinipcError if something is not met."""
    troubles = [each for each in findings if each.trouble]
    if troubles:
        raise MinipcError(
            "; ".join(f"{each.name}: {each.trouble}" for each in troubles), "`minipc preflight` checks it again"
        )
    return "; ".join(f"{each.name}: {each.note}" for each in findings if each.note) or "everything is available"


def publish(target: Target, findings: Sequence[Finding]) -> None:
    """Write the result as metrics onto the machine. Raises CouldNotVerifyError."""
    met = [({"check": each.name}, 0.0 if each.trouble else 1.0) for each in findings]
    metrics = [
        Gauge("minipc_preflight_success", "1 when what a rebuild needs is available.", met),
        Gauge("minipc_preflight_checked_timestamp_seconds", "When that was checked.", [({}, time.time())]),
    ]
    publish_metrics(target, "minipc_preflight", metrics)


def pins_for(target: Target, arch: str) -> list[Pin]:
    """Return the upstream files that a machine of this architecture gets."""
    unused = () if target.settings.services.runtime == "k3s" else deploy_repository.NEEDED
    pins = default_store().catalogue.pins
    return [pin for pin in pins if pin.arch in (arch, "all") and pin.name not in unused]


def _asked(name: str, check: Callable[[_Subject], str], subject: _Subject) -> Finding:
    """Return the finding of a check, which returns a note or raises."""
    try:
        return Finding(name, "up, rebuild", note=check(subject))
    except UnknownError as error:
        return Finding(name, "up, rebuild", note=f"{NOT_ASKED}{error}")
    except MinipcError as error:
        return Finding(name, "up, rebuild", trouble=str(error))


def _bucket(subject: _Subject) -> str:
    """Check the bucket with the key in the secrets: rights, region, somebody else's files, versioning."""
    place, key = _bucket_and_key(subject.target)
    try:
        protection = bucket.examine(place, key)
    except FailedError as error:
        raise MinipcError(str(error), "docs/reference/bucket.md") from None
    return "" if protection.versioning else str(protection)


def _storage_box(subject: _Subject) -> str:
    """Check the storage box with the key in the secrets: server, rights, space, somebody else's files."""
    found = storage_box.examine(subject.target)
    return str(found) if found.free_mb is None else ""


def demand_empty(target: Target) -> None:
    """Raise ConfigError if the bucket or storage box has anything in it, MinipcError if it cannot be used."""
    if target.settings.offsite.sftp:
        return storage_box.demand_empty(target)
    place, key = _bucket_and_key(target)
    try:
        bucket.examine(place, key)
        names = bucket.contents(place, key)
    except FailedError as error:
        raise MinipcError(str(error), "docs/reference/bucket.md") from None
    if names:
        raise ConfigError(
            f"the bucket {place.name} contains {', '.join(names[:3])}, which the old passphrases open",
            "create a new bucket, set it in offsite_s3, and run this again",
        )
    return None


def _bucket_and_key(target: Target) -> tuple[bucket.Bucket, bucket.Key]:
    place = bucket_of(target.settings)
    if place is None:
        raise ConfigError("the off-site side is not a bucket", "set offsite_kind and offsite_s3")
    found = load_secrets(target.settings.environment, [S3_ACCESS_KEY, S3_SECRET_KEY])
    return place, bucket.Key(found[S3_ACCESS_KEY].reveal(), found[S3_SECRET_KEY].reveal())


def _artifacts(subject: _Subject) -> str:
    missing = [each for each in subject.files if each.path is None]
    required = [each for each in missing if each.name in REQUIRED and subject.in_k3s]
    if required:
        raise MinipcError("; ".join(f"{each.name}: {each.why_missing}" for each in required), "minipc artifacts list")
    if missing:
        names = ", ".join(each.name for each in missing)
        raise UnknownError(f"not in the cache, and no publisher has it for {subject.arch}: {names}")
    return ""


def _images(subject: _Subject) -> str:
    """Find the released image of each service: as a file here, or in its registry with the stored credentials."""
    if not subject.in_k3s:
        lacking = [each.name for each in subject.services if not (each.build or images.current(each.name))]
        if lacking:
            raise UnknownError(f"no image was added of {', '.join(lacking)}")
        return ""
    approved, notes = {}, []
    try:
        with deploy_repository.opened(subject.target, subject.offsite) as repository:
            approved = {each.name: _released(repository, each) for each in subject.services}
    except (ConfigError, CouldNotVerifyError) as error:
        # Before the first converge there is no repository; afterwards a rebuild cannot do without.
        if trust_of(subject.target).approvals.commits():
            raise
        if isinstance(error, ConfigError):
            notes.append(error.what)
    for service in subject.services:
        version = approved.get(service.name)
        try:
            if version:
                _find(subject.target, service, *version, subject.arch)
            elif not (service.build or images.current(service.name)):
                registry.digest_of(subject.target.settings, service.image, "latest", subject.arch)
        except MinipcError as error:
            if version and service.image.startswith(f"{NO_REGISTRY}/"):
                notes.append(f"the image of {service.name} is not in the cache here: it must be in the restored backup")
            elif version:
                raise
            else:
                notes.append(f"{service.name} will not be released: {error.what}")
    return "; ".join(notes)


def _released(repository: Repository, service: Service) -> tuple[str, str] | None:
    """Return the tag or digest that is pulled, and the digest, of the approved commit; None: nothing is approved."""
    commit = repository.trust.approvals.commits().get(service.name, "")
    if not commit or not repository.has(commit):
        return None
    path = release_file(service.name, repository.trust.environment.name)
    content = repository.tree(commit).files.get(path)
    release = yaml.safe_load(content) if content else {}
    image: dict[str, str] = next(iter(release.get("images") or []), {})
    digest = next((str(value) for value in (release.get("commonAnnotations") or {}).values() if "sha256:" in value), "")
    version = str(image.get("digest") or image.get("newTag") or digest)
    return (version, digest) if version else None


def _find(target: Target, service: Service, version: str, digest: str, arch: str) -> None:
    """Raise MinipcError unless the image is a file here or can be pulled, and is signed where it must be."""
    # The files on this computer are for its own architecture.
    if arch != own_arch() or images.find(service.name, digest) is None:
        registry.digest_of(target.settings, service.image, version, arch)
    signatures.verifier(target.settings)(service, f"{service.image}@{digest}")


def _clock(subject: _Subject) -> str:
    synchronised, now = on(
        subject.target, "timedatectl show --property=NTPSynchronized --value || echo no; date +%s"
    ).split()
    off = abs(int(now) - time.time())
    if off > CLOCK_OFF_S:
        raise MinipcError(
            f"the machine's clock differs from this computer's by {off:.0f} s",
            "correct the wrong one (`timedatectl set-ntp true`): certificates and backups need the time",
        )
    if synchronised != "yes" and not subject.target.settings.where.shares_kernel:
        return "not synchronised yet, but right"
    return ""


def _disk(subject: _Subject) -> str:
    files = [each.path for each in subject.files]
    files += [image.path for each in subject.services if (image := images.current(each.name))]
    there = sum(path.stat().st_size for path in files if path) // 1024**2
    needed = NEEDED_MB + COPIES * there
    look = "ls /var/lib/postgresql/*/main/PG_VERSION 2>/dev/null; df --block-size=M --output=avail /var | tail -n1"
    *there_already, free = on(subject.target, look).split()
    if there_already:
        # An interrupted rebuild continues: much of the space is used by what it brought.
        return "the database is there already"
    if int(free.rstrip("M")) < needed:
        raise MinipcError(
            f"{free.rstrip('M')} MB free below /var, {needed} MB are needed",
            "use a larger disk, or remove what fills it",
        )
    return ""


def _expected(subject: _Subject) -> set[str]:
    """Return the machine's public addresses. Raises UnknownError."""
    dns = subject.target.settings.dns
    fixed = {address for address in (dns.ipv4, dns.ipv6) if address}
    side = subject.target.side("public").ipv4
    if fixed:
        return fixed
    if not _is_private(side):
        return {side}
    client = on(subject.target, "echo $SSH_CONNECTION").split()[:1]
    if (
        not client
        or not _is_private(client[0])
        or ip_address(client[0]) in ip_network(subject.target.settings.vpn.network)
    ):
        raise UnknownError("the machine is behind a router: its public address is not in the settings (dns_ipv4)")
    try:
        # This computer is behind the same router.
        return {public_address("A", str(dns.address_url), retries=urllib3.Retry(1))}
    except MinipcError as error:
        raise UnknownError(error.what) from None


def _is_private(text: str) -> bool:
    try:
        return ip_address(text).is_private and not text.startswith(("192.0.2.", "198.51.100.", "203.0.113."))
    except ValueError:
        return False


def _resolved(domain: str) -> set[str]:
    try:
        return {str(each[4][0]) for each in socket.getaddrinfo(domain, 443, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def _names(subject: _Subject) -> str:
    """Compare what DNS says about each public name with the machine's address."""
    settings = subject.target.settings
    domains = [domain for each in settings.services.public if each.ingress for domain in each.ingress.domains]
    if settings.dns.provider != "none":
        return "minipc sets the records"
    if settings.edge.acme == "internal" or not domains:
        return "no certificate depends on them"
    found = {domain: _resolved(domain) for domain in domains}
    missing = [domain for domain in domains if not found[domain]]
    if missing:
        raise MinipcError(
            f"no DNS record was found of {', '.join(missing)}", "add an A record that points to your public address"
        )
    expected = _expected(subject)
    wrong = [f"{domain} → {', '.join(sorted(found[domain]))}" for domain in domains if not found[domain] & expected]
    if wrong:
        raise MinipcError(
            f"DNS points elsewhere: {'; '.join(wrong)}; this machine has {', '.join(sorted(expected))}",
            "correct the records; caches may return the old address for one more TTL",
        )
    return ""


def _port(subject: _Subject) -> str:
    """Connect to port 80 from the off-site host; where nothing listens yet, a program listens for a moment."""
    if not subject.services:
        return "no service needs it"
    if subject.offsite is None:
        raise UnknownError("it is asked from the off-site host, and there is none")
    domain = subject.target.settings.services.domain
    addresses = _resolved(domain) if domain else set()
    try:
        address = next(iter(sorted(each for each in addresses if "." in each)), "") or min(_expected(subject))
        on(subject.target, _LISTEN)
        reach = f"</dev/tcp/{address}/80"
        answer = on(subject.offsite, f"timeout 5 bash -c {shlex.quote(reach)} 2>/dev/null && echo open || echo closed")
    except CouldNotVerifyError as error:
        raise UnknownError(error.what) from None
    if answer != "open":
        raise MinipcError(
            f"port 80 of {address} does not answer the off-site host",
            f"forward TCP 80 and 443 to {subject.target.data['ssh_hostname']} in your router. Behind carrier-grade NAT "
            "no port can be forwarded",
        )
    return ""
