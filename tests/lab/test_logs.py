"""Test that log messages of any bytes reach Loki completely. See also tests/verify/test_syslog_ng.py."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehearsal import lab
from tests.lab.conftest import converge, on
from tests.lab.journal_fuzz import WHOLE, payload
from tests.verify.conftest import eventually
from tests.verify.logs import Loki

HERE = Path(__file__).parent
COUNT = 1000
PORT = 3100
TAKEN = "/run/strict-loki.jsonl"


def write_messages(machine: lab.Machine, mark: str, seed: int) -> None:
    """Write messages into the journal of the machine, in a separate unit."""
    on(machine, "cat > /run/journal_fuzz.py <<'END'\n" + (HERE / "journal_fuzz.py").read_text() + "\nEND")
    on(machine, f"systemd-run --quiet --wait --unit=fuzz-{mark} python3 /run/journal_fuzz.py {mark} {seed} {COUNT}")


def expected(mark: str, seed: int) -> dict[int, str]:
    """Return the messages that stay unchanged: short text without characters that JSON cannot express."""
    chance = random.Random(seed)
    messages = [*WHOLE, *(payload(chance) for _ in range(COUNT - len(WHOLE)))]
    texts = {}
    for number, message in enumerate(messages):
        try:
            text = message.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if "\0" not in text and len(message) < 200_000:
            texts[number] = f"{mark} {number} {text}"
    return texts


def check(lines: list[str], mark: str, seed: int) -> None:
    """Assert that every message arrived once, and that text is unchanged."""
    mine = {}
    for line in lines:
        if line.startswith(f"{mark} "):
            number = int(line.split(" ")[1])
            assert mine.setdefault(number, line) == line, "one message became two"
    assert sorted(set(range(COUNT)) - set(mine)) == [], "some messages never arrived"
    changed = {number for number, text in expected(mark, seed).items() if mine[number] != text}
    assert changed == set()


def dropped(machine: lab.Machine) -> int:
    found = on(machine, "syslog-ng-ctl stats prometheus | sed -n 's/.*result=\"dropped\"} //p'").split()
    return sum(map(int, found))


@pytest.fixture
def loki(site: lab.Machine) -> Loki:
    if on(site, "systemctl is-active loki || true").strip() != "active":
        pytest.skip("NOT EXERCISED: the artifact loki could not be had")
    return Loki(lambda command: on(site, command).strip(), PORT)


def arrived(loki: Loki, mark: str, within_s: float) -> list[str]:
    logql = f'{{service=~".+"}} |= "{mark} "'

    def look() -> bool:
        return len(loki.find(logql)) >= COUNT

    eventually(look, within_s=within_s, every_s=1)
    return [line.text for line in loki.find(logql)]


def test_messages_of_any_bytes_reach_a_real_loki(site, loki):
    mark, seed = secrets.token_hex(6), secrets.randbelow(10**6)
    print(f"seed {seed}")
    write_messages(site, mark, seed)
    check(arrived(loki, mark, within_s=60), mark, seed)
    assert dropped(site) == 0


def test_an_outage_of_loki_loses_nothing(site, loki):
    """Loki stops, a queue of any bytes grows, the shipper is killed, Loki starts: the counts are equal."""
    mark, seed = secrets.token_hex(6), secrets.randbelow(10**6)
    print(f"seed {seed}")
    on(site, "systemctl stop loki")
    try:
        write_messages(site, mark, seed)
        on(site, "systemctl kill -s KILL syslog-ng; sleep 3; systemctl is-active syslog-ng")
    finally:
        on(site, "systemctl start loki")
    check(arrived(loki, mark, within_s=120), mark, seed)
    assert dropped(site) == 0


@pytest.fixture
def strict(site: lab.Machine) -> Iterator[lab.Machine]:
    """Replace Loki by a strict server."""
    there = on(site, "systemctl is-active loki || true").strip() == "active"
    if there:
        on(site, "systemctl stop loki")
    else:
        done = converge(site, "syslog_ng", options=["--data", f"syslog_ng_loki_url=http://127.0.0.1:{PORT}"])
        assert done.code == 0, done.output
    on(site, "cat > /run/strict_loki.py <<'END'\n" + (HERE / "strict_loki.py").read_text() + "\nEND")
    on(site, f"rm -f {TAKEN}; systemd-run --quiet --unit=strict-loki python3 /run/strict_loki.py {PORT} {TAKEN}")
    try:
        yield site
    finally:
        on(site, "systemctl stop strict-loki")
        on(site, "systemctl start loki" if there else "systemctl disable --now syslog-ng")


def test_messages_of_any_bytes_are_taken_by_a_strict_server(strict):
    """This works without the Loki artifact. Some requests fail and are sent again."""
    mark, seed = f"fuzz-{secrets.token_hex(6)}", secrets.randbelow(10**6)
    print(f"seed {seed}")
    write_messages(strict, mark, seed)

    def taken() -> list[str]:
        return on(strict, f"cat {TAKEN} 2>/dev/null || true").splitlines()

    def all_there() -> bool:
        return sum(f'"{mark} ' in line for line in taken()) >= COUNT

    eventually(all_there, within_s=150, every_s=1)
    assert [line for line in taken() if line.startswith("REFUSED")] == []
    check([json.loads(line) for line in taken()], mark, seed)
    assert dropped(strict) == 0


def test_a_symlink_in_place_of_a_log_does_not_ship_another_file(strict):
    """An attacker with the rights of the log directory's owner could place it. The shipper may read every file."""
    mark, secret = secrets.token_hex(6), secrets.token_hex(6)
    folder, hidden = "/var/log/postgresql", f"/etc/minipc/{mark}"
    # A line is complete when the next one begins.
    on(strict, f"umask 077; printf '%s\\n' {secret} end > {hidden}; ln -s {hidden} {folder}/{mark}-link.log")
    on(strict, f"printf '%s\\n' {mark} end > {folder}/{mark}-plain.log")

    def taken() -> str:
        return on(strict, f"cat {TAKEN} 2>/dev/null || true")

    try:
        assert eventually(lambda: mark in taken(), within_s=60, every_s=1), "what is no link did not arrive either"
        on(strict, "sleep 5")
        assert secret not in taken()
    finally:
        on(strict, f"rm -f {hidden} {folder}/{mark}-*.log")
