"""Describe a new machine: ask what cannot be found out, look at the machine, and write the files of production.

minipc init [--answers FILE]

It changes two things on a machine: your public key is added to root's, and the installer's account is removed, because
a converged machine has no other account that can log in. You may edit what it writes; running it again keeps edits.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import click
import dns.exception
import dns.resolver
import urllib3
import yaml

from minipc.artifacts import own_arch
from minipc.config.load import group_data
from minipc.config.services import read
from minipc.core import paths
from minipc.core.environment import PRODUCTION
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.files import write_atomic
from minipc.dns.address import public_address
from minipc.pyinfra_ext.guards import DEBIAN_VERSION
from minipc.remote import router, ssh
from minipc.remote.first_login import NeedsRootPasswordError, WrongPasswordError, admit_key
from minipc.remote.host_keys import fingerprint_of, generate_key
from minipc.remote.inventory import HostEntry, target, targets
from minipc.remote.pins import Pin, read_pins, write_pin
from minipc.secrets import catalogue, open_store
from minipc.secrets.catalogue import DNS_TOKEN
from minipc.secrets.generate import fill
from minipc.services.create import create
from playbooks import init_files
from playbooks.adopt import FIND_TRACES, refuse_traces, scan
from playbooks.init_questions import Login, Questions, own_name
from playbooks.storage_box import confirmed

MINI, OFFSITE = "minipc", "offsite"
# The default of group_data/all.py.
SLACK = [{"name": "slack", "kind": "slack"}]
# Below this a converge with K3s and its images does not fit; README recommends more.
NEEDED_DISK_GB, GOOD_DISK_GB = 4, 60
NEEDED_MEMORY_MB, GOOD_MEMORY_MB = 900, 7500
ATTEMPTS = 3
_SECTION = "--- minipc ---"
_LOOK = f"""
. /etc/os-release; echo "$ID $VERSION_ID"; echo {_SECTION}; dpkg --print-architecture; echo {_SECTION}
awk '/^MemTotal/ {{print int($2/1024)}}' /proc/meminfo; echo {_SECTION}
df --block-size=M --output=avail /var | tail -n1 | tr -dc 0-9; echo; echo {_SECTION}
echo "$SSH_CONNECTION"; echo {_SECTION}; ip -json address; echo {_SECTION}; ip -json route show default; echo {_SECTION}
lsblk --bytes --nodeps --noheadings --output NAME,SIZE,TYPE 2>/dev/null || true; echo {_SECTION}
{FIND_TRACES}; echo {_SECTION}; cat /etc/minipc/identity 2>/dev/null || true
"""


@dataclass(frozen=True)
class Seen:
    """What the machine told about itself.

    Attributes:
        client: the address from which we connect, as the machine sees it.
        disks: whole disks, name and size in GB.
    """

    machine: init_files.Machine
    arch: str
    memory_mb: int
    disk_mb: int
    client: str
    gateway: str
    disks: tuple[str, ...]


@dataclass
class Plan:
    """What was decided, and where it can be changed."""

    decided: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, where: str) -> None:
        self.decided.append((what, where))


def init(questions: Questions) -> None:
    """Ask, look, write, and print what was decided.

    Raises:
        RefusedError: a host key is another one, or a machine is not blank, too small, or not Debian 13.
        ConfigError: an answer is wrong.
        CouldNotVerifyError: a machine cannot be reached.
    """
    plan = Plan()
    key, public_key, agent = _own_key(plan)
    questions.before = _before()
    mini_login = questions.ask("machine")
    mini = _enter(questions, plan, MINI, mini_login, key, public_key)
    plan.add(f"mini PC: {mini_login.address}, {mini.arch}, {_size(mini)}", f"{init_files.INVENTORY}: address")
    plan.add(
        f"public interface {mini.machine.public_interface}, operator's {mini.machine.operator_interface} from "
        f"{', '.join(mini.machine.networks)}",
        f"{init_files.GROUP_DATA}: firewall_*",
    )
    answer = questions.ask("offsite")
    place = answer if isinstance(answer, dict) else {}
    offsite = _enter(questions, plan, OFFSITE, answer, key, public_key) if isinstance(answer, Login) else None
    kept: dict[str, object] = {}
    if "bucket" in place:
        kept = {"offsite_kind": "s3", "offsite_s3": place}
        plan.add(f"backups in the bucket {place['bucket']}", f"{init_files.GROUP_DATA}: offsite_s3")
        plan.add("store the bucket's key", "minipc secrets set offsite.s3_access_key, then offsite.s3_secret_key")
    elif place:
        kept = {"offsite_kind": "sftp", "offsite_sftp": confirmed(questions, place)}
        plan.add(f"backups in the storage box {place['host']}", f"{init_files.GROUP_DATA}: offsite_sftp")
        plan.add("ADD the mini PC's key to the box's authorized keys", "minipc backup key")
    elif offsite:
        plan.add(f"off-site host: {offsite.machine.address}", f"{init_files.INVENTORY}: offsite_machine")
    else:
        plan.add("no off-site host: NO DATA OUTLIVES THE MINI PC", "minipc init again")
    _service(questions, plan)
    more = _settings(questions, plan, mini, bool(offsite)) | kept
    repository = offsite is not None and group_data(PRODUCTION.name)["argocd_repository"] is None
    text = init_files.inventory_text(
        mini.machine, offsite.machine if offsite else None, None if agent else key, hosts_repository=repository
    )
    told = [init_files.write(init_files.INVENTORY, text)]
    told += [init_files.write(init_files.GROUP_DATA, init_files.group_text(mini.machine, public_key, more))]
    write_atomic(_answers_file(), yaml.safe_dump(questions.given).encode())
    targets(PRODUCTION)  # what was written is valid
    _secrets(plan)
    _tell(plan, [text for text in told if text])


def _before() -> dict[str, str]:
    """Return the answers of the last time."""
    file = _answers_file()
    return dict(yaml.safe_load(file.read_bytes())) if file.exists() else {}


def _answers_file() -> Path:
    return paths.state_dir("init") / "answers.yaml"


def _own_key(plan: Plan) -> tuple[Path, str, bool]:
    """Return this account's private key file, its public key, and whether only the SSH agent can use it."""
    folder = Path.home() / ".ssh"
    found = [folder / name for name in ("id_ed25519", "id_ecdsa", "id_rsa")]
    key = next((each for each in found if each.exists() and each.with_suffix(".pub").exists()), None)
    if key is None:
        key = folder / "id_ed25519"
        folder.mkdir(mode=0o700, exist_ok=True)
        generate_key(key, f"{Path.home().name}@minipc")
        plan.add(f"created the SSH key {key}, because there was none", str(key))
    open_it = ["ssh-keygen", "-y", "-P", "", "-f", str(key)]
    locked = subprocess.run(open_it, stdin=subprocess.DEVNULL, capture_output=True).returncode != 0
    plan.add(f"your key: {key}{' (through the SSH agent)' if locked else ''}", f"{init_files.INVENTORY}: key")
    return key, key.with_suffix(".pub").read_text(encoding="utf-8").strip(), locked


