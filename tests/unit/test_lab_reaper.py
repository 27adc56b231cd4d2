"""The reaper does not give up on a machine whose processes can't be killed yet."""

from __future__ import annotations

import pytest

from minipc.core.errors import MinipcError
from rehearsal.lab import reaper
from rehearsal.lab.machine import ProcessId

OWNER = ProcessId(1, 1)


@pytest.fixture
def removal(monkeypatch):
    """Make the first removals fail, and count the attempts."""
    tries: list[ProcessId] = []

    def fails(times: int) -> list[ProcessId]:
        def remove(owner: ProcessId) -> None:
            tries.append(owner)
            if len(tries) <= times:
                raise MinipcError("processes can't be ended", "run the same command again")

        monkeypatch.setattr(reaper, "remove_owned_by", remove)
        monkeypatch.setattr(reaper.time, "sleep", lambda seconds: None)
        return tries

    return fails


def test_it_tries_again(removal):
    tries = removal(2)
    reaper.remove(OWNER)
    assert tries == [OWNER] * 3


def test_it_fails_after_the_last_attempt(removal):
    tries = removal(1000)
    with pytest.raises(MinipcError):
        reaper.remove(OWNER)
    assert len(tries) == reaper.TRIES
