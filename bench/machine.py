"""The machines that are measured: disposable, brought up, enrolled and converged by the playbooks' own parts."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from minipc import lab, ssh
from minipc.errors import MinipcError
from minipc.inventory import Target, the_target
from minipc.lab.inventory import entry, pin_lab_machine
from minipc.paths import state_dir
from minipc.secrets.generate import generate
from playbooks.adopt import adopt

ANSWER_TIMEOUT_S = 60


def prepare() -> None:
    """Programs, base image and the lab's secrets: what every contestant finds ready."""
    lab.ensure_prerequisites(install=True)
    lab.ensure_image()
    generate("lab")


def enrol(machine: lab.Machine) -> Target:
    """The machine as a target of the inventory `lab`, adopted."""
    adopt(entry(machine), machine.host_key_fingerprint, pin_lab_machine)
    return the_target("lab", machine.name)


def wait_for_answer(target: Target, address: str) -> None:
    """Until the service answers healthy through the public door, with a certificate that its own authority signed.

    Raises:
        MinipcError: it did not within a minute.
    """
    domain = target.settings.edge.domain
    config = ssh.write_config([(target.alias, target.data)])
    authority = state_dir("bench") / f"{target.alias}.crt"
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    answer = "no certificate authority yet"
    while time.monotonic() < deadline:
        if not authority.exists() or not authority.stat().st_size:
            root = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
            authority.write_bytes(ssh.run(config, target.alias, f"cat {root} 2>/dev/null || true").stdout)
        else:
            answer = _ask(domain, address, authority)
            if answer == "200":
                authority.unlink()
                return
        time.sleep(0.1)
    raise MinipcError(f"{domain} on {target.alias} did not answer healthy: {answer}", "look at its journal")


def _ask(domain: str, address: str, authority: Path) -> str:
    argv = ["ip", "netns", "exec", "public", "curl", "--silent", "--show-error", "--max-time", "5", "--noproxy", "*"]
    argv += ["--cacert", str(authority), "--resolve", f"{domain}:443:{address}", "--output", "/dev/null"]
    argv += ["--write-out", "%{http_code}", f"https://{domain}/api/health"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
    return done.stdout if done.returncode == 0 else done.stderr.strip()