def _enter(questions: Questions, plan: Plan, alias: str, login: Login, key: Path, public_key: str) -> Seen:
    """Check the host key, let our key in as root, and return what the machine tells about itself."""
    prefix = "offsite_" if alias == OFFSITE else ""
    pin = _compared(questions, alias, login, prefix)
    entry = target(alias, login.address, key=key, pin=pin)
    if not _root_lets_us_in(entry):
        _admit(questions, login, pin, public_key, prefix)
    seen = _look(entry, pin)
    if login.account != "root":
        _remove_account(entry, login.account)
        plan.add(f"removed the account {login}: a converged machine has no other that can log in", "")
    # Adoption adds the identity.
    write_pin(alias, pin, PRODUCTION.pins_file)
    return seen


def _compared(questions: Questions, alias: str, login: Login, prefix: str) -> Pin:
    """Return the pin of the machine, once a person has compared its host key."""
    host_key = scan(login.address, 22)
    found = fingerprint_of(host_key)
    known = read_pins(PRODUCTION.pins_file).get(alias)
    if known and known.host_key == host_key:
        return known
    if known and known.identity:
        raise RefusedError(
            f"{alias}: {login.address} shows host key {found}, pinned is {fingerprint_of(known.host_key)}",
            "another machine answers there. If you reinstalled it on purpose, remove its entry from "
            f"inventory/pins.json; to rebuild a lost machine: `minipc rebuild --target {alias}`. Nothing was changed",
        )
    answer = questions.ask(f"{prefix}fingerprint", address=login.address, found=found)
    # Only somebody who sees the question can say yes to it.
    if answer != found and (answer != "yes" or questions.answers is not None):
        raise RefusedError(
            f"{login.address} shows host key {found}, which is not confirmed"
            + (f" (given: {answer})" if answer != "no" else ""),
            "compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its screen; nothing was changed",
        )
    return Pin(host_key=host_key)


