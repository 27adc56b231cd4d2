"""A storage box on an off-site machine of the lab: OpenSSH's internal-sftp in a chroot, without a shell.

As at a provider, the server shows host keys of three types, and the account can write only below its home.
"""

from __future__ import annotations

from minipc.secrets import open_store
from minipc.secrets.catalogue import SFTP_KEY
from minipc.secrets.ed25519 import public_key
from minipc.secrets.generate import ssh_private_key
from minipc_machine.storage_box import StorageBox
from rehearsal.lab import offsite_storage
from rehearsal.lab.machine import Machine
from rehearsal.lab.ssh import run

PORT, USER, PATH = 23, "u1", "/home/minipc"
CHROOT = "/srv/box"
ETC = "/etc/storage-box"
_START = f"""set -eu
umask 022
mkdir -p {ETC} {CHROOT}/home
id {USER} >/dev/null 2>&1 || useradd --no-create-home --home-dir /home --shell /usr/sbin/nologin --password '*' {USER}
chown {USER}: {CHROOT}/home
cat > {ETC}/authorized_keys
for kind in ed25519 ecdsa rsa; do
  [ -e {ETC}/$kind ] || ssh-keygen -q -t $kind -N '' -C box -f {ETC}/$kind
done
cat > {ETC}/sshd_config <<'END'
Port {PORT}
PidFile none
HostKey {ETC}/ed25519
HostKey {ETC}/ecdsa
HostKey {ETC}/rsa
AllowUsers {USER}
AuthorizedKeysFile {ETC}/authorized_keys
AuthenticationMethods publickey
UsePAM no
DisableForwarding yes
PermitTTY no
Subsystem sftp internal-sftp
ForceCommand internal-sftp
ChrootDirectory {CHROOT}
END
systemd-run --quiet --unit=storage-box -p Restart=always -p RuntimeDirectory=sshd -p RuntimeDirectoryPreserve=yes \\
  /usr/sbin/sshd -D -f {ETC}/sshd_config
for attempt in $(seq 50); do ss -Hltn 'sport = :{PORT}' | grep -q . && break; sleep 0.1; done
cat {ETC}/*.pub
"""


def serve(machine: Machine, *, authorized: str = "", free_mb: int = 0) -> StorageBox:
    """Run the server on a blank machine, and note it for the inventory.

    Args:
        authorized: public key of the account; empty: that of the lab's mini PC. It is created on first use.
        free_mb: space that must be left, MB.
    """
    shown = run(machine, ["sh", "-c", _START], stdin=f"{authorized or _own_key()}\n").stdout
    keys = [" ".join(line.split()[:2]) for line in shown.splitlines()]
    box = StorageBox(machine.public_ipv4, PORT, USER, PATH, keys, free_mb)
    settings = {"host": box.host, "port": PORT, "user": USER, "path": PATH, "host_keys": keys}
    offsite_storage.note(machine, {"offsite_kind": "sftp", "offsite_sftp": settings})
    return box


def _own_key() -> str:
    store = open_store("lab")
    if SFTP_KEY not in store.names():
        store.set_many({SFTP_KEY: ssh_private_key()})
    return public_key(store.get(SFTP_KEY))
