"""Ask a storage box (an SFTP server with an account for the backups) what it allows and what is in it: storage-box

pgBackRest and restic read and write the backups. This asks what they cannot: whether the box is the pinned one, whether
the key may do what they need, how much space is left, and whether somebody else's files are in the folder. It runs
OpenSSH's `sftp`, on the mini PC and on the controller, with few connections: servers count those that do not log in as
an attack, and then refuse the address (PerSourcePenalties in sshd_config(5)).
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory

from minipc_machine import schema
from minipc_machine.program import EXIT_PASS, FailedError, say

SETTINGS = Path("/etc/minipc/backups/storage-box.json")
KEY, KNOWN_HOSTS = "/etc/pgbackrest/sftp_key", "/etc/pgbackrest/known_hosts"
DATABASE, FILES = "pgbackrest", "restic"
"""Folders in the box: of pgBackRest and of restic. Nothing else belongs next to them."""
SYNC = "fsync@openssh.com"
"""Extension of SFTP without which pgBackRest writes nothing (its src/storage/sftp/write.c)."""
HOST_KEY_TYPES = ("ssh-ed25519", "ssh-rsa", *(f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)))
PROBE, PROBE_BYTES = "minipc-probe", 256 * 1024
"""Start of the name of a file that is written to try it, and its size. Two checks may run at once."""
CONNECT_LIMIT_S, LIMIT_S = 15, 120
HOWTO = "docs/howto/storage-box.md"


@dataclass(frozen=True)
class StorageBox:
    """Where the box is.

    Attributes:
        path: absolute path of the folder for the backups, as the account sees it; empty: its root.
        host_keys: public keys that the server may show, `TYPE BASE64` each.
        free_mb: space that must be left, MB.
    """

    host: str
    port: int
    user: str
    path: str
    host_keys: list[str]
    free_mb: int = 0

    @property
    def url(self) -> str:
        """Return the address of the folder, which tells one storage box from another."""
        return f"sftp://{self.user}@{_bracketed(self.host)}:{self.port}/{self.path}"

    @property
    def known_hosts(self) -> str:
        """Return the host keys for known_hosts, for clients that look for the port and for those that do not."""
        lines = (f"[{self.host}]:{self.port} {key}\n{self.host} {key}\n" for key in self.host_keys)
        return "".join(lines)


@dataclass(frozen=True)
class Content:
    """What the folder in the box contains, and the space that is left.

    Attributes:
        names: of its files and folders; names that begin with a dot are the provider's and are left out.
        free_mb: None: the server does not say it.
    """

    names: list[str]
    free_mb: int | None

    def __str__(self) -> str:
        if self.free_mb is None:
            return "the storage box can be used; its server does not say how much space is left"
        return f"the storage box can be used; {self.free_mb} MB are free"


def main(arguments: list[str]) -> int:
    """Check the storage box with the machine's own key, and say how much space is left. Raises FailedError."""
    if arguments or not SETTINGS.exists():
        raise FailedError("usage: storage-box, on a machine whose backups are in a storage box")
    say(str(examine(schema.load(StorageBox, SETTINGS), KEY)))
    return EXIT_PASS


def ssh_options(key: str, known_hosts: str) -> list[str]:
    """Return the options of ssh and sftp for the account in the box; they ask nobody and trust only pinned keys."""
    settings = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "ConnectTimeout": str(CONNECT_LIMIT_S),
        "ServerAliveInterval": "20",
    }
    return ["-F", "none", "-i", key, *(word for name in settings for word in ("-o", f"{name}={settings[name]}"))]