def _root_lets_us_in(entry: HostEntry) -> bool:
    alias = entry[0]
    config = ssh.write_config([entry])
    try:
        return ssh.run(config, alias, "true").returncode == 0
    except CouldNotVerifyError:
        return False
    finally:
        ssh.close(config, [alias])


def _admit(questions: Questions, login: Login, pin: Pin, public_key: str, prefix: str) -> None:
    """Add our key to root's with the account's password; a person may try again, a file of answers may not."""
    attempts = ATTEMPTS if questions.answers is None else 1
    root_password = ""
    for attempt in range(attempts):
        try:
            password = questions.ask(f"{prefix}password", login=str(login))
            if not password:
                raise RefusedError(
                    f"root@{login.address} does not accept your key, and no password was given",
                    f"give the password of {login}, or add the key yourself: `ssh-copy-id root@{login.address}`",
                )
            options: dict[str, Any] = {"host_key": pin.host_key, "public_key": public_key, "password": password}
            try:
                return admit_key(login.account, login.address, **options)
            except NeedsRootPasswordError:
                root_password = questions.ask("root_password", login=str(login)) or root_password
                if not root_password:
                    raise
                return admit_key(login.account, login.address, **options, root_password=root_password)
        except WrongPasswordError as error:
            if attempt == attempts - 1:
                raise
            click.echo(f"{error.what}; try again")
    return None


def _look(entry: HostEntry, pin: Pin) -> Seen:
    """Return what the machine tells about itself. Raises RefusedError if it cannot be used."""
    alias, data = entry
    config = ssh.write_config([entry])
    try:
        done = ssh.run(config, alias, _LOOK)
    finally:
        ssh.close(config, [alias])
    parts = [part.strip() for part in done.stdout.decode().split(_SECTION)]
    if len(parts) != 10:
        raise CouldNotVerifyError(
            f"{alias} cannot be examined: {done.stderr.decode(errors='replace').strip()[-300:]}", "is it Debian 13?"
        )
    debian, arch, memory, disk, connection, addresses, routes, disks, traces, identity = parts
    if not identity or identity != pin.identity:
        refuse_traces(alias, traces.split())
    if debian != f"debian {DEBIAN_VERSION}":
        raise RefusedError(f"{alias} runs {debian}", f"install Debian {DEBIAN_VERSION}; nothing was changed")
    if arch not in ("amd64", "arm64"):
        raise RefusedError(f"{alias} is {arch}; K3s needs amd64 or arm64", "use another machine")
    if int(disk) < NEEDED_DISK_GB * 1024:
        raise RefusedError(
            f"{alias}: too little disk: {int(disk) / 1024:.1f} GB free below /var, {NEEDED_DISK_GB} GB are needed",
            f"use a larger disk or partition; {GOOD_DISK_GB} GB are recommended. Nothing was changed",
        )
    if int(memory) < NEEDED_MEMORY_MB:
        raise RefusedError(f"{alias}: {memory} MB of memory", f"{NEEDED_MEMORY_MB} MB are needed, 8 GB recommended")
    default = (json.loads(routes) or [{}])[0]
    client = connection.split()[0]
    machine = _sides(data["ssh_hostname"], json.loads(addresses), default.get("dev", ""), connection)
    shown = tuple(f"{name} {int(size) // 10**9} GB" for name, size, _ in map(str.split, disks.splitlines()))
    return Seen(machine, arch, int(memory), int(disk), client, default.get("gateway", ""), shown)


