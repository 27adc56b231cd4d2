"""How the mini PC's programs reach the off-site side, whatever its kind."""

from __future__ import annotations

import shlex

from minipc.config.schema import Settings
from minipc_machine import storage_box
from minipc_machine.bucket import FILES, Bucket
from minipc_machine.storage_box import StorageBox

ETC = "/etc/minipc/backups"
NONE = "there is no off-site host: backups_offsite is None"
"""Why something is NOT EXERCISED without an off-site side."""
FENCE = "fence of the lost machine"
_BY_HAND = {
    FENCE: "",
    "notice to a machine that was replaced": "switch the lost machine off for good before you rebuild",
    "deploy repository": "use a Git host: argocd_repository",
    "WAL before its segment is complete": "lower backups_archive_timeout_s: that much can be lost",
    "monitoring from outside": "use a dead man's switch: alertmanager.watchdog_url, and alertmanager_watchdog = True",
}
"""What only an off-site host provides -> what does it instead (docs/reference/bucket.md, storage-box.md)."""
_BUCKET = {FENCE: "renew the bucket's key at its provider, then `minipc secrets set` both halves"}
_STORAGE_BOX = {
    FENCE: "`minipc secrets renew backups.sftp_key`, then replace the key in the box by that of `minipc backup key`",
    "backups that the mini PC's key cannot delete": "switch on the snapshots of the box at its provider",
}
ONLY_A_HOST = tuple(_BY_HAND | _STORAGE_BOX)
"""What a bucket or a storage box may lack, by name."""
_SYSTEM_CAS = "/etc/ssl/certs/ca-certificates.crt"


def place_of(settings: Settings) -> str:
    """Return what keeps the backups if it is not a machine: "a bucket" or "a storage box"; empty if it is one."""
    return {"machine": "", "s3": "a bucket", "sftp": "a storage box"}[settings.offsite.kind]


def not_provided(settings: Settings) -> dict[str, str]:
    """Return what the off-site side cannot provide -> why, with what does it instead; empty if it is a machine."""
    place = place_of(settings)
    if not place:
        return {}
    by_hand = _BY_HAND | (_BUCKET if settings.offsite.s3 else _STORAGE_BOX)
    return {what: f"{place} cannot do it; {instead}" for what, instead in by_hand.items()}


def bucket_of(settings: Settings) -> Bucket | None:
    """Return the bucket with the backups; None if the off-site side is not one."""
    s3 = settings.offsite.s3
    return Bucket(s3.endpoint, s3.bucket, s3.region, s3.ca or "") if s3 else None


def storage_box_of(settings: Settings) -> StorageBox | None:
    """Return the storage box with the backups; None if the off-site side is not one."""
    sftp = settings.offsite.sftp
    if sftp is None:
        return None
    return StorageBox(sftp.host, sftp.port, sftp.user, sftp.path, list(sftp.host_keys), settings.offsite.free_mb)


def storage_name(settings: Settings) -> str:
    """Return what tells one bucket or storage box from another; empty if the off-site side is a machine."""
    s3, box = settings.offsite.s3, storage_box_of(settings)
    return f"{s3.endpoint}/{s3.bucket}" if s3 else box.url if box else ""


def restic_url(place: Bucket | StorageBox) -> str:
    """Return restic's address of its repository in the bucket or storage box."""
    if isinstance(place, StorageBox):
        return f"{place.url}/{storage_box.FILES}"
    return f"s3:https://{place.endpoint}/{place.name}/{FILES.rstrip('/')}"


def ca_file(settings: Settings) -> str:
    """Return the file on the mini PC with the CA certificates for the off-site side; empty: it has none."""
    if settings.offsite.sftp:
        return ""
    s3 = settings.offsite.s3
    return _SYSTEM_CAS if s3 and s3.ca is None else f"{ETC}/offsite.crt"


def restic_options(settings: Settings) -> list[str]:
    """Return restic's extended options: how its ssh reaches a storage box."""
    if not settings.offsite.sftp:
        return []
    return [f"sftp.args={shlex.join(storage_box.ssh_options(storage_box.KEY, storage_box.KNOWN_HOSTS))}"]


def restic_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that restic needs on the mini PC, besides its options. None of them is secret."""
    s3 = settings.offsite.s3
    return {"AWS_SHARED_CREDENTIALS_FILE": f"{ETC}/s3.credentials", "AWS_DEFAULT_REGION": s3.region} if s3 else {}


def restic_command(settings: Settings) -> str:
    """Return the beginning of a restic command for root's shell on the mini PC."""
    variables = "".join(f"{name}={value} " for name, value in restic_environment(settings).items())
    certificate = f"--cacert {ca_file(settings)} " if ca_file(settings) else ""
    options = "".join(f"{shlex.quote(f'--option={each}')} " for each in restic_options(settings))
    return (
        f"{variables}restic --repository-file {ETC}/restic.repository --password-file {ETC}/restic.password "
        f"{certificate}{options}--cache-dir /var/cache/minipc-restic"
    )
