"""The line of `minipc status` about the off-site host."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from minipc.core.errors import CouldNotVerifyError
from playbooks import status


def alert(name, each=""):
    return {"labels": {"alertname": name}, "annotations": {"each": each} if each else {}}


WELL = [alert("Watchdog")]


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
        (json.dumps([*WELL, alert("CopyTrouble", "no space")]), "✗", "CopyTrouble (no space)", 1),
        (json.dumps([*WELL, alert("MachineSilent")]), "✗", "MachineSilent", 1),
        (json.dumps([*WELL, alert("ChannelTest")]), "✓", "yes", 0),
        ("[]", "?", "Watchdog is missing", 4),
        (CouldNotVerifyError("offsite: SSH failed"), "?", "SSH failed", 4),
        ("", "?", "cannot be asked", 4),
        (json.dumps([{"service": {}}]), "?", "cannot be asked", 4),
    ],
)
def test_the_external_monitor_is_asked(monkeypatch, printed, sign, told, code):
    beside = answers(monkeypatch, printed)
    row = [text.plain for text in status._row_of_off_site(beside)]
    assert row[0] == sign
    assert told in row[2]
    verdict = SimpleNamespace(causes=(), unknown=())
    assert status._exit_code(verdict, beside) == code


def test_without_an_off_site_host_there_is_no_line(monkeypatch):
    assert answers(monkeypatch, "", machine=None) is None