def _sides(address: str, links: list[dict[str, Any]], outward: str, connection: str) -> init_files.Machine:
    """Return which interface is public, which is the operator's, and from which networks the operator comes.

    Args:
        links: as `ip -json address` prints them.
        outward: interface with the default route.
        connection: SSH_CONNECTION: client, its port, our address, its port.
    """
    client, _, own, _ = connection.split()
    of = {
        ip_interface(f"{each['local']}/{each['prefixlen']}"): link["ifname"]
        for link in links
        for each in link["addr_info"]
        if link["ifname"] != "lo" and each.get("scope") != "link"
    }
    inward = next((name for interface, name in of.items() if str(interface.ip) == own), outward)
    network = next((each.network for each in of if of[each] == inward and ip_address(client) in each.network), None)
    return init_files.Machine(
        address=address,
        public_interface=outward or inward,
        operator_interface=inward,
        networks=(str(network) if network else f"{client}/{32 if '.' in client else 128}",),
    )


def _remove_account(entry: HostEntry, account: str) -> None:
    """Remove the installer's account: on a converged machine nobody else can log in."""
    alias, _ = entry
    config = ssh.write_config([entry])
    name = shlex.quote(account)
    try:
        ssh.run(
            config,
            alias,
            f"! id {name} >/dev/null 2>&1 || {{ loginctl terminate-user {name} 2>/dev/null; pkill -KILL -u {name}; "
            f"userdel --force --remove {name}; }} >/dev/null 2>&1; true",
        )
    finally:
        ssh.close(config, [alias])


def _service(questions: Questions, plan: Plan) -> None:
    declared = read(group_data(PRODUCTION.name)["services_folders"])
    if declared:
        plan.add(f"services: {', '.join(each.name for each in declared)}", "services/")
        return
    source = questions.ask("service")
    if source is None:
        plan.add("no service yet", "minipc service new")
        return
    name = own_name(source)
    domain = questions.ask("domain", service=name)
    compose = source if isinstance(source, Path) else None
    path, draft = create(name, [domain], image=None if compose else source, compose_file=compose)
    plan.add(f"service {name} at https://{domain}", str(path.relative_to(paths.ROOT)))
    for note in draft.notes:
        plan.add(f"not taken over: {note}", str(path.relative_to(paths.ROOT)))


def _settings(questions: Questions, plan: Plan, mini: Seen, offsite: bool) -> dict[str, object]:
    """Return the settings of group_data that follow from what was found."""
    more: dict[str, object] = {"backups_offsite": OFFSITE if offsite else None}
    values = group_data(PRODUCTION.name)
    # Without the address of a channel a converge would stop. What an earlier run wrote stays.
    written = not values["alertmanager_channels"] and values["alertmanager_unattended"]
    if (written or values["alertmanager_channels"] == SLACK) and not _has_secret("alertmanager.slack_url"):
        more |= {"alertmanager_channels": [], "alertmanager_unattended": True}
        plan.add("alerts are only shown, not sent", f"{init_files.GROUP_DATA}: alertmanager_channels")
    declared = read(values["services_folders"])
    domain = next((each.domain for each in declared if each.domain), None)
    if domain is None:
        more["vpn_endpoint"] = mini.machine.address
    zone, servers = _zone(domain) if domain else (None, [])
    home = ip_address(mini.machine.address).is_private if _is_address(mini.machine.address) else False
    cloudflare = any(server.endswith(".ns.cloudflare.com") for server in servers)
    if zone and cloudflare and (_has_secret(DNS_TOKEN) or _store_token(questions.ask("dns_token", zone=zone))):
        more |= {"dns_provider": "cloudflare", "dns_zone": zone, "dns_follow": home}
        plan.add(f"DNS records in {zone} are set at Cloudflare", f"{init_files.GROUP_DATA}: dns_*")
    if domain and "dns_provider" not in more:
        where = f" (name servers: {', '.join(servers[:2])})" if servers else ""
        plan.add(f"you point {domain} to the machine by hand{where}", f"{init_files.GROUP_DATA}: dns_provider")
    reachable, why = _behind_nat(mini, str(values["dns_address_url"])) if home else (True, "it has a public address")
    verdict = {True: "yes", False: "NO", None: "not known"}[reachable]
    plan.add(f"reachable from the internet: {verdict}: {why}", "your router, your provider")
    return more


