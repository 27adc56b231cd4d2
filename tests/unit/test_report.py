"""The report: self-contained, escaped, readable in both themes, and drawn to scale."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from minipc.paths import ROOT
from minipc.records import Exercised, NotExercised, Operation, Record
from minipc.report import render
from minipc.report.axis import step_for, ticks
from minipc.report.timeline_chart import LEFT, RIGHT, WIDTH, Bar, Row, timeline_chart
from minipc.report.trend_chart import MOST_RUNS, PLOT, phases_chart, rto_chart, runs_to_show
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
    assert not {"src", "href", "srcset", "action", "style"} & {name for name, _ in page.attributes}
    assert "url(" not in failed
    assert "@import" not in failed
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_it_says_the_verdict_and_what_was_left_out(failed: str) -> None:
    text = " ".join(Page(failed).text.split())
    assert "✗ FAIL 14 of 17 exercised" in text
    assert "edge: 2 checks failed: refuses a stranger" in text
    assert "○ NOT EXERCISED time synchronisation, kernel audit and sysctls (host) an nspawn machine shares it" in text
    assert "! stand-in" in text
    assert "! with uncommitted changes" in text
    assert "! local, put in by hand" in text
    assert "○ missing" in text
    assert "acme-v02, api.example.org internal CA" in text
    assert "AssertionError: GET https://api.lab.test/metrics" in text


def test_failed_checks_come_first(failed: str) -> None:
    checks = failed[failed.index("<h2>Checks</h2>") :]
    assert checks.index("edge: exports metrics") < checks.index("12 passed")
    order = re.findall(r"<summary><b>(\w+)</b>", failed)
    assert order[:3] == ["edge", "argocd", "host"]


def test_the_two_doors_are_a_table_with_what_is_wrong_before_it(failed: str) -> None:
    text = re.sub(r"<[^>]+>|\s+", " ", failed[failed.index("<h2>Two doors</h2>") :])
    wrong = "22/tcp (SSH) from the public side, during a converge: expected silent, seen IPv4 silent, IPv6 open"
    assert wrong in re.sub(r" +", " ", text)
    assert text.index("not as expected") < text.index("HTTPS")
    assert "Two doors" not in render(small(), [])


def test_a_pass_with_gaps_is_not_green() -> None:
    gap = NotExercised(what="clock", why="shared", component="host")
    with_gap = render(small(exercised=Exercised(done=1, total=2, not_exercised=[gap])), [])
    assert 'class="banner not-exercised"' in with_gap
    assert "1 of 2" in with_gap
    assert 'class="banner pass"' in render(small(), [])


@pytest.mark.parametrize("record", [small(), small(phases=[], operations=[], components=[], checks=[], gates=[])])
def test_a_small_or_empty_record_is_a_page_too(record: Record) -> None:
    assert "first rehearsal on record" in Page(render(record, [])).text


def test_a_run_of_no_time_at_all_is_drawn() -> None:
    instant = small().phases[0].model_copy(update={"ended": START})
    assert "Timeline of the run" in render(small(ended=START, phases=[instant], operations=[]), [])


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
        *[(text, background) for text in ("text", "muted") for background in ("page", "band", "fail-tint")],
        *[("text", f"{verdict}-tint") for verdict in VERDICTS],
        *[(verdict, "page") for verdict in VERDICTS],
        *[(verdict, f"{verdict}-tint") for verdict in VERDICTS],
        *[("on-phase", bar) for bar in ("phase", "fail", "could-not-verify")],
    ],
)
def test_text_has_enough_contrast(theme: str, text: str, background: str) -> None:
    colours = themes()[theme]
    assert contrast(colours[text], colours[background]) >= 4.5


def test_charts_have_a_title_and_a_description(failed: str) -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', failed, re.S)
    assert len(charts) == 3
    for chart in charts:
        (names,) = re.findall(r'role="img" aria-labelledby="([^"]+)"', chart)
        for name in names.split():
            (words,) = re.findall(rf'id="{name}">([^<]+)<', chart)
            assert len(words) > 10
    assert "7 min 22 s in all: prepare 4.2 s, machine 7.9 s" in charts[0]


# --- the timeline, to scale ---


def place(record: Record, seconds: float) -> float:
    """Where the moment so many seconds after the start belongs."""
    return LEFT + seconds / record.seconds * (WIDTH - LEFT - RIGHT)


def test_bars_are_proportional_to_time() -> None:
    record = small()
    chart = timeline_chart(record)
    machine, converge = (row.bars[0] for row in chart.phases)
    assert (machine.x, machine.x + machine.width) == pytest.approx((LEFT, place(record, 30)))
    assert (converge.x, converge.x + converge.width) == pytest.approx((place(record, 30), WIDTH - RIGHT))
    install, configure = chart.components[0].bars
    assert (install.x, install.width) == pytest.approx((place(record, 30), place(record, 6) - LEFT))
    assert (configure.x, configure.width) == pytest.approx((place(record, 36), place(record, 1.5) - LEFT))
    assert [tick.position for tick in chart.ticks] == pytest.approx(
        [place(record, seconds) for seconds in (0, 10, 20, 30, 40, 50, 60)]
    )


def test_the_drawing_is_what_was_computed() -> None:
    record = small()
    html = render(record, [])
    drawn = re.findall(r'<rect class="(phase|operation) \S+" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html)
    full = WIDTH - LEFT - RIGHT
    expected = [
        ("phase", LEFT, full / 2),
        ("phase", LEFT + full / 2, full / 2),
        ("operation", LEFT + full / 2, full / 10),
        ("operation", LEFT + full * 0.6, full / 40),
    ]
    assert [kind for kind, _, _ in drawn] == [kind for kind, _, _ in expected]
    for (_, x, width), (_, expected_x, expected_width) in zip(drawn, expected, strict=True):
        assert float(x) == pytest.approx(expected_x, abs=0.01)
        assert float(width) == pytest.approx(expected_width, abs=0.01)


def test_an_instant_is_still_visible() -> None:
    operation = small().operations[0].model_copy(update={"seconds": 0.0})
    (bar,) = timeline_chart(small(operations=[operation])).components[0].bars
    assert bar.width == 1.0


def covers(row: Row, bar: Bar) -> bool:
    """Whether the row's note and the bar share some width, by the estimate that placed it or a little less."""
    assert row.note
    width = len(row.note.text) * 5.5
    begin = row.note.x if row.note.anchor == "start" else row.note.x - width
    return begin < bar.x + bar.width and bar.x < begin + width