def host_keys(host: str, port: int) -> list[str]:
    """Return the host keys that a server shows, compared with nothing. Raises FailedError if it cannot be reached."""
    argv = ["ssh-keyscan", "-T", str(CONNECT_LIMIT_S), "-p", str(port), "-t", "ed25519,ecdsa,rsa", host]
    done = _run(argv, 4 * CONNECT_LIMIT_S)
    found = [line.split()[1:3] for line in done.stdout.splitlines() if line and not line.startswith("#")]
    if not found:
        said = [line for line in done.stderr.splitlines() if not line.startswith("#")]
        raise FailedError(f"{host} port {port} cannot be reached: {said[-1] if said else 'no SSH server answers'}")
    return sorted(f"{kind} {key}" for kind, key in found)


def fingerprint(host_key: str) -> str:
    """Return type and fingerprint of a host key, as OpenSSH shows them."""
    kind, text = host_key.split()[:2]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(text)).digest()).decode()
    return f"{kind} SHA256:{digest.rstrip('=')}"


def examine(box: StorageBox, key: str) -> Content:
    """Check that backups can be kept in the box: the pinned server, list, write, rename, read, delete, space.

    The folder is created if it is missing. Nothing else is left in it.

    Args:
        key: file with the private key.

    Raises:
        FailedError: what is wrong with it.
    """
    found = content(box, key)
    other = next((name for name in found.names if name not in (DATABASE, FILES)), "")
    if other:
        raise FailedError(
            f"the folder {box.path} in the storage box is used by something else: it contains {other[:80]!r}. Backups "
            "need a folder for themselves: set another path in offsite_sftp"
        )
    if found.free_mb is not None and found.free_mb < box.free_mb:
        raise FailedError(
            f"the storage box is full: {found.free_mb} MB are free, {box.free_mb} MB must be (offsite_free_mb). Get a "
            f"larger one, or remove from it what is not needed ({HOWTO})"
        )
    _probe(box, key)
    return found


