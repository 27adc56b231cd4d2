"""The machines that are measured: disposable, created, enrolled and converged with functions of the playbooks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.core.paths import state_dir
from minipc.core.polling import wait_until
from minipc.remote import ssh
from minipc.remote.inventory import Target, the_target
from minipc.secrets.generate import generate
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab.inventory import entry

ANSWER_TIMEOUT_S = 60


def prepare() -> None:
    """Prepare programs, base image and the lab's secrets, which every contestant uses."""
    lab.ensure_prerequisites(install=True)
    lab.ensure_image()
    generate("lab")


def enrol(machine: lab.Machine) -> Target:
    """Adopt the machine and return it as a target of the inventory `lab`."""
    adopt(LAB, entry(machine), machine.host_key_fingerprint)
    return the_target(LAB, machine.name)


def wait_for_answer(target: Target, address: str) -> None:
    """Wait until the service answers through the public ingress, with a certificate of the internal authority.

    Raises:
        MinipcError: it did not within a minute.
    """
    domain = target.settings.services.domain or ""
    config = ssh.write_config([(target.alias, target.data)])
    authority = state_dir("bench") / f"{target.alias}.crt"

    def ask() -> str:
        if not authority.exists() or not authority.stat().st_size:
            root = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
            authority.write_bytes(ssh.run(config, target.alias, f"cat {root} 2>/dev/null || true").stdout)
            return "no certificate authority yet"
        return _ask(domain, address, authority)

    answer = wait_until(ask, within_s=ANSWER_TIMEOUT_S, until=lambda answer: answer == "200")
    if answer != "200":
        raise MinipcError(f"{domain} on {target.alias} did not answer healthy: {answer}", "look at its journal")
    authority.unlink()


def _ask(domain: str, address: str, authority: Path) -> str:
    argv = ["ip", "netns", "exec", "public", "curl", "--silent", "--show-error", "--max-time", "5", "--noproxy", "*"]
    argv += ["--cacert", str(authority), "--resolve", f"{domain}:443:{address}", "--output", "/dev/null"]
    argv += ["--write-out", "%{http_code}", f"https://{domain}/api/health"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
    return done.stdout if done.returncode == 0 else done.stderr.strip()
