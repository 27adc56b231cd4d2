"""Test that a real Loki deletes old logs and applies a changed retention while it runs."""

from __future__ import annotations

import time

import pytest

from tests.lab.loki_process import running
from tests.verify.conftest import eventually

HURRY = {
    "compaction_interval: 10m": "compaction_interval: 2s",
    "retention_delete_delay: 1h": "retention_delete_delay: 1s",
}


@pytest.fixture(scope="module")
def loki(tmp_path_factory):
    with running(tmp_path_factory.mktemp("loki"), HURRY) as found:
        yield found


def test_a_shorter_retention_deletes_the_old_and_keeps_the_new(loki):
    now = time.time()
    loki.push(("old", "an old message", now - 3 * 86400), ("new", "a new message", now))
    assert loki.request("/flush", method="POST")[0] in (200, 204)
    assert eventually(lambda: loki.chunks() == 2, within_s=20)
    # The index of what was taken goes to disk every 15 minutes, and when Loki stops.
    loki.stop()
    loki.start()
    time.sleep(6)  # three compactions
    assert (loki.chunks(), loki.lines('{service="old"}')) == (2, ["an old message"]), "31 days are not over"

    # As minipc-loki-bound does it.
    (loki.data / "bound.yaml").write_text("overrides:\n  fake:\n    retention_period: 24h\n")
    assert eventually(lambda: loki.chunks() == 1, within_s=90, every_s=0.5), "the old chunk is still on disk"
    assert loki.lines('{service="new"}') == ["a new message"]


def test_messages_older_than_the_retention_are_refused(loki):
    entry = [str(int((time.time() - 40 * 86400) * 1e9)), "too old"]
    body = {"streams": [{"stream": {"service": "old", "level": "info"}, "values": [entry]}]}
    code, said = loki.request("/loki/api/v1/push", body)
    assert code == 400
    assert "too old" in said
