"""`minipc up`: steps in order, each kept when it is done, and continued after an interruption at any of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minipc.core.environment import PRODUCTION
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError, RefusedError
from minipc.evidence.event_stream import Note, NotExercised, PhaseEnd, read
from minipc.evidence.run import Run
from playbooks import up
from playbooks.doctor import Finding

NAMES = [step.name for step in up.STEPS]


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path / "reports")
    return up.Context(Run("converge"), PRODUCTION, "minipc")


def fakes(calls: list[str], *, at: str = "", error: BaseException | None = None) -> list[up.Step]:
    """Steps with the real names that only note their call; one of them raises."""

    def step(name: str) -> up.Step:
        def do(_: up.Context) -> str:
            calls.append(name)
            if name == at and error:
                raise error
            return "done"

        return up.Step(name, "", do)

    return [step(name) for name in NAMES]


def test_the_order_is_from_this_computer_to_the_first_request_and_beyond():
    assert [
        *("doctor", "artifacts", "preflight", "adopt", "off-site host", "deploy repository", "converge", "ArgoCD"),
        *("first release", "certificate", "verify", "backup and drill", "VPN", "break-glass bundle"),
    ] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_at_each_step_continues_there(context, tmp_path, name):
    calls: list[str] = []
    state = tmp_path / "state.json"
    with pytest.raises(KeyboardInterrupt):
        up.go_through(context, fakes(calls, at=name, error=KeyboardInterrupt()), state, None)
    assert calls == NAMES[: NAMES.index(name) + 1]
    calls.clear()
    assert up.go_through(context, fakes(calls), state, None) is None
    assert calls == NAMES[NAMES.index(name) :]
    calls.clear()
    assert up.go_through(context, fakes(calls), state, None) is None
    assert calls == []


@pytest.mark.parametrize(
    "error", [MinipcError("no"), RefusedError("no"), CouldNotVerifyError("no"), ValueError("a defect")]
)
def test_a_failure_ends_it_and_is_tried_again(context, tmp_path, error):
    calls: list[str] = []
    state = tmp_path / "state.json"
    failure = up.go_through(context, fakes(calls, at="converge", error=error), state, None)
    assert failure is not None
    assert failure.__cause__ is error
    assert calls[-1] == "converge"
    calls.clear()
    up.go_through(context, fakes(calls), state, None)
    assert calls[0] == "converge"


def test_a_power_cut_leaves_the_steps_that_were_done(context, tmp_path):
    """kill -9 runs no `finally`: each step is written when it ends, not at the end."""
    state = tmp_path / "state.json"
    seen: list[str] = []
    steps = [up.Step("one", "", lambda _: "x"), up.Step("two", "", lambda _: seen.append(state.read_text()) or "x")]
    up.go_through(context, steps, state, None)
    assert '"one"' in seen[0]


def test_from_a_step_repeats_it_and_all_later_ones(context, tmp_path):
    calls: list[str] = []
    state = tmp_path / "state.json"
    up.go_through(context, fakes(calls), state, None)
    calls.clear()
    up.go_through(context, fakes(calls), state, "verify")
    assert calls == NAMES[NAMES.index("verify") :]
    with pytest.raises(ConfigError, match="no step 'verfy'"):
        up.go_through(context, fakes(calls), state, "verfy")


def test_a_step_that_does_not_apply_is_not_exercised_and_asked_again(context, tmp_path):
    calls: list[str] = []
    state = tmp_path / "state.json"
    steps = fakes(calls, at="off-site host", error=up.NotHereError("there is no off-site host"))
    assert up.go_through(context, steps, state, None) is None
    gaps = [event for event in read(context.run.events) if isinstance(event, NotExercised)]
    assert [(gap.what, gap.why) for gap in gaps] == [("off-site host", "there is no off-site host")]
    calls.clear()
    up.go_through(context, fakes(calls), state, None)
    assert calls == ["off-site host"]


def test_the_display_has_a_phase_for_each_step_and_a_line_for_each_that_was_done(context, tmp_path):
    state = tmp_path / "state.json"
    up.go_through(context, fakes([], at="verify", error=MinipcError("no")), state, None)
    up.go_through(context, fakes([]), state, None)
    events = list(read(context.run.events))
    assert [event.phase for event in events if isinstance(event, PhaseEnd)].count("verify") == 2
    assert sum(isinstance(event, Note) and "done at" in event.text for event in events) == NAMES.index("verify")


def test_a_machine_whose_host_key_nobody_compared_is_not_adopted(context, tmp_path, monkeypatch):
    (tmp_path / "known_hosts").write_text("")
    target = SimpleNamespace(alias="minipc", data={"ssh_known_hosts_file": str(tmp_path / "known_hosts")})
    monkeypatch.setattr(up, "the_target", lambda *_: target)
    monkeypatch.setattr(up, "offsite_target", lambda *_: None)
    with pytest.raises(ConfigError, match="no host key was compared"):
        up._adopt(context)


def test_what_the_preflight_could_not_ask_is_counted(context, monkeypatch):
    monkeypatch.setattr(up, "the_target", lambda *_: None)
    found = [
        Finding("port 80", "", note=f"{up.NOT_ASKED}there is no off-site host"),
        Finding("clock", "", note="right"),
    ]
    monkeypatch.setattr(up, "preflight", lambda *_: found)
    assert "clock: right" in up._preflight(context)
    gaps = [event for event in read(context.run.events) if isinstance(event, NotExercised)]
    assert [(gap.what, gap.why) for gap in gaps] == [("port 80", "there is no off-site host")]


def test_a_drill_that_fails_fails_the_step(context, monkeypatch):
    monkeypatch.setattr(up, "the_target", lambda *_: SimpleNamespace(alias="minipc"))
    monkeypatch.setattr(up.backup, "take", lambda *_: {"repo1": SimpleNamespace(success=True, error="")})
    for verdict, kind in (("fail", MinipcError), ("could-not-verify", CouldNotVerifyError)):
        result = SimpleNamespace(verdict=verdict, reason="a row is missing", repo=1)
        monkeypatch.setattr(up.restore_drill, "run_on_machine", lambda _, result=result: result)
        with pytest.raises(kind, match="a row is missing"):
            up._backup_and_drill(context)
    monkeypatch.setattr(up.backup, "take", lambda *_: {"repo2": SimpleNamespace(success=False, error="no route")})
    with pytest.raises(MinipcError, match="repo2: no route"):
        up._backup_and_drill(context)
