"""Every view tells which rung breaks, at which layer, and the page draws an error over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from optimizer.engine import Rung
from optimizer.report.report import Report
from optimizer.report.views import console, html, junit, markdown, plots

Make = Callable[..., Report]

BROKEN = Rung(
    "imported",
    "top1",
    0.4,
    11.0,
    0.3,
    1e-6,
    "<b>conv1</b>",
    "output 'y'",
    against="source",
    difference=0.28,
    explained=2e-6,
    breaks=True,
    over_time=(1e-3, 0.0, 2e-3, math.inf),
)


@pytest.mark.parametrize(("exit_code", "kind"), [(3, "failure"), (0, "skipped")])
def test_a_rung_that_breaks_is_told_everywhere_with_its_layer(make_report: Make, exit_code: int, kind: str) -> None:
    report = replace(make_report(), ladder=(BROKEN,), exit_code=exit_code)
    told = "imported is not the same as source, first at &lt;b&gt;conv1&lt;/b&gt;"
    assert f'<{kind} message="{told}' in junit.render(report)
    assert told in markdown.render(report)
    assert "breaks: output 'y'" in " ".join(console.render(report, width=300).split())
    page = html.render(report)
    assert '<tr class="fail"><td>imported</td>' in page
    assert "&lt;b&gt;conv1&lt;/b&gt;" in page


def test_the_error_over_time_is_drawn_with_its_worst_stretch_and_where_it_is_no_number() -> None:
    plot = plots.over_time(BROKEN)
    assert plot.count('class="point"') == 3
    assert plot.count('class="budget"') == 1
    long = plots.over_time(replace(BROKEN, over_time=(1e-4,) * 1999 + (1.0,)))
    assert long.count('class="point"') <= 600
    assert "step 2,000" in long
    assert "1e0" in long
