"""Git with a fixed configuration: nothing of a repository, of the system or of the user's own settings takes part.

A configuration can name programs (hooks, filters, `gpg.ssh.program`) and other places to fetch from. What a signature
means must not depend on it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.formatting import first_line

TIMEOUT_S = 120
# Each one wins over the configuration of the repository itself.
SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.fsmonitor": "false",
    "core.pager": "cat",
    "core.alternateRefsCommand": "",
    "gpg.format": "ssh",
    # A signature of another kind is checked by a program that always fails.
    "gpg.program": "/bin/false",
    "gpg.openpgp.program": "/bin/false",
    "gpg.x509.program": "/bin/false",
    "gpg.ssh.program": "ssh-keygen",
    "gpg.ssh.allowedSignersFile": "/dev/null",
    "gpg.ssh.revocationFile": "",
    "gpg.minTrustLevel": "fully",
    "protocol.allow": "never",
    "protocol.ssh.allow": "always",
    "protocol.https.allow": "always",
    "protocol.file.allow": "always",
    "fetch.fsckObjects": "true",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
}
# Who commits. Any other variable of Git that the caller's shell has is left out.
KEPT = frozenset(f"GIT_{role}_{part}" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL"))


def run(
    directory: Path,
    *argv: str,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> bytes:
    """Run git in a directory and return what it prints.

    Args:
        environment: more environment variables, such as GIT_SSH_COMMAND.
        settings: more configuration, which wins over `SETTINGS`.

    Raises:
        MinipcError: git failed, or did not end within two minutes; the message is git's first line.
    """
    options = [word for name, value in (SETTINGS | dict(settings or {})).items() for word in ("-c", f"{name}={value}")]
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *options, *argv],
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            env=_environment() | dict(environment or {}),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MinipcError(
            f"git {argv[0]}: {error}", "`minipc doctor` shows what is missing on this controller"
        ) from error
    if done.returncode:
        raise MinipcError(
            f"git {argv[0]}: {first_line(done.stderr.decode(errors='replace')) or 'failed'}",
            "run it in your own clone of the deploy repository",
        )
    return done.stdout


def person() -> dict[str, str]:
    """Return the variables that name the author of a commit: the operator, as Git knows them.

    The name is data here. It is read from the user's own configuration by a call that runs nothing else.
    """
    found = {}
    for part, fallback in (("name", "minipc"), ("email", "minipc@localhost")):
        done = subprocess.run(
            ["git", "config", "--global", "--get", f"user.{part}"], capture_output=True, text=True, timeout=20
        )
        for role in ("AUTHOR", "COMMITTER"):
            variable = f"GIT_{role}_{part.upper()}"
            found[variable] = os.environ.get(variable) or done.stdout.strip() or fallback
    return found


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in KEPT}
    return kept | {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C.UTF-8",
    }
