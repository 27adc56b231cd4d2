"""The report: self-contained, escaped, readable in both themes, and in proportion to time."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from minipc.core.paths import ROOT
from minipc.evidence.records import Exercised, NotExercised, Record
from minipc.evidence.report import MOST_RUNS, legend, place, render, runs_to_show, stacked, ticks
from tests.unit.record_samples import START, big, past, small

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects tags and text, and insists that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.text += " "
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


# --- the page ---


@pytest.fixture(scope="module")
def failed() -> str:
    record = big()
    return render(record, past(record))


def test_it_needs_nothing_else(failed: str) -> None:
    page = Page(failed)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in page.attributes}
    assert "url(" not in failed
    assert "@import" not in failed
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_it_says_the_verdict_and_what_was_left_out(failed: str) -> None:
    text = " ".join(Page(failed).text.split())
    assert "✗ FAIL 14 of 17 exercised" in text
    assert "edge: 2 checks failed: The component refuses clients without credentials" in text
    assert "○ NOT EXERCISED time synchronisation kernel audit and sysctls (host) an nspawn machine shares it" in text
    assert "! systemd, without a cluster" in text
    assert "! with uncommitted changes" in text
    assert "! local, added manually" in text
    assert "○ missing" in text
    assert "acme-v02, api.example.org internal CA" in text
    assert "AssertionError: GET https://api.lab.test/metrics" in text


def test_failed_checks_come_first(failed: str) -> None:
    checks = failed[failed.index("<h2>Checks</h2>") :]
    assert checks.index("edge: The component exports metrics") < checks.index("12 passed")
    order = re.findall(r"<summary><b>(\w+)</b>", failed)
    assert order[:3] == ["edge", "argocd", "host"]


def test_exposure_is_a_table_with_the_wrong_ports_before_it(failed: str) -> None:
    text = re.sub(r"<[^>]+>|\s+", " ", failed[failed.index("<h2>Exposure</h2>") :])
    wrong = "22/tcp (SSH) from the public side, during a converge: expected silent, seen IPv4 silent, IPv6 open"
    assert wrong in re.sub(r" +", " ", text)
    assert text.index("not as expected") < text.index("HTTPS")
    assert "Exposure" not in render(small(), [])


def test_a_pass_with_gaps_is_not_green() -> None:
    gap = NotExercised(what="clock", why="shared", component="host")
    with_gap = render(small(exercised=Exercised(done=1, total=2, not_exercised=[gap])), [])
    assert 'class="banner not-exercised"' in with_gap
    assert "1 of 2" in with_gap
    assert 'class="banner pass"' in render(small(), [])


@pytest.mark.parametrize("record", [small(), small(phases=[], operations=[], components=[], checks=[], gates=[])])
def test_a_small_or_empty_record_is_a_page_too(record: Record) -> None:
    assert "first rehearsal on record" in Page(render(record, [])).text


ENUMERATED = {
    "id",
    "kind",
    "verdict",
    "outcome",
    "origin",
    "group",
    "runtime",
    "bound",
    "sha256",
    "started",
    "ended",
    "side",
}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x1b[31m"


def spoil(value: Any, key: str = "") -> Any:
    """The same content with something hostile in every free text."""
    if isinstance(value, dict):
        return {name: spoil(content, name) for name, content in value.items()}
    if isinstance(value, list):
        return [spoil(item, key) for item in value]
    return value + HOSTILE if isinstance(value, str) and key not in ENUMERATED else value


def test_every_text_is_escaped() -> None:
    record = Record.model_validate_json(json.dumps(spoil(big().model_dump(mode="json"))))
    html = render(record, [record, big(START - timedelta(days=1), seed=9)])
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 100  # shown, as text
    assert "onerror=alert(2)>{{ 7*7 }}" in page.text  # not evaluated either
    assert "\x1b" not in html


# --- accessibility ---


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes() -> dict[str, dict[str, str]]:
    css = (ROOT / "templates/report/style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    colours = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks]
    light, dark = [block for block in colours if block]
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


VERDICTS = ("pass", "fail", "could-not-verify", "not-exercised")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "background"),
    [
        *[(text, background) for text in ("text", "muted") for background in ("page", "fail-tint")],
        *[("text", f"{verdict}-tint") for verdict in VERDICTS],
        *[(verdict, "page") for verdict in VERDICTS],
        *[(verdict, f"{verdict}-tint") for verdict in VERDICTS],
    ],
)
def test_text_has_enough_contrast(theme: str, text: str, background: str) -> None:
    colours = themes()[theme]
    assert contrast(colours[text], colours[background]) >= 4.5


# --- timeline and trend ---


def drawn(html: str, look: str) -> list[tuple[str, str]]:
    """Return left and width, in percent, of the bars of a class."""
    return re.findall(rf'<i class="{look}" style="left:([\d.]+)%;width:([\d.]+)%"', html)


def test_bars_are_in_proportion_to_time() -> None:
    html = render(small(), [])
    assert drawn(html, "phase pass") == [("0.00", "50.00"), ("50.00", "50.00")]
    assert drawn(html, "changed") == [("50.00", "10.00")]
    assert drawn(html, "unchanged") == [("60.00", "2.50")]


def test_a_run_without_duration_is_shown() -> None:
    instant = small().phases[0].model_copy(update={"ended": START})
    record = small(ended=START, phases=[instant], operations=[])
    assert place(record, START, 0) == "left:0.00%;width:0.00%"
    assert drawn(render(record, []), "phase pass") == [("0.00", "0.00")]


def test_the_slowest_operation_is_named_but_a_failed_one_before_it(failed: str) -> None:
    assert "install, 31 s" in failed
    operations = [each.model_copy(update={"ok": each.name != "redis: configure"}) for each in small().operations]
    assert "✗ failed: configure, 1.5 s" in " ".join(Page(render(small(operations=operations), [])).text.split())


@pytest.mark.parametrize("seconds", [0.4, 7, 59, 61, 442, 3599, 3601, 30000, 700000])
def test_ticks_are_round_few_and_within(seconds: float) -> None:
    marks = ticks(seconds)
    assert 2 <= len(marks) <= 9
    assert marks[0] == ("0.00", "0")
    assert float(marks[-1][0]) <= 100
    assert len({label for _, label in marks}) == len(marks)


def test_the_trend_shows_the_same_kind_up_to_this_run_once_each() -> None:
    record = small()
    earlier, later = small(START - timedelta(days=1)), small(START + timedelta(days=1))
    drill = small(START - timedelta(days=2), kind="drill")
    assert runs_to_show(record, [record, later, drill, earlier]) == [earlier, record]
    many = [small(START - timedelta(days=days)) for days in range(1, 40)]
    shown = runs_to_show(record, many)
    assert len(shown) == MOST_RUNS
    assert shown[-1] == record
    assert shown[0].started == START - timedelta(days=MOST_RUNS - 1)


def test_the_shortest_phases_share_a_colour() -> None:
    record = big()
    names = legend([record])
    assert (len(names), names[-1]) == (7, "other")
    parts = stacked(record, names)
    assert sum(seconds for _, _, seconds in parts) == pytest.approx(sum(phase.seconds for phase in record.phases))
    assert [colour for colour, _, _ in parts] == list(range(7))


def test_a_past_pass_with_gaps_is_not_green_either() -> None:
    record = big()
    html = render(record, past(record, 6))
    trend = html[html.index("<h2>Trend</h2>") : html.index("<h2>Overrides</h2>")]
    assert trend.count('<span class="verdict fail">') == 2
    assert trend.count('<span class="verdict not-exercised">✓ pass') == 5


def test_rto_is_in_the_trend_where_it_was_measured() -> None:
    first = small(START - timedelta(days=1), rto_seconds=100.0, rto_budget_seconds=300.0)
    second = small(rto_seconds=200.0, rto_budget_seconds=300.0)
    html = render(second, [first])
    assert "the budget is 5 min" in html
    assert re.findall(r'<i class="phase" style="left:0;width:([\d.]+)%"', html)[-2:] == ["100.00", "50.00"]
    assert ">RTO</th>" not in render(small(), [small(START - timedelta(days=1))])
