"""The first login on a machine as Debian's installer left it: an account with a password, and root only on the screen.

paramiko does it, because OpenSSH reads a password only from a terminal. The host key is known: nothing is trusted on
first use. Where `sudo` is not set up, root's own password is needed.
"""

from __future__ import annotations

import base64
import shlex
from contextlib import suppress

import paramiko

from minipc.core.errors import CouldNotVerifyError, RefusedError

TIMEOUT_S = 20
AUTHORIZED_KEYS = "/root/.ssh/authorized_keys"


class WrongPasswordError(RefusedError):
    """The account or its password is wrong. Nothing was changed."""


class NeedsRootPasswordError(RefusedError):
    """The account may not use sudo, so root's own password is needed."""


def admit_key(
    account: str,
    address: str,
    *,
    host_key: str,
    public_key: str,
    password: str,
    root_password: str = "",
    port: int = 22,
) -> None:
    """Add a public key to those that may log in as root; existing keys are kept.

    Args:
        account: what the installer created; "root" itself works too, if the machine admits root by password.
        host_key: type and base64 key, which the machine must have.
        public_key: the line of a .pub file.
        root_password: empty: become root with sudo.

    Raises:
        WrongPasswordError: a password is wrong.
        NeedsRootPasswordError: sudo did not work, and no password of root is given.
        CouldNotVerifyError: the machine cannot be reached, or has another host key.
    """
    key = shlex.quote(public_key.strip())
    script = (
        f"umask 077 && install -d -m 700 /root/.ssh && touch {AUTHORIZED_KEYS} && "
        f"{{ grep -qxF {key} {AUTHORIZED_KEYS} || echo {key} >> {AUTHORIZED_KEYS}; }}"
    )
    with _connect(account, address, port, host_key, password) as client:
        if account == "root":
            command, given = script, ""
        elif root_password:
            command, given = f"LC_ALL=C su root -c {shlex.quote(script)}", root_password
        else:
            command, given = f"sudo -S -p '' sh -c {shlex.quote(script)}", password
        stdin, stdout, stderr = client.exec_command(command, timeout=TIMEOUT_S)
        with suppress(OSError):  # a program that is not there has ended by now; its exit status says so
            stdin.write(f"{given}\n")
            stdin.channel.shutdown_write()
        if not stdout.channel.recv_exit_status():
            return
        said = stderr.read().decode(errors="replace").strip().splitlines()
    if root_password:
        reason = said[-1] if said else "no reason given"
        raise WrongPasswordError(
            f"{account}@{address} cannot become root: {reason}", "check root's password on the machine's screen"
        )
    raise NeedsRootPasswordError(
        f"{account}@{address} may not use sudo", "give root's password, which you chose during the installation"
    )


def _connect(account: str, address: str, port: int, host_key: str, password: str) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    kind, blob = host_key.split()
    known = paramiko.Ed25519Key(data=base64.b64decode(blob))
    client.get_host_keys().add(address if port == 22 else f"[{address}]:{port}", kind, known)
    try:
        client.connect(address, port, account, password, timeout=TIMEOUT_S, allow_agent=False, look_for_keys=False)
    except paramiko.AuthenticationException:
        raise WrongPasswordError(
            f"{account}@{address} does not accept this password", "check the account and its password"
        ) from None
    except paramiko.BadHostKeyException:
        raise CouldNotVerifyError(
            f"{address} has another host key than the one you compared", "find out which machine answers there"
        ) from None
    except (TimeoutError, OSError, paramiko.SSHException) as error:
        raise CouldNotVerifyError(
            f"{address} cannot be reached over SSH: {error}", "check address, power and network, then try again"
        ) from None
    return client
