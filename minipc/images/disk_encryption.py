"""Encrypt the root partition of a disk image: LUKS2 by cryptsetup, unlocked over SSH or by a TPM 2.0.

Debian's initramfs does the rest: cryptsetup-initramfs asks for the passphrase, dropbear-initramfs takes it over SSH,
and clevis-initramfs asks the TPM. The files here are only their configuration, and what `SEAL` and `SEAL_HOOK` say.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.process import clean_environment
from minipc.secrets import Secret, ed25519

PACKAGES = ("cryptsetup-initramfs", "dropbear-initramfs")
TPM2_PACKAGES = ("clevis-initramfs", "clevis-tpm2")
# Debian 13's clevis-initramfs has the library for the TPM on this architecture only.
TPM2_ARCHITECTURE = "amd64"
UNLOCK_PORT = 2222
"""Where dropbear answers while the disk is locked. Not SSH's port, because its host key is another one."""
# The header takes half of this; `cryptsetup reencrypt` needs the other half while it moves the data.
HEADER_MIB = 32
ENCRYPT_TIMEOUT_S = 1800

UNLOCK_KEY_FILE = "etc/dropbear/initramfs/openssh_host_key"
# Keys only, no forwarding, and nothing but Debian's program that takes the passphrase.
DROPBEAR = f'DROPBEAR_OPTIONS="-p {UNLOCK_PORT} -s -j -k -I 300 -c cryptroot-unlock"\n'
# Before anything on the disk runs, also something that a thief put there, the TPM must stop giving out the key. It does
# when PCR 15 is no longer zero (`SEALED_TO` in playbooks/disk_encryption.py). Without that the machine does not boot.
SEAL = """\
#!/bin/sh
[ "$1" != prereqs ] || exit 0
. /scripts/functions
[ -e /dev/tpmrm0 ] || exit 0
TPM2TOOLS_TCTI=device:/dev/tpmrm0 tpm2_pcrextend \
15:sha256=0000000000000000000000000000000000000000000000000000000000000001 ||
  panic "The TPM could not be told to keep the key of the disk"
"""
SEAL_HOOK = """\
#!/bin/sh
[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
copy_exec /usr/bin/tpm2_pcrextend
"""
# Runs in the new root, with its path as $1. `panic=` reboots where the initramfs would open a shell.
CUSTOMISE = f"""\
tar -C "$1" --no-same-owner --no-overwrite-dir -xpf @FILES@
rm -f etc/dropbear/initramfs/dropbear_*
chroot "$1" dropbearconvert openssh dropbear /{UNLOCK_KEY_FILE} /etc/dropbear/initramfs/dropbear_ed25519_host_key
rm {UNLOCK_KEY_FILE}
sed -i 's/$/ panic=10/' etc/kernel/cmdline
chroot "$1" update-initramfs -u -k all
"""


@dataclass(frozen=True, repr=False)
class Encryption:
    """How a disk is encrypted and unlocked.

    Attributes:
        tpm2: whether a TPM unlocks it, besides the passphrase.
        passphrase: always unlocks it.
        unlock_key: private SSH host key while the disk is locked.
        operator_keys: lines of .pub files; they may give the passphrase over SSH.
    """

    tpm2: bool
    passphrase: Secret
    unlock_key: Secret
    operator_keys: Sequence[str]

    @property
    def packages(self) -> tuple[str, ...]:
        """Return the Debian packages that unlock the disk."""
        return PACKAGES + (TPM2_PACKAGES if self.tpm2 else ())

    @property
    def host_key(self) -> str:
        """Return the public SSH host key while the disk is locked, `ssh-ed25519 AAAA…`."""
        return ed25519.public_key(self.unlock_key)

    def files(self) -> dict[str, tuple[str, int]]:
        """Return the files in the new root: path without leading slash -> text and mode."""
        files = {
            "etc/crypttab": ("root PARTLABEL=root none luks,initramfs\n", 0o644),
            "etc/dropbear/initramfs/dropbear.conf": (DROPBEAR, 0o644),
            "etc/dropbear/initramfs/authorized_keys": ("".join(f"{key}\n" for key in self.operator_keys), 0o600),
            UNLOCK_KEY_FILE: (self.unlock_key.reveal(), 0o600),
            # Nothing on the disk that is not encrypted may be taken for a hibernated system.
            "etc/initramfs-tools/conf.d/resume": ("RESUME=none\n", 0o644),
            # The initramfs contains the host key.
            "etc/initramfs-tools/conf.d/umask": ("UMASK=0077\n", 0o644),
        }
        if self.tpm2:
            files |= {
                "etc/initramfs-tools/scripts/local-bottom/minipc-seal": (SEAL, 0o755),
                "etc/initramfs-tools/hooks/minipc-seal": (SEAL_HOOK, 0o755),
            }
        return files


def encrypt(partition: Path, passphrase: Secret) -> None:
    """Encrypt a file with a file system in place. Its last `HEADER_MIB` MiB must be unused.

    No device mapper and no support in this kernel is needed: cryptsetup encrypts a file by itself.

    Raises:
        MinipcError: cryptsetup failed.
    """
    done = subprocess.run(
        [
            *("cryptsetup", "reencrypt", "--encrypt", "--type", "luks2", "--batch-mode", "--key-file", "-"),
            *("--cipher", "aes-xts-plain64", "--key-size", "512", "--reduce-device-size", f"{HEADER_MIB}M"),
            # A machine with little memory must unlock it, too, and within the ten seconds that cryptroot-unlock waits.
            *("--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--iter-time", "500", str(partition)),
        ],
        input=passphrase.reveal().encode(),
        capture_output=True,
        timeout=ENCRYPT_TIMEOUT_S,
        env=clean_environment(),
    )
    if done.returncode != 0:
        raise MinipcError(
            f"cryptsetup could not encrypt {partition} ({done.returncode}): {done.stderr.decode().strip()[-500:]}",
            "look for free space in the cache folder (MINIPC_CACHE_DIR), then run the same command again",
        )
