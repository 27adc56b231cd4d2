"""The external monitor for real: faults of services, mini PC, line and off-site host reach a receiver elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minipc.core.environment import LAB
from minipc.remote.inventory import the_target
from minipc.secrets import open_store
from playbooks.alert_test import send
from rehearsal import lab
from tests.lab.conftest import Pair, converge, on
from tests.verify.conftest import eventually

HERE = Path(__file__).parent
RECEIVER_PORT = 8999
MAIL, MAIL_PORT = "mail.minipc.test", 8025
TRUSTED = "/usr/local/share/ca-certificates/minipc-test.crt"
PACE = 10
REFUSED = "refused"


@dataclass(frozen=True)
class Watched:
    """The pair, and the file with a line of JSON for each message that the receiver got."""

    mini: Any
    offsite: Any
    file: Path

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def messages(self) -> list[tuple[str, str, str]]:
        """Return status, alert and the affected thing of all alerts in all messages."""
        alerts = [alert for body in self.bodies() if body["path"] == "/hook" for alert in body["alerts"]]
        return [
            (alert["status"], alert["labels"]["alertname"], alert["annotations"].get("each", "")) for alert in alerts
        ]

    def hears(self, status: str, alert: str, each: str = "", within_s: float = 150) -> None:
        def look() -> bool:
            return any((status, alert) == found[:2] and each in found[2] for found in self.messages()[self.seen() :])

        assert eventually(look, within_s=within_s), f"no {status} {alert} {each}; got: {self.messages()}"

    def last_heard(self, alert: str, each: str) -> None:
        """Wait until the last message about an alert is that it fires; it may do so since an earlier test."""

        def look() -> bool:
            states = [status for status, name, affected in self.messages() if name == alert and each in affected]
            return states[-1:] == ["firing"]

        assert eventually(look, within_s=150), f"{alert} {each} does not fire; got: {self.messages()}"

    def seen(self) -> int:
        mark = self.file.with_suffix(".seen")
        return int(mark.read_text()) if mark.exists() else 0

    def forget(self) -> None:
        self.file.with_suffix(".seen").write_text(str(len(self.messages())))


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Pair:
    """Return the machines of the rehearsal, or existing ones, to run these tests alone: MINIPC_TEST_MACHINE=NAME."""
    name = os.environ.get("MINIPC_TEST_MACHINE")
    if name is None:
        return Pair(request.getfixturevalue("site"), request.getfixturevalue("offsite"))
    found = [lab.find(name), lab.find(f"offsite-{name}")]
    assert all(found), f"no lab machines {name} and offsite-{name}"
    return Pair(*found)


@pytest.fixture(scope="module")
def watched(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The pair with fast rules, a channel that works and one that is refused; afterwards as it was."""
    folder = tmp_path_factory.mktemp("watched")
    file = folder / "told.jsonl"
    file.touch()
    certificate, key = folder / "mail.crt", folder / "mail.key"
    new = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", f"/CN={MAIL}"]
    new += ["-addext", f"subjectAltName=DNS:{MAIL}", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(new, check=True, capture_output=True)
    programs = [
        ["webhook_receiver.py", str(RECEIVER_PORT), str(file)],
        ["mail_receiver.py", str(MAIL_PORT), str(file), str(certificate), str(key)],
    ]
    public = ["ip", "netns", "exec", "public", sys.executable]
    processes = [
        subprocess.Popen([*public, str(HERE / name), *rest], stdin=subprocess.DEVNULL) for name, *rest in programs
    ]
    shown = ["ip", "netns", "exec", "public", "ip", "-4", "-o", "addr", "show", "scope", "global"]
    address = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.split()[3].split("/")[0]
    store = folder / "secrets"
    shutil.copytree(Path(open_store("lab").location.split()[-1]).parent, store)
    channels = [
        {"name": "hook", "kind": "webhook"},
        *({"name": kind, "kind": kind, "priorities": ["P3"]} for kind in ("ntfy", "discord")),
        {"name": REFUSED, "kind": "slack", "priorities": ["P3"]},
        {"name": "mail", "kind": "email", "server": MAIL, "port": MAIL_PORT, "user": "ops", "priorities": ["P3"]}
        | {"sender": "minipc@example.org", "to": "you@example.org"},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIPC_LAB_SECRETS_DIR", str(store))
        url = f"http://{address}:{RECEIVER_PORT}"
        urls = {f"alertmanager.{name}_url": f"{url}/{name}" for name in ("hook", "ntfy", "discord", REFUSED)}
        open_store("lab").set_many(urls | {"alertmanager.mail_password": "right"})
    options = ["--data", f"prometheus_pace={PACE}", "--data", f"alertmanager_channels={json.dumps(channels)}"]
    env = {"MINIPC_LAB_SECRETS_DIR": str(store)}
    try:
        for machine, monitor in ((pair.offsite, "watcher"), (pair.mini, "prometheus")):
            done = converge(machine, "alertmanager", monitor, options=options, env=env)
            assert done.code == 0, done.output
            trust = f"echo '{address} {MAIL}' >> /etc/hosts; echo '{certificate.read_text()}' > {TRUSTED}; "
            on(machine, f"{trust} update-ca-certificates 2>&1; systemctl restart prometheus-alertmanager")
        yield Watched(pair.mini, pair.offsite, file)
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=20)
        for machine, monitor in ((pair.offsite, "watcher"), (pair.mini, "prometheus")):
            on(machine, f"rm -f {TRUSTED}; update-ca-certificates 2>&1; sed -i '/ {MAIL}$/d' /etc/hosts", check=False)
            done = converge(machine, "alertmanager", monitor)
            assert done.code == 0, done.output


@pytest.fixture(autouse=True)
def calm(watched: Watched) -> None:
    """Wait until nothing is wrong, so that a test does not take the alert of another one for its own."""
    query = 'count(ALERTS{alertname!="Watchdog",alertstate="firing",alertname=~"Service.*|Nothing.*|Machine.*|Copy.*"})'
    quiet = f"promtool query instant http://127.0.0.1:9090 '{query}'"
    assert eventually(lambda: not on(watched.offsite, quiet).strip(), within_s=120, every_s=2)
    watched.forget()


def test_a_closed_ingress_is_reported_and_so_is_its_end(watched: Watched) -> None:
    on(watched.mini, "systemctl stop caddy")
    try:
        watched.hears("firing", "ServiceUnreachable")
    finally:
        on(watched.mini, "systemctl start caddy")
    watched.hears("resolved", "ServiceUnreachable")


def test_a_silent_machine_is_reported_and_so_is_its_return(watched: Watched) -> None:
    on(watched.mini, "systemctl stop prometheus")
    try:
        watched.hears("firing", "MachineSilent")
    finally:
        on(watched.mini, "systemctl start prometheus")
    watched.hears("resolved", "MachineSilent")


def test_a_cut_line_is_reported_and_what_was_measured_meanwhile_arrives_later(watched: Watched) -> None:
    port = the_target(LAB, watched.offsite.name).settings.watcher.port
    block = "nft add table inet cut; nft add chain inet cut in '{ type filter hook input priority -10; }'; "
    on(watched.offsite, f"{block} nft add rule inet cut in tcp dport {port} drop")
    try:
        watched.hears("firing", "MachineSilent")
    finally:
        on(watched.offsite, "nft delete table inet cut")
    watched.hears("resolved", "MachineSilent")


def test_a_dead_alertmanager_of_the_mini_pc_is_reported(watched: Watched) -> None:
    on(watched.mini, "systemctl stop prometheus-alertmanager")
    try:
        watched.hears("firing", "MachineCannotAlert")
    finally:
        on(watched.mini, "systemctl start prometheus-alertmanager")
    watched.hears("resolved", "MachineCannotAlert")


def test_a_dead_off_site_host_is_reported_by_the_mini_pc(watched: Watched) -> None:
    on(watched.offsite, "systemctl stop minipc-watcher")
    try:
        watched.hears("firing", "OffsiteSilent", within_s=240)
        watched.hears("firing", "ReceiverDown")
    finally:
        on(watched.offsite, "systemctl start minipc-watcher")
    watched.hears("resolved", "OffsiteSilent")


def test_what_is_taken_from_the_backups_is_reported(watched: Watched) -> None:
    """Nobody else notices it: the machine that was robbed may be the one that is in wrong hands."""
    copy, backups = "systemctl start minipc-offsite-copy", "/srv/minipc-offsite/sftp/pgbackrest/backup"
    on(watched.offsite, copy)
    on(watched.offsite, f"mv {backups} {backups}.gone; sleep 1; {copy}", check=False)
    try:
        watched.hears("firing", "CopyTrouble", "the repository has lost data")
        watched.hears("firing", "OffsiteUnitFailed", "minipc-offsite-copy.service")
    finally:
        on(
            watched.offsite,
            f"mv {backups}.gone {backups}; /usr/local/lib/minipc/offsite-copy --accept; sleep 1; {copy}",
        )
    watched.hears("resolved", "CopyTrouble")
    watched.hears("resolved", "OffsiteUnitFailed")


def test_a_full_disk_of_the_off_site_host_does_not_silence_it(watched: Watched) -> None:
    fill = "fallocate -l $(df --output=avail -B1 / | tail -1) /var/fill || true; dd if=/dev/zero of=/var/fill2 bs=64k"
    on(watched.offsite, fill, check=False)
    try:
        watched.hears("firing", "NothingMeasured")
    finally:
        on(watched.offsite, "rm -f /var/fill /var/fill2")
    watched.hears("resolved", "NothingMeasured")


def test_every_channel_takes_a_message_and_a_refused_one_is_reported_through_the_others(watched: Watched) -> None:
    """Telegram and Pushover have fixed addresses, so they cannot be tried here."""
    for machine in (watched.mini, watched.offsite):
        failures = send(the_target(LAB, machine.name), ["hook", "ntfy", "discord", "mail", REFUSED])
        assert failures.keys() == {REFUSED}, failures
        assert "403" in failures[REFUSED]
    watched.hears("firing", "ChannelTest")
    bodies = watched.bodies()
    (ntfy, *_) = [body["path"] for body in bodies if body["path"].startswith("/ntfy?tpl=yes")]
    assert "annotations.meaning" in ntfy
    assert [body for body in bodies if body["path"] == "/discord" and "ChannelTest" in body["embeds"][0]["title"]]
    assert [body for body in bodies if body["path"] == "/mail" and "ChannelTest" in body["mail"]]
    watched.last_heard("ChannelFails", REFUSED)
    watched.last_heard("OffsiteChannelFails", REFUSED)
    watched.last_heard("MachineChannelFails", REFUSED)
