"""The external monitor for real: the door shuts, the ping stops, and an HTTP receiver elsewhere hears of both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc import lab
from minipc.inventory import the_target
from minipc.secrets import load
from minipc.secrets.catalogue import WATCHER_PING_TOKEN
from tests.lab.conftest import Pair, converge, on
from tests.verify.conftest import eventually

HERE = Path(__file__).parent
RECEIVER_PORT = 8999
ETC = "/etc/minipc/watcher"
# In a hurry: the machine's own settings are a minute and more.
INTERVAL_S, GRACE_S = 1, 8


@pytest.fixture
def told(tmp_path) -> Iterator[Path]:
    """A receiver on the public side; the file has a line of JSON for each message it got."""
    file = tmp_path / "told.jsonl"
    file.touch()
    argv = ["ip", "netns", "exec", "public", sys.executable, str(HERE / "webhook_receiver.py"), str(RECEIVER_PORT)]
    process = subprocess.Popen([*argv, str(file)], stdin=subprocess.DEVNULL)
    try:
        yield file
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def watched(pair: Pair, told: Path) -> Iterator[Pair]:
    """The pair with a watcher in a hurry that tells the receiver; afterwards as it was."""
    receiver = (
        subprocess.run(
            ["ip", "netns", "exec", "public", "ip", "-4", "-o", "addr", "show", "scope", "global"],
            capture_output=True,
            text=True,
            check=True,
        )
        .stdout.split()[3]
        .split("/")[0]
    )
    script = f"""
import json
for name, changes in (
    ("settings", {{"interval_s": {INTERVAL_S}, "timeout_s": 2, "ping_grace_s": {GRACE_S},
                  "address": "{pair.mini.public_ipv4}"}}),
    ("channels", {{"channels": [{{"kind": "webhook", "url": "http://{receiver}:{RECEIVER_PORT}/alert"}}]}}),
):
    path = "{ETC}/" + name + ".json"
    values = json.load(open(path)) | changes
    json.dump(values, open(path, "w"))
"""
    on(pair.offsite, f"python3 - <<'END'\n{script}\nEND")
    on(pair.offsite, "systemctl stop minipc-watcher; rm -f /var/lib/minipc-watcher/*; systemctl start minipc-watcher")
    try:
        yield pair
    finally:
        on(pair.offsite, "systemctl stop minipc-watcher; rm -f /var/lib/minipc-watcher/*")
        done = converge(pair.offsite, "watcher")
        assert done.code == 0, done.output


def messages(told: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in told.read_text().splitlines()]


def hears(told: Path, status: str, what: str, within_s: float = 40) -> dict[str, str]:
    """The first message of that kind."""

    def look() -> list[dict[str, str]]:
        return [each for each in messages(told) if each["status"] == status and what in each["text"]]

    found = eventually(look, within_s=within_s)
    assert found, f"no {status} {what!r} within {within_s} s; told: {messages(told)}"
    return dict(found[0])


def ping(pair: Pair) -> None:
    """As Alertmanager on the mini PC does it."""
    target = the_target("lab", pair.offsite.name)
    token = load("lab", [WATCHER_PING_TOKEN])[WATCHER_PING_TOKEN].reveal()
    url = f"https://{pair.offsite.public_ipv4}:{target.settings.watcher.ping_port}/ping/{token}"
    argv = ["curl", "-sk", "--max-time", "10", "--retry", "10", "--retry-connrefused", "--retry-delay", "1"]
    said = lab.run(pair.mini, [*argv, "--config", "-"], stdin=f'url = "{url}"\ndata = "{{}}"\n').stdout
    assert said.strip() == "OK", said


def test_a_shut_door_and_a_ping_that_stops_are_told_and_so_is_their_end(watched: Pair, told: Path) -> None:
    ping(watched)
    time.sleep(3 * INTERVAL_S)
    assert messages(told) == [], "all is well"

    on(watched.mini, "systemctl stop caddy")
    try:
        shut = hears(told, "firing", "the service does not answer")
    finally:
        on(watched.mini, "systemctl start caddy")
    assert set(shut) == {"status", "name", "text", "at", "from"}
    hears(told, "resolved", "the service is back")

    hears(told, "firing", "no ping for", within_s=40)
    ping(watched)
    hears(told, "resolved", "monitoring is back")


def test_what_nobody_could_take_is_told_later(watched: Pair, told: Path) -> None:
    """The receiver's way is shut by the off-site machine's own firewall for a while."""
    ping(watched)
    block = "nft add table inet blocked; nft add chain inet blocked out '{ type filter hook output priority 0; }'; "
    block += f"nft add rule inet blocked out tcp dport {RECEIVER_PORT} reject"
    on(watched.offsite, block)
    try:
        on(watched.mini, "systemctl stop caddy")
        log = "journalctl -u minipc-watcher -o cat --since=-1min | grep -c 'channel webhook failed' || true"
        assert eventually(lambda: int(on(watched.offsite, log)), within_s=30)
        on(watched.offsite, "systemctl restart minipc-watcher")
        assert messages(told) == []
    finally:
        on(watched.mini, "systemctl start caddy")
        on(watched.offsite, "nft delete table inet blocked")
    hears(told, "firing", "the service does not answer")
    hears(told, "resolved", "the service is back")


def test_what_is_taken_from_the_backups_is_told(watched: Pair, told: Path) -> None:
    """Nobody else hears of it: the machine that was robbed may be the one that is in wrong hands."""
    copy, backups = "systemctl start minipc-offsite-copy", "/srv/minipc-offsite/sftp/pgbackrest/backup"
    ping(watched)
    on(watched.offsite, copy)
    on(watched.offsite, f"mv {backups} {backups}.gone; sleep 1; {copy}", check=False)
    try:
        hears(told, "firing", "the off-site copy of the backups is not well: the repository is not what it was")
        hears(told, "firing", "has failed units: minipc-offsite-copy.service")
    finally:
        on(
            watched.offsite,
            f"mv {backups}.gone {backups}; /usr/local/lib/minipc/offsite-copy --accept; sleep 1; {copy}",
        )
    hears(told, "resolved", "the off-site copy of the backups is back")
    hears(told, "resolved", "the off-site machine is back")