def content(box: StorageBox, key: str) -> Content:
    """Return what is in the folder of the box. Raises FailedError if it cannot be listed."""
    done = _sftp(box, key, [f"-mkdir {box.path}", f"ls -1 {box.path}", f"-df {box.path}"])
    _demand(done, box, "listed")
    _demand_pinned_keys(box, done.stderr)
    if f'Server supports extension "{SYNC}"' not in done.stderr:
        raise FailedError(
            f"the SFTP server of {box.host} has no command {SYNC}, which pgBackRest needs: use the provider's OpenSSH "
            f"port if it has one, often 23; or another provider ({HOWTO})"
        )
    lines = [line.strip() for line in done.stdout.splitlines() if not line.startswith("sftp>")]
    table = next((index for index, line in enumerate(lines) if line.endswith("%Capacity")), len(lines))
    names = [line.rpartition("/")[2] for line in lines[:table] if line]
    free = lines[table + 1].split()[2] if table + 1 < len(lines) else ""
    names = [name for name in names if not name.startswith((".", PROBE))]
    return Content(names, int(free) // 1024 if free.isdigit() else None)


def _demand_pinned_keys(box: StorageBox, said: str) -> None:
    """Raise FailedError if the server has a host key of a type that is not pinned.

    OpenSSH takes a type that is pinned, but pgBackRest's libssh2 takes the one that it likes best.

    Args:
        said: what `sftp -vv` printed; the server's list follows ours.
    """
    offered = re.findall(r"debug2: host key algorithms: (\S+)", said)
    types = {"ssh-rsa" if "rsa" in each else each for each in (offered[-1].split(",") if offered else [])}
    pinned = {each.split()[0] for each in box.host_keys}
    missing = sorted(each for each in types if each in HOST_KEY_TYPES and each not in pinned)
    if missing:
        raise FailedError(
            f"{box.host} port {box.port} also has a host key of the type {missing[0]}, which is not pinned, and "
            "pgBackRest may choose it. `minipc backup host-keys` prints all: compare them with your provider's page, "
            f"and set them in offsite_sftp ({HOWTO})"
        )


def _probe(box: StorageBox, key: str) -> None:
    """Write, rename, read and delete a file. Raises FailedError if one of it is refused."""
    first = f"{box.path}/{PROBE}-{token_hex(8)}"
    second = f"{first}-renamed"
    with TemporaryDirectory() as folder:
        there, back = Path(folder) / "there", Path(folder) / "back"
        there.write_bytes(b"minipc\n" * (PROBE_BYTES // 7))
        steps = [f"put {there} {first}", f"rename {first} {second}", f"get {second} {back}", f"rm {second}"]
        done = _sftp(box, key, steps)
        if done.returncode:
            _sftp(box, key, [f"-rm {first}*"])
        _demand(done, box, "written to, read and cleaned up")
        if back.read_bytes() != there.read_bytes():
            raise FailedError(f"the storage box at {box.host} returns other data than was written to it")


def _sftp(box: StorageBox, key: str, commands: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run commands of sftp; one that begins with `-` may fail."""
    with TemporaryDirectory() as folder:
        known = Path(folder) / "known_hosts"
        known.write_text(box.known_hosts, encoding="utf-8")
        account = ["-P", str(box.port), f"{box.user}@{_bracketed(box.host)}"]
        argv = ["sftp", "-vv", "-b", "-", *ssh_options(key, str(known)), *account]
        return _run(argv, LIMIT_S, "".join(f"{each}\n" for each in commands))


def _run(argv: Sequence[str], limit_s: float, stdin: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, errors="replace", timeout=limit_s, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{argv[0]}: no answer within {limit_s:.0f} s") from None
    except OSError as error:
        raise FailedError(f"{argv[0]} cannot be started: {error.strerror}; install openssh-client") from None


# Its log, and what the command says that may fail: the folder is there.
_NOISE = re.compile(
    r"debug\d:|OpenSSH_|Connected to |Authenticated to |Transferred: |Bytes per second|remote mkdir .*: Failure$"
)
_FULL = "it is probably full: get a larger one, or remove from it what is not needed"
_REASONS = (
    ("Not allowed at this time", "its server refuses this address for some minutes, after too many failed attempts"),
    ("connect to host", "it cannot be reached: check host, port and network"),
    ("Could not resolve", "it cannot be reached: its name is not known"),
    (
        "Permission denied (",
        "it does not accept the mini PC's key: `minipc backup key` prints the line for the authorized keys of the box",
    ),
    ("subsystem request failed", "it has no SFTP for this account"),
    ("Permission denied", "give the account the right to list, read, write, rename and delete in the folder"),
    ("not found", "create the folder above it, or correct the path in offsite_sftp"),
    ("No such file", "create the folder above it, or correct the path in offsite_sftp"),
    ("Operation unsupported", "its SFTP server lacks a command that backups need"),
    ("write remote", _FULL),
    ("Failure", _FULL),
    ("Connection closed", "its server ended the connection: check the account, and how many connections it may have"),
)
"""What OpenSSH says -> what is wrong. The first that fits is taken."""


def _demand(done: subprocess.CompletedProcess[str], box: StorageBox, what: str) -> None:
    """Raise FailedError with the reason if sftp failed."""
    if done.returncode == 0:
        return
    start = f"the storage box {box.url} cannot be {what}"
    if "Host key verification failed" in done.stderr:
        shown = re.search(r"^(SHA256:[A-Za-z0-9+/]{43})\.?$", done.stderr, re.MULTILINE)
        raise FailedError(
            f"{start}: it shows {f'the host key {shown[1]}' if shown else 'a host key'}, which is not pinned in "
            "offsite_sftp. Compare it with your provider's page: if it is not there, another server answers"
        )
    said = [line.strip() for line in done.stderr.splitlines() if not _NOISE.match(line)]
    text = " | ".join(line for line in said if line)
    why = next((reason for sign, reason in _REASONS if sign in text), "see what it says")
    quoted = "".join(each if each.isprintable() else "?" for each in text[-300:])
    raise FailedError(f"{start}: {why} ({quoted})")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
