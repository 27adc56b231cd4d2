"""Test that DNS records follow a machine's public address, with a test double of the provider."""

from __future__ import annotations

import json
import subprocess

import pytest

from minipc.core.environment import LAB
from minipc.core.paths import ROOT
from minipc.dns.shipped import ADDRESS_COMMAND
from minipc.pyinfra_ext.converge import PendingChange, pending_changes
from minipc.secrets import open_store
from minipc.secrets.generate import generate
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab.inventory import entry
from tests.lab.conftest import BIN, on, run

NAME = "service.example.org"
HOLDER = f"_minipc.{NAME}"
TOKEN = "t0ken-for_example-org"
STATE = "/run/fake-dns.json"
FAKE = "/run/fake-dns.py"
PORT = 8053
SETTINGS = {
    "dns_provider": "cloudflare",
    "dns_zone": "example.org",
    "dns_records": [{"name": NAME, "type": "A"}],
    "dns_follow": True,
    "dns_follow_every_s": 3600,
    "dns_api_url": f"http://127.0.0.1:{PORT}/client/v4",
    "dns_address_url": f"http://127.0.0.1:{PORT}/cdn-cgi/trace",
}


@pytest.fixture
def adopted(blank: lab.Machine) -> lab.Machine:
    generate("lab")
    open_store("lab").set_many({"dns.cloudflare_token": TOKEN})
    adopt(LAB, entry(blank), blank.host_key_fingerprint)
    return blank


def provide(machine: lab.Machine, address: str, content: str, comment: str = "", holder: str = "") -> None:
    """Run the provider on the machine's loopback. It also returns the machine's public address.

    Args:
        comment: of the record, where the holder was in earlier versions.
        holder: text of the holder's TXT record; empty for none.
    """
    records = [{"name": NAME, "type": "A", "content": content, "comment": comment}]
    if holder:
        records.append({"name": HOLDER, "type": "TXT", "content": holder})
    code = (ROOT / "rehearsal/doubles/cloudflare.py").read_text()
    lab.run(machine, ["sh", "-c", f"cat > {FAKE}"], stdin=code)
    lab.run(machine, ["sh", "-c", f"cat > {STATE}"], stdin=json.dumps({"address": address, "records": records}))
    on(
        machine,
        f"systemctl stop fake-dns 2>/dev/null; systemd-run -q --unit fake-dns --collect "
        f"python3 {FAKE} {PORT} example.org {TOKEN} {STATE}; "
        f"for i in $(seq 50); do curl -s -o /dev/null http://127.0.0.1:{PORT}/ && break; sleep 0.1; done",
    )


def pending(inventory: str) -> list[PendingChange]:
    """Return what another converge would change."""
    command = [str(BIN / "pyinfra"), "--dry", "--json", inventory, "deploys/dns.py"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return pending_changes(json.loads(done.stdout))


def content(machine: lab.Machine, name: str = NAME) -> str:
    (found,) = [each for each in json.loads(on(machine, f"cat {STATE}"))["records"] if each["name"] == name]
    return str(found["content"])


def test_the_records_follow(adopted: lab.Machine, inventory) -> None:
    with_dns = str(inventory(adopted, **SETTINGS))
    done = run("pyinfra", "-y", with_dns, "deploys/host.py", "deploys/dns.py", timeout_s=300)
    assert done.code == 0, done.output
    assert TOKEN not in done.output
    assert pending(with_dns) == []
    identity = entry(adopted)[1]["machine_identity"]

    # The comment of an earlier version becomes a TXT record, and that one is followed too.
    provide(adopted, "8.8.4.4", "1.2.3.4", comment=f"minipc {identity}")
    on(adopted, "systemctl start minipc-dns.service")
    assert content(adopted) == "8.8.4.4"
    assert content(adopted, HOLDER) == f"minipc {identity}"
    provide(adopted, "8.8.4.4", "1.2.3.4", holder=f"minipc {identity}")
    on(adopted, "systemctl start minipc-dns.service")
    assert content(adopted) == "8.8.4.4"
    assert on(adopted, f"{ADDRESS_COMMAND} A").strip() == "8.8.4.4"

    # Its successor took over: it stands by.
    provide(adopted, "9.9.9.9", "8.8.4.4", holder="minipc 11111111-1111-4111-8111-111111111111")
    on(adopted, "systemctl start minipc-dns.service")
    assert content(adopted) == "8.8.4.4"
    assert "held by another machine" in on(adopted, "journalctl -u minipc-dns -o cat -n 5")

    # The provider is gone: failed, and the token is nowhere in the log.
    on(adopted, "systemctl stop fake-dns")
    assert on(adopted, "systemctl start minipc-dns.service || echo failed", check=False).strip() == "failed"
    log = on(adopted, "journalctl -u minipc-dns -o cat")
    assert "can't be reached (Connection refused), 4 times" in log
    assert TOKEN not in log
    assert TOKEN not in on(adopted, "systemctl show minipc-dns.service; cat /etc/systemd/system/minipc-dns.*")
    assert on(adopted, "stat -c '%a %U' /etc/minipc/dns.token").strip() == "600 root"

    # Switched off: nothing of it is left to run.
    without = str(inventory(adopted, **(SETTINGS | {"dns_follow": False})))
    off = run("pyinfra", "-y", without, "deploys/dns.py")
    assert off.code == 0, off.output
    assert on(adopted, "ls /etc/minipc").split() == ["identity"]
    assert on(adopted, "systemctl is-active minipc-dns.timer || true").strip() == "inactive"
    assert pending(without) == []
