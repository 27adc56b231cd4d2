"""Unlock an encrypted disk over SSH, and prepare it after its first boot: its full size, and the TPM.

minipc disk unlock      give the passphrase to a machine that waits for it at boot
minipc disk prepare       once after the first boot; with a TPM again after each boot that asked for the passphrase
"""

from __future__ import annotations

from minipc.config import Settings
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError, CouldNotVerifyError
from minipc.images.disk_encryption import UNLOCK_PORT, Encryption
from minipc.remote import ssh
from minipc.remote.inventory import Target, the_target
from minipc.remote.pins import Pin, known_hosts_file
from minipc.remote.queries import on
from minipc.secrets import load
from minipc.secrets.catalogue import DISK_PASSPHRASE, DISK_UNLOCK_KEY
from minipc.secrets.sealed import check_passphrase

HOW_TO = "docs/howto/disk-encryption.md"
# The passphrase is read from standard input into a variable, and passed on by a builtin: no command line has it.
READ = """set -eu
device=/dev/disk/by-partlabel/root
IFS= read -r passphrase
give() { printf %s "$passphrase"; }
give | cryptsetup open --test-passphrase --key-file - $device
"""
GROW = """give | cryptsetup resize --key-file - root
resize2fs /dev/mapper/root 2>/dev/null
"""
# PCR 4: boot loader and kernel; 7: Secure Boot; 9: initramfs and kernel command line; 15: nothing has started from the
# disk yet (`SEAL` in minipc/images/disk_encryption.py), so it counts as zero. The old binding goes when the new one is
# there.
SEALED_TO = """[ -e /dev/tpmrm0 ] || {
  echo 'ERROR: no TPM 2.0: the machine has none, or its firmware has it off' >&2
  exit 1
}
old=$(clevis luks list -d $device | cut -d: -f1)
tpm2_pcrread -Q sha256:4,7,9 -o /run/minipc-pcrs
digest=$({ cat /run/minipc-pcrs; head -c 32 /dev/zero; } | jose b64 enc -I-)
rm /run/minipc-pcrs
give | clevis luks bind -f -k - -d $device tpm2 \
  "{\\"pcr_bank\\":\\"sha256\\",\\"pcr_ids\\":\\"4,7,9,15\\",\\"pcr_digest\\":\\"$digest\\"}"
for slot in $old; do clevis luks unbind -f -d $device -s "$slot"; done
"""


def encryption_of(environment: Environment, settings: Settings) -> Encryption | None:
    """Return how the machine's disk is encrypted; None if it is not.

    Raises:
        ConfigError: nobody could unlock it over SSH.
        SecretError: a secret is missing, or the passphrase can be guessed.
    """
    host = settings.host
    if host.disk_encryption == "none":
        return None
    if not host.operator_keys:
        raise ConfigError(
            "host_operator_keys in group_data/production.py is empty: nobody could unlock the disk over SSH",
            "add your public key",
        )
    secrets = load(environment.name, [DISK_PASSPHRASE, DISK_UNLOCK_KEY], settings=settings.secrets)
    passphrase = secrets[DISK_PASSPHRASE]
    check_passphrase(passphrase.reveal())
    return Encryption(host.disk_encryption == "tpm2", passphrase, secrets[DISK_UNLOCK_KEY], host.operator_keys)


def unlock(environment: Environment, alias: str | None) -> str:
    """Give the passphrase to a machine that waits for it at boot. Returns what the machine says.

    Raises:
        ConfigError: its disk is not encrypted.
        CouldNotVerifyError: it cannot be reached, has another host key, or refuses the passphrase.
    """
    target, encryption = _of(environment, alias)
    name = f"{target.alias}-locked"
    address = target.data["ssh_hostname"]
    known = known_hosts_file(name, address, UNLOCK_PORT, Pin(host_key=encryption.host_key))
    data = target.data | {"ssh_port": UNLOCK_PORT, "ssh_user": "root", "ssh_known_hosts_file": str(known)}
    config = ssh.write_config([(name, data)])
    try:
        done = ssh.run(config, name, "cryptroot-unlock", stdin=encryption.passphrase.reveal(), timeout_s=120)
    finally:
        ssh.close(config, [name])
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode:
        raise CouldNotVerifyError(
            f"{target.alias}: the disk was not unlocked: {said or 'no reason given'}",
            f"if {DISK_PASSPHRASE} was changed since the image was built, see {HOW_TO}",
        )
    return said


def prepare(environment: Environment, alias: str | None) -> None:
    """Grow the encrypted root to the whole disk, and have the TPM unlock it if it is set to do so.

    Raises:
        ConfigError: its disk is not encrypted.
        CouldNotVerifyError: the machine cannot be reached, another passphrase opens its disk, or it has no TPM.
    """
    target, encryption = _of(environment, alias)
    script = READ + GROW + (SEALED_TO if encryption.tpm2 else "")
    on(target, script, stdin=f"{encryption.passphrase.reveal()}\n", timeout_s=600)


def _of(environment: Environment, alias: str | None) -> tuple[Target, Encryption]:
    target = the_target(environment, alias)
    encryption = encryption_of(environment, target.settings)
    if encryption is None:
        raise ConfigError(
            f"the disk of {target.alias} is not encrypted: host_disk_encryption is none",
            f"a machine gets an encrypted disk with its image, see {HOW_TO}",
        )
    return target, encryption