def _behind_nat(mini: Seen, address_url: str) -> tuple[bool | None, str]:
    """Compare the router's address with what the internet sees; only if this computer is in the same network."""
    if not mini.gateway or ip_address(mini.gateway).version != 4:
        return None, "the machine has no router"
    own = router.external_address(mini.gateway)
    try:
        seen = public_address("A", address_url, retries=urllib3.Retry(1)) if own else None
    except MinipcError:
        seen = None
    return router.reachable_from_internet(own, seen)


def _zone(domain: str) -> tuple[str | None, list[str]]:
    """Return the DNS zone of a name and its name servers; None if it cannot be found out."""
    try:
        zone = dns.resolver.zone_for_name(domain, resolver=_resolver())
        servers = _resolver().resolve(zone, "NS")
    except (dns.exception.DNSException, OSError):
        return None, []
    name = zone.to_text(omit_final_dot=True)
    return (name if "." in name else None), sorted(str(each.target).rstrip(".") for each in servers)


def _resolver() -> dns.resolver.Resolver:
    resolver = dns.resolver.Resolver()
    resolver.lifetime = 3.0
    return resolver


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _has_secret(name: str) -> bool:
    try:
        return name in open_store(PRODUCTION.name).names()
    except MinipcError:
        return False


def _store_token(token: str) -> bool:
    """Store the token of the DNS provider, if one was given."""
    if token:
        store = open_store(PRODUCTION.name)
        store.prepare()
        store.set_many({DNS_TOKEN: token})
    return bool(token)


def _secrets(plan: Plan) -> None:
    store = open_store(PRODUCTION.name)
    created = store.prepare()
    filled = fill(store, catalogue.for_environment(PRODUCTION.name))
    plan.add(f"{len(filled.generated)} secrets generated, {len(filled.present)} kept", str(store.location))
    for made in created:
        plan.add(f"created {made}", "KEEP A COPY OF THE KEY AWAY FROM THIS COMPUTER")
    for entry in filled.to_supply:
        if not entry.optional:
            plan.add(f"NEEDED: {entry.description}", f"minipc secrets set {entry.name}")


def _size(seen: Seen) -> str:
    notes = [f"{seen.memory_mb} MB of memory", f"{seen.disk_mb // 1024} GB free", *seen.disks]
    if seen.memory_mb < GOOD_MEMORY_MB or seen.disk_mb < GOOD_DISK_GB * 1024:
        notes.append(f"8 GB and {GOOD_DISK_GB} GB are recommended")
    if seen.arch != own_arch():
        notes.append(f"this computer is {own_arch()}: add images for {seen.arch}")
    return ", ".join(notes)


def _tell(plan: Plan, told: list[str]) -> None:
    for text in told:
        click.echo(f"\n{text}")
    click.echo("\nDecided, and where to change it:")
    width = max(len(what) for what, _ in plan.decided)
    for what, where in plan.decided:
        click.echo(f"  {what:<{min(width, 78)}}  {where}")
    click.echo("\nnext: `minipc up`")
