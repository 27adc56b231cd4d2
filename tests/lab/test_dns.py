"""The public records follow a machine's public address: the component on a machine, with a provider beside it."""

from __future__ import annotations

import json
import subprocess

import pytest

from minipc import lab
from minipc.converge import PendingChange, pending_changes
from minipc.dns.shipped import ADDRESS_COMMAND
from minipc.lab.inventory import entry, pin_lab_machine
from minipc.paths import ROOT
from minipc.secrets import open_store
from minipc.secrets.generate import generate
from playbooks.adopt import adopt
from tests.lab.conftest import BIN, on, run

NAME = "service.example.org"
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
    adopt(entry(blank), blank.host_key_fingerprint, pin_lab_machine)
    return blank


def provide(machine: lab.Machine, address: str, holder: str, content: str) -> None:
    """A provider on the machine's own loopback, which also says that this is the machine's public address."""
    record = {"name": NAME, "type": "A", "content": content, "comment": f"minipc {holder}"}
    code = (ROOT / "minipc/lab/cloudflare.py").read_text()
    lab.run(machine, ["sh", "-c", f"cat > {FAKE}"], stdin=code)
    lab.run(machine, ["sh", "-c", f"cat > {STATE}"], stdin=json.dumps({"address": address, "records": [record]}))
    on(
        machine,
        f"systemctl stop fake-dns 2>/dev/null; systemd-run -q --unit fake-dns --collect "
        f"python3 {FAKE} {PORT} example.org {TOKEN} {STATE}; "
        f"for i in $(seq 50); do curl -s -o /dev/null http://127.0.0.1:{PORT}/ && break; sleep 0.1; done",
    )


def pending(inventory: str) -> list[PendingChange]:
    """What another converge would change."""
    command = [str(BIN / "pyinfra"), "--dry", "--json", inventory, "deploys/dns.py"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return pending_changes(json.loads(done.stdout))


def content(machine: lab.Machine) -> str:
    (record,) = json.loads(on(machine, f"cat {STATE}"))["records"]
    return str(record["content"])


def test_the_records_follow(adopted: lab.Machine, inventory) -> None:
    with_dns = str(inventory(adopted, **SETTINGS))
    done = run("pyinfra", "-y", with_dns, "deploys/host.py", "deploys/dns.py", timeout_s=300)
    assert done.code == 0, done.output
    assert TOKEN not in done.output
    assert pending(with_dns) == []
    identity = entry(adopted)[1]["machine_identity"]

    provide(adopted, "8.8.4.4", identity, "1.2.3.4")
    on(adopted, "systemctl start minipc-dns.service")
    assert content(adopted) == "8.8.4.4"
    assert on(adopted, f"{ADDRESS_COMMAND} A").strip() == "8.8.4.4"

    # Its successor took over: it stands by.
    provide(adopted, "9.9.9.9", "11111111-1111-4111-8111-111111111111", "8.8.4.4")
    on(adopted, "systemctl start minipc-dns.service")
    assert content(adopted) == "8.8.4.4"
    assert "left alone" in on(adopted, "journalctl -u minipc-dns -o cat -n 5")

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