def test_labels_stay_inside_the_chart_and_cover_no_bar() -> None:
    chart = timeline_chart(big())
    labelled = [row for row in chart.phases + chart.components if row.note]
    assert len(labelled) > 10
    for row in labelled:
        assert row.note
        assert LEFT <= row.note.x <= WIDTH - RIGHT
        if not row.note.inside:
            assert not [bar for bar in row.bars if covers(row, bar)]


def test_slow_operations_are_labelled_and_a_failed_one_before_all() -> None:
    chart = timeline_chart(big())
    notes = {row.label: row.note.text for row in chart.components if row.note}
    assert notes["postgres"].startswith("install, 31 s")
    assert "drift" not in notes or notes["drift"].startswith("install")

    record = big(failing=False)
    broken = [
        operation.model_copy(update={"ok": False}) if operation.name == "vpn: activate" else operation
        for operation in record.operations
    ]
    drawn = timeline_chart(small(operations=broken, started=record.started, ended=record.ended))
    (note,) = [row.note for row in drawn.components if row.label == "vpn"]
    assert note
    assert note.text.startswith("✗ failed: activate")


def test_quick_operations_are_not_labelled() -> None:
    quick = [Operation(**(operation.model_dump() | {"seconds": 0.5})) for operation in small().operations]
    assert timeline_chart(small(operations=quick)).components[0].note is None


@pytest.mark.parametrize("span", [0.4, 7, 59, 61, 442, 3599, 3601, 30000, 700000])
def test_ticks_are_round_few_and_within(span: float) -> None:
    marks = ticks(span, 100, most=10)
    assert 2 <= len(marks) <= 11
    assert marks[0].position == 0
    assert marks[-1].position <= 100.001
    assert len({mark.label for mark in marks}) == len(marks)
    assert marks[1].position == pytest.approx(step_for(span, 10) / span * 100)


# --- the trend ---


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


def test_columns_are_as_high_as_runs_are_long() -> None:
    record = big()
    runs = [big(START - timedelta(days=1), seed=2, slowness=2.0), record]
    chart = phases_chart(runs)
    longest = max(run.seconds for run in runs)
    for run, column in zip(runs, chart.columns, strict=True):
        in_phases = sum(phase.seconds for phase in run.phases)
        assert sum(block.height for block in column.blocks) == pytest.approx(in_phases / longest * PLOT)
    assert len(chart.legend) == 7
    assert chart.legend[-1] == "other"
    assert {block.colour for block in chart.columns[0].blocks} == set(range(7))


def test_a_past_pass_with_gaps_is_not_green_either() -> None:
    record = big()
    looks = [column.look for column in phases_chart(runs_to_show(record, past(record, 6))).columns]
    assert looks.count("fail") == 2
    assert looks.count("not-exercised") == 5


def test_rto_over_time() -> None:
    first = small(START - timedelta(days=1), rto_seconds=100.0, rto_budget_seconds=300.0)
    second = small(rto_seconds=200.0, rto_budget_seconds=300.0)
    assert rto_chart([second]) is None
    chart = rto_chart([first, second])
    assert chart
    assert chart.budget_y
    heights = [chart.base - point.y for point in chart.points]
    assert heights[1] == pytest.approx(2 * heights[0])
    assert chart.base - chart.budget_y == pytest.approx(3 * heights[0])

    far = rto_chart([first, small(rto_seconds=200.0, rto_budget_seconds=14400.0)])
    assert far
    assert far.budget_y is None
