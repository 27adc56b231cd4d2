"""What to do when the mini PC, or a computer that controls it, got into other hands.

minipc stolen                   lock the machine out, and renew what it knew; then `minipc rebuild`
minipc stolen --repositories    on the rebuilt machine: new passphrases, repositories and certificates
minipc laptop-lost [CLIENT]     new age key, new values of everything that the laptop could read
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from minipc.config import Settings
from minipc.config.components import BY_NAME, deploy_files
from minipc.config.offsite import place_of
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError
from minipc.evidence.display import console_for, watch
from minipc.evidence.run import Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote.inventory import offsite_target, the_target
from minipc.remote.queries import on
from minipc.secrets import open_store
from minipc.secrets.age import AgeStore
from minipc.secrets.catalogue import (
    BACKUP_PASSPHRASES,
    BOUND,
    DISK_PASSPHRASE,
    RELEASE_SIGNING_KEY,
    VPN_KEY,
    Entry,
    whole,
)
from minipc.secrets.generate import renew
from minipc.secrets.key_file import is_protected
from minipc.vpn.keys import public_key
from minipc.vpn.peers import read_peers, write_peers
from minipc.vpn.revoking import without
from playbooks import phases, preflight, storage_box

# Both repositories off-site are moved aside, and stay readable with the old passphrases.
ASIDE_OFFSITE = """set -eu
cd /srv/minipc-offsite
systemctl stop minipc-sftp restic-rest-server
mv -T sftp/pgbackrest copies/aside-TIME
install -d -o minipc-sftp -g minipc-sftp -m 700 sftp/pgbackrest
[ ! -e restic/minipc ] || mv -T restic/minipc copies/restic-aside-TIME
systemctl start minipc-sftp restic-rest-server
"""
ASIDE_HERE = """set -eu
systemctl stop 'minipc-backup-*.timer' minipc-drill.timer
mv -T /var/lib/pgbackrest /var/lib/pgbackrest.aside-TIME
install -d -o postgres -g postgres -m 750 /var/lib/pgbackrest
# What is known of the old repositories: which WAL arrived, which backups were taken.
rm -rf /var/spool/pgbackrest/archive /var/cache/minipc-restic/* /var/lib/minipc/backups/stanza.json
rm -f /var/lib/minipc/backups/outcomes.json
"""
_STILL_PROTECTED = (
    "minipc secrets passphrase: choose a new passphrase for the age key, which still has the present one. That one "
    "protects the old key on the laptop only until somebody guesses it; this is why all secrets were renewed."
)
_NOT_PROTECTED = "minipc secrets passphrase: the new age key has no passphrase yet."
NEW_CERTIFICATES = """set -eu
state=/var/lib/caddy/.local/share/caddy
[ -e "$state" ] || exit 0
systemctl stop caddy
rm -rf "$state"
systemctl start caddy
"""


def stolen(environment: Environment, alias: str | None = None) -> None:
    """Lock the stolen machine out of the off-site host, renew what it knew, and print what is left for a person.

    The passphrases of the backups stay until the rebuild has read them; the thief can no longer reach the backups.

    Raises:
        CouldNotVerifyError: the off-site host cannot be reached; nothing was changed.
        SecretError: the secrets cannot be renewed.
    """
    target = the_target(environment, alias)
    offsite = offsite_target(environment, target)
    if offsite:
        on(offsite, "true")
    names = [each.name for each in _on_the_machine(target.settings) if each.generate]
    place = place_of(target.settings)
    renew(environment.name, [name for name in names if name not in BACKUP_PASSPHRASES], bound=True)
    if offsite:
        run = Run("converge")
        with watch(run.events), run.phase(phases.FENCE.name, phases.FENCE.detail):
            converge(environment, phases.FENCE.files, log=run.log, events=run.events, limit=offsite.alias)
            on(offsite, phases.LIST_REVOKED)
    by_hand = [
        *_lock_out(environment, target.settings),
        *_to_replace(environment, _on_the_machine(target.settings)),
        "Revoke the certificates of the public names where they were issued, or let them expire.",
        f"Each VPN client: PublicKey = {public_key(open_store(environment.name).get(VPN_KEY))}",
        "Secrets that services store themselves, such as sessions and API keys in their databases.",
        f"minipc rebuild --target {target.alias} --fingerprint SHA256:…   (on new hardware)",
        "minipc stolen --repositories   (after the rebuild)",
        "Commit secrets/ and seal a new bundle: minipc bundle create",
    ]
    locked = "" if place else ", and its keys are locked out"
    _tell(f"{len(names)} secrets of the machine were renewed{locked}.", by_hand)


def repositories(environment: Environment, alias: str | None = None) -> None:
    """Give the rebuilt machine new passphrases with new repositories, and new certificates.

    Raises:
        ConfigError: there is no off-site host, or the bucket or storage box that is set is not a new, empty one.
        CouldNotVerifyError: a machine cannot be reached.
        MinipcError: the new repositories could not be filled; the old ones are aside.
    """
    target = the_target(environment, alias)
    offsite = offsite_target(environment, target)
    if not target.settings.has_offsite:
        raise ConfigError(f"{target.alias} has no off-site host", "set backups_offsite in inventory/")
    place = place_of(target.settings)
    if place:
        preflight.demand_empty(target)
    if offsite:
        on(offsite, "true")
    on(target, "systemctl is-active postgresql@17-main")
    aside = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}"
    renew(environment.name, BACKUP_PASSPHRASES, bound=True)
    if offsite:
        on(offsite, ASIDE_OFFSITE.replace("TIME", aside), timeout_s=600)
    on(target, ASIDE_HERE.replace("TIME", aside), timeout_s=600)
    run = Run("converge")
    with watch(run.events), run.phase("new repositories", "new passphrases, first backups, new certificates"):
        files = deploy_files(["repositories", "volumes", "postgres", "backups"])
        converge(environment, files, log=run.log, events=run.events, limit=target.alias)
        if offsite:
            accept = "/usr/local/lib/minipc/offsite-copy --accept && systemctl start minipc-offsite-copy"
            on(offsite, accept, timeout_s=3600)
        on(target, NEW_CERTIFICATES, timeout_s=120)
    old = "the old folder in the storage box" if target.settings.offsite.sftp else "the old bucket"
    if offsite:
        old = f"on {offsite.alias} the folders *aside-{aside} and the older copies in /srv/minipc-offsite/copies"
    by_hand = [
        "minipc drill --repo 2",
        f"When it passed, remove what the old passphrases open: {old}; on {target.alias} "
        f"/var/lib/pgbackrest.aside-{aside}",
        "Commit secrets/ and seal a new bundle: minipc bundle create",
    ]
    _tell("The repositories have new passphrases, and the first backups are in them.", by_hand)


def laptop_lost(environment: Environment, client: str | None) -> None:
    """Replace the age key, revoke a VPN client, renew what the laptop could read, and print what is left for a person.

    Args:
        client: name of the laptop's VPN client.

    Raises:
        ConfigError: there is no such VPN client; nothing was changed.
        SecretError: the secrets cannot be read or renewed.
    """
    target = the_target(environment, None)
    if client:
        write_peers(without(environment.name, target.data, client, read_peers()))
    store = open_store(environment.name)
    age_key = []
    if isinstance(store, AgeStore):
        store.rekey()
        age_key = [_STILL_PROTECTED if is_protected(store.key_path) else _NOT_PROTECTED]
    entries = whole(target.settings)
    names = [each.name for each in entries if each.generate and each.name not in BOUND]
    renew(environment.name, names)
    keys = [key.split(maxsplit=2)[-1] for key in target.settings.host.operator_keys]
    encrypted = target.settings.host.disk_encryption != "none"
    by_hand = [
        f"host_operator_keys in group_data/production.py: remove the laptop's SSH key. There are: {', '.join(keys)}",
        *age_key,
        "secrets_age_recipients: remove the laptop's age key, then run this command again.",
        "inventory/allowed_signers: remove the laptop's signing keys, then `minipc release pin`.",
        f"Each VPN client: PublicKey = {public_key(store.get(VPN_KEY))}",
        *_to_replace(environment, entries),
        *_new_box_key(environment, target.settings),
        "minipc apply --host OFF-SITE-HOST, then minipc apply   (now the laptop is locked out)",
        "minipc stolen --repositories   (the laptop knew the passphrases of the backups)",
        *([f"{DISK_PASSPHRASE}, which the laptop knew: {BOUND[DISK_PASSPHRASE]}"] if encrypted else []),
        "Accounts of the laptop at Git hosts, registries, DNS provider and CI: end its sessions, remove its keys.",
        "Commit secrets/ and inventory/, and seal a new bundle: minipc bundle create",
    ]
    _tell(f"{len(names)} secrets were renewed; they are installed by the next converge.", by_hand)


def _on_the_machine(settings: Settings) -> list[Entry]:
    """Return the secrets that the mini PC knows."""
    return [
        each for each in whole(settings) if "mini" in BY_NAME[each.component].roles and each.name != RELEASE_SIGNING_KEY
    ] + [each for each in whole(settings) if "mini PC" in each.on and "mini" not in BY_NAME[each.component].roles]


def _lock_out(environment: Environment, settings: Settings) -> list[str]:
    """Return what a person does at the provider of a bucket or storage box; nothing with an off-site host."""
    if settings.offsite.s3:
        return ["FIRST: delete the bucket's key at its provider: nothing else locks the machine out."]
    return [f"FIRST: {each}; nothing else locks the machine out." for each in _new_box_key(environment, settings)]


def _new_box_key(environment: Environment, settings: Settings) -> list[str]:
    if settings.offsite.sftp is None:
        return []
    key = storage_box.authorized_key(open_store(environment.name))
    return [f"in the storage box, remove every authorized key that is not yours, and add this one: {key}"]


def _to_replace(environment: Environment, entries: Iterable[Entry]) -> list[str]:
    """Return a line for each secret that somebody else issued."""
    present = set(open_store(environment.name).names())
    return [
        f"{each.name} ({each.description}): get a new one where it was issued, then minipc secrets set {each.name}"
        for each in entries
        if not each.generate and each.name in present
    ]


def _tell(done: str, by_hand: Sequence[str]) -> None:
    console = console_for()
    console.print(done, markup=False)
    console.print("\nWhat a person must do now:", markup=False)
    for number, line in enumerate(by_hand, 1):
        console.print(f"{number:3}. {line}", markup=False, soft_wrap=True)
