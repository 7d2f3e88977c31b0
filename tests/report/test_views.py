"""Every view shows what the report holds, and names out of models steer neither terminal nor browser nor parser."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kernels.load import Load, Quantile
from kernels.target import Target
from kernels.timing import Timing
from optimizer.engine import Built, Candidate, Parity, Point, Realised
from optimizer.plan import Plan, Rewrite
from optimizer.provenance import from_json, to_json
from optimizer.report.escape import markup, printable
from optimizer.report.report import Failure, Report, reports_from
from optimizer.report.views import console, html, junit, markdown

Make = Callable[..., Report]

HOSTILE = [
    "[red]x[/red][link=file:///etc/passwd]y",
    "\x1b[2J\x1b]8;;http://evil\x07click\x1b]8;;\x07",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a&b;&lt;",
    "nul\x00 bell\x07 tab\t new\nline\r \x85\u2028",
    "\u202egnp.exe\u2066 \ufffe\uffff",
    "]]> <!-- --> <![CDATA[",
    "| table | `code` ![img](http://evil/x.png) |",
]


class _Page(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


OURS = {
    *("html", "head", "meta", "title", "style", "body", "section", "h1", "h2", "span", "p", "ul", "li", "div", "table", "tr", "th", "td"),
    *("svg", "rect", "line", "circle", "g", "text", "details", "summary", "code"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_html_shows_a_hostile_name_as_text_and_nothing_else(make_report: Make, name: str) -> None:
    page = _Page(html.render(make_report(name=name)))
    assert page.tags <= OURS
    assert page.open == []
    assert not any(attribute.startswith("on") or attribute in ("src", "href") for attribute in page.attributes)
    assert printable(name) in page.text


@pytest.mark.parametrize("name", HOSTILE)
def test_junit_stays_valid_and_names_the_layer(make_report: Make, name: str) -> None:
    root = ElementTree.fromstring(junit.render(make_report(name=name)))
    assert printable(name) in [case.get("name") for case in root.iter("testcase")]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("colour", [False, True])
def test_the_terminal_is_not_steered_by_a_name(make_report: Make, name: str, colour: bool) -> None:
    shown = console.render(make_report(name=name), colour=colour, width=400)
    without_colour = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cn") for character in without_colour.replace("\n", ""))
    assert printable(name) in without_colour
    assert colour or without_colour == shown


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_takes_a_name_for_text(make_report: Make, name: str) -> None:
    text = markdown.render(make_report(name=name))
    assert not re.search(r"<(script|img)|!\[|\]\(", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}


def test_html_is_one_file_with_its_plots_for_light_and_dark(make_report: Make) -> None:
    page = html.render(make_report())
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"https?://|<script|url\(", page)
    for title in ("Drop of each candidate", "Speed of each candidate", "Realised precision", "Histogram with the chosen range"):
        assert f'aria-label="{title}' in page


def test_html_shows_the_refused_candidate_with_what_it_would_have_lost(make_report: Make) -> None:
    text = _Page(html.render(make_report())).text
    assert "3.20 pp [2.40, 4.10]" in text
    assert "the lower bound is over the budget" in text
    assert "refused" in text


def test_the_plot_of_bounds_puts_the_budget_between_what_passes_and_what_fails(make_report: Make) -> None:
    page = html.render(make_report())
    budget = float(re.search(r'class="budget" x1="([\d.]+)"', page)[1])  # type: ignore[index]
    ends = {
        kind: (float(low), float(high))
        for kind, low, high in re.findall(r'<g class="(\w+)"><line class="interval" x1="([\d.]+)" x2="([\d.]+)"', page)
    }
    assert ends["pass"][1] < budget < ends["fail"][0]


def test_a_gpu_that_is_not_here_gets_static_counts_instead_of_times(make_report: Make, l4: Target) -> None:
    report = make_report(target=l4)
    assert "Not timed" in html.render(report)
    assert "57 launches" in html.render(report)
    assert "not timed" in console.render(report)
    assert "launches" in console.render(report)


def test_the_console_puts_the_threshold_before_the_drop_and_fits_its_width(make_report: Make) -> None:
    shown = console.render(make_report(), width=90)
    assert shown.index("must be over 81.13 % (parent 81.95 %): 0.82 pp may be lost") < shown.index("surely between")
    assert max(len(line) for line in shown.splitlines()) <= 90
    assert "layer2.1.conv2" in shown


def test_junit_fails_where_the_gate_fails_and_skips_where_it_is_open(make_report: Make) -> None:
    for verdict, kind in (("fail", "failure"), ("inconclusive", "skipped")):
        root = ElementTree.fromstring(junit.render(make_report(verdict=verdict)))
        gate = next(case for case in root.iter("testcase") if case.get("classname") == "gate")
        assert [child.tag for child in gate] == [kind, "system-out"]
        suite = next(root.iter("testsuite"))
        assert int(suite.get("failures", "")) == sum(1 for _ in root.iter("failure"))
        assert int(suite.get("skipped", "")) == sum(1 for _ in root.iter("skipped"))


def test_several_targets_are_one_table_with_the_one_that_failed(make_report: Make) -> None:
    reports = reports_from({"cpu": make_report(), "h100": Failure("NOT AVAILABLE", "No engine [bold]\x1b[0m.", "Take the handover.", 5)})
    for shown in (console.render(reports, width=200), markdown.render(reports)):
        assert "h100" in shown
        assert "\x1b" not in shown
    assert "Take the handover." in console.render(reports, width=200)


def test_printable_spells_out_what_steers_and_leaves_letters_of_all_languages() -> None:
    assert printable("layer3.0.conv2 größe 層 é") == "layer3.0.conv2 größe 層 é"
    assert printable("\x1b[0m\u202e\x00") == r"\x1b[0m\u202e\x00"
    assert markup("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"


def test_an_engine_without_a_lossy_step_is_told_in_the_words_of_its_own_gate(make_report: Make) -> None:
    words = "no lossy step: the largest difference from float64, in 'y', is within 4 times the parent's own rounding error"
    numeric = Parity("pass", "max_abs", 1e-7, 2e-7, 4e-7, 2e-7, 2e-7, 2e-7, 4, None, "this CPU", words)
    full = make_report()
    report = make_report(parity=numeric)
    report = replace(report, candidates=(replace(full.candidates[0], metric="max_abs", budget=4e-7, drop=2e-7), *full.candidates[1:]))
    assert words in report.headline
    assert "may be lost" not in console.render(report)
    for shown in (console.render(report, width=200), html.render(report), markdown.render(report)):
        assert "largest difference 2e-07" in shown
    # Its difference is in another unit than the budget of the others, so it is not drawn beside them.
    assert len(re.findall(r'class="interval"', html.render(report))) == 2
    assert words in next(iter(ElementTree.fromstring(junit.render(report)).iter("system-out"))).text  # type: ignore[operator]


def test_an_open_verdict_that_was_asked_to_count_as_a_fail_is_a_failure_in_junit(make_report: Make) -> None:
    report = make_report(verdict="inconclusive")
    assert 'failures="0"' in junit.render(report)
    assert 'failures="1"' in junit.render(replace(report, exit_code=3))


def test_what_a_run_takes_that_finds_nothing_in_the_caches_is_told_beside_the_others(make_report: Make) -> None:
    report = make_report()
    assert "cold" not in html.render(report)
    assert "With cold caches 1.5 ms." in html.render(replace(report, speed=replace(report.speed, cold_ms=1.5)))


def test_the_plan_that_ships_and_the_reason_of_each_layers_precision_are_told(make_report: Make) -> None:
    why = "left in float: with these in INT8 calibration samples lose most (layer1.0.conv2)"
    plan = Plan("onnxruntime", "cpu", "fp32", reason=why, reasons={"layer1.0.conv2": why})
    realised = (Realised("layer1.0.conv2", "Conv", "fp32", "fp32"), Realised("layer1.1.conv2", "Conv", "int8", "fp32", reason="no kernel"))
    subject = Candidate("int8 without 1 layer", plan, built=Built(realised), outcome="shipped")
    report = make_report(subject=subject, candidates=[subject])
    assert [layer.reason for layer in report.precision.layers] == [why, "no kernel"]
    assert f"plan        {why}" in console.render(report, width=200)
    assert why in html.render(report)


def test_load_tests_are_told_with_their_requests_and_read_back_where_a_quantile_is_not_bounded(make_report: Make) -> None:
    load = Load(300, 4, None, 1, 1000.0, Quantile(1.0, 0.9, 1.1), Quantile(2.0, 1.9, 2.1), Quantile(3.0, 2.5, None), "here")
    report = make_report()
    report = replace(report, speed=replace(report.speed, loads=(load,)))
    told = "p50 1, p90 2, p99 3 ms [2.5, ?]; 4 clients, 300 requests, 1,000 samples/s"
    assert told in console.render(report)
    assert told in _Page(html.render(report)).text
    assert from_json(to_json(report), Report, "report.json").speed.loads == (load,)


@pytest.mark.parametrize("name", ["", HOSTILE[2], HOSTILE[1], HOSTILE[0]])
def test_the_front_the_reasons_and_other_budgets_stand_in_console_and_page(make_report: Make, name: str) -> None:
    plan = Plan("openvino", "cpu", "fp32", precisions={"conv": "int8"}, rewrites=(Rewrite("FoldColumns", f"{name}conv1"),))
    base = Candidate("fp32", Plan("openvino", "cpu", "fp32"), timing=_timing(1.0), distance=1e-7, gain=1.0, seconds=1.5)
    won = Candidate(f"{name}int8", plan, timing=_timing(2.0), distance=0.1, flip_rate=0.004, flip_low=0.002, flip_high=0.007, gain=1.9)
    beaten = replace(won, name=f"{name}beaten", timing=_timing(1.5), flip_rate=0.01, gain=None, seconds=3.25)
    points = [Point(won.name, "openvino", 5.0, 2.0, 0.004, True), Point("fp32", "openvino", 10.0, 1.0, 0.0, True)]
    won = replace(won, parity=make_report().gate, outcome="shipped")
    report = make_report(subject=won, candidates=[base, beaten, won], front=points)
    report = replace(report, outlook=(f"with 2 pp allowed: {name}beaten",))
    shown, page = console.render(report, width=400), html.render(report)
    text = _Page(page).text
    for told in (printable(f"{name}int8"), printable(f"FoldColumns at {name}conv1"), "0.4 % flip [0.2, 0.7]", "1.90x", "3.25"):
        assert told in shown
        assert told in text
    assert printable(f"with 2 pp allowed: {name}beaten") in shown
    assert "2.00x [1.95, 2.05]" in shown
    assert "0.4 % of the answers" in shown
    plot = page[page.index('aria-label="Latency against predicted loss"') :]
    plot = plot[: plot.index("</svg>")]
    assert len(re.findall(r'class="point"', plot)) == 2
    assert len(re.findall(r'class="beaten"', plot)) == 1
    assert len(re.findall(r'class="front"', plot)) == 1
    assert _Page(page).tags <= OURS
    assert "\x1b" not in shown


def test_in_the_plot_of_the_front_what_loses_more_stands_higher_and_what_is_faster_to_the_left(make_report: Make) -> None:
    base = Candidate("fp32", Plan("openvino", "cpu", "fp32"), timing=_timing(1.0), distance=0.0)
    low = Candidate("int8", Plan("openvino", "cpu", "int8"), timing=_timing(2.0), distance=0.1, flip_rate=0.004)
    points = [Point("int8", "openvino", 5.0, 2.0, 0.004, True), Point("fp32", "openvino", 10.0, 1.0, 0.0, True)]
    report = make_report(candidates=[base, low], front=points)
    page = html.render(report)
    drawn = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'<circle class="point" cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+"><title>(\w+): [^<]+ms', page)
    }
    assert drawn["int8"][0] < drawn["fp32"][0]
    assert drawn["int8"][1] < drawn["fp32"][1]
    (budget,) = re.findall(r'class="budget" x1="70.0" x2="770.0" y1="([\d.]+)"', page)
    assert float(budget) < drawn["int8"][1]


def test_there_is_no_front_of_one(make_report: Make) -> None:
    report = make_report(front=[Point("fp32", "openvino", 10.0, 1.0, 0.0, False)])
    assert "Latency against predicted loss" not in html.render(report)
    assert "The front" not in console.render(report)


def _timing(ratio: float) -> Timing:
    return Timing(10 / ratio, 11, 12, "fp32", ratio, ratio - 0.05, ratio + 0.05, 240, "it is certain", "here")
