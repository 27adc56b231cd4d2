"""The line of `minipc status` that is the off-site machine's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from minipc.errors import CouldNotVerifyError
from playbooks import status

WELL = {name: {"failures": 0, "reason": ""} for name in ("service", "ping", *status.WATCHED_THERE)}


def answers(monkeypatch, printed, machine="offsite"):
    def on(_target, _command, **_):
        if isinstance(printed, Exception):
            raise printed
        return printed

    monkeypatch.setattr(status, "offsite_target", lambda *_: machine)
    monkeypatch.setattr(status, "on", on)
    return status.off_site("lab", None)


@pytest.mark.parametrize(
    ("printed", "sign", "told", "code"),
    [
        (json.dumps(WELL), "✓", "yes", 0),
        (json.dumps(WELL | {"copies": {"failures": 1, "reason": "no room"}}), "✗", "copies: no room", 1),
        # The service is asked for by the other questions.
        (json.dumps(WELL | {"service": {"failures": 9, "reason": "x"}}), "✓", "yes", 0),
        (CouldNotVerifyError("offsite: SSH failed"), "?", "SSH failed", 4),
        ("", "?", "can't be asked", 4),
        (json.dumps({"service": {}}), "?", "can't be asked", 4),
    ],
)
def test_the_watcher_of_the_off_site_machine_is_asked(monkeypatch, printed, sign, told, code):
    beside = answers(monkeypatch, printed)
    row = [text.plain for text in status._row_of_off_site(beside)]
    assert row[0] == sign
    assert told in row[2]
    verdict = SimpleNamespace(causes=(), unknown=())
    assert status._exit_code(verdict, beside) == code


def test_without_an_off_site_machine_there_is_no_line(monkeypatch):
    assert answers(monkeypatch, "", machine=None) is None
