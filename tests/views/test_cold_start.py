"""What cold starts show: a table, a chart that reads without a script, rows for a DataFrame, JSON."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from tuna_nb.benchmarks.cold_start import FRESH, WARM, ColdStartReport, Cycle, Phase, ProviderStarts, Zero
from tuna_nb.views import data
from tuna_nb.views.charts import PLOTLY
from tuna_nb.views.cold_start_chart import chart_of
from tuna_nb.views.html import render
from tuna_nb.views.sheets import sheet

ZERO = Zero(61.2, "idle, 0 replicas, not billing")
SHOWN = (
    Phase("queue", 4000, 250),
    Phase("image", 20_000, 250),
    Phase("weights + engine", 35_000),
    Phase("first token", 1000),
)
FIRST = (Phase("create", 3000), Phase("queue + image + weights + engine", 89_000), Phase("first token", 500))


def report(**change: object) -> ColdStartReport:
    split = ProviderStarts(
        "split", "cold-start-split", 0.8,
        (Cycle(FRESH, 0, 0.0, 92_500, FIRST), Cycle(WARM, 0, 0.0, 60_000, SHOWN, ZERO),
         Cycle(WARM, 1, 0.0, 60_000, SHOWN, ZERO, asked=3)),
        0.25, 0.07,
    )  # fmt: skip
    dark = ProviderStarts(
        "dark <b>", "cold-start-dark", 1.2, (Cycle(WARM, 0, 0.0, 76_600, (Phase("undivided", 76_600),), ZERO),), 5.0, 0.04
    )  # fmt: skip
    values = {
        "model": "m",
        "gpu": "L4",
        "at": 1.7e9,
        "took_s": 400.0,
        "providers": (split, dark),
        "expected_usd": 0.5,
    }
    return ColdStartReport(**values | change)  # type: ignore[arg-type]


def test_each_start_is_a_row_and_repeats_have_a_median() -> None:
    shown = sheet(report())
    assert shown.title == "split: first token from zero in 60.00 s (median of 2), the soonest"
    starts = [row[:3] for row in shown.rows]
    assert starts == [
        ("split", "fresh 1", "92.50 s"),
        ("split", "warm-cold 1", "60.00 s"),
        ("split", "warm-cold 2", "60.00 s"),
        ("split", "warm-cold: median (least–most) of 2", "60.00 s (60.00–60.00)"),
        ("dark <b>", "warm-cold 1", "76.60 s"),
    ]
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    assert shown.tone == "good"


def test_inexact_phases_retries_and_undivided_ones_are_said() -> None:
    notes = "\n".join(sheet(report()).notes)
    assert "split was looked at every 0.25 s: its phases may be off by up to 0.25 s, never their sum" in notes
    assert "it was asked up to 3 times" in notes
    assert "the provider does not show where a ends" in notes
    queue = sheet(report()).rows[1][sheet(report()).columns.index("queue")]
    assert queue == "4.00 ± 0.25"


def test_what_is_still_there_is_shouted() -> None:
    left = ProviderStarts("p", "cold-start-p", 0.8, (), 5.0, None, "503 to DELETE", True, "503 to DELETE")
    shown = sheet(report(providers=(left,)))
    assert shown.tone == "bad"
    assert shown.notes[0].startswith("STILL THERE: cold-start-p: 503 to DELETE; `tuna destroy")


def test_the_chart_draws_each_phase_as_long_as_it_was() -> None:
    (chart,) = chart_of(report())
    svg = re.findall(r"<svg.*?</svg>", chart.drawing)[1]
    root = ET.fromstring(svg)
    rects = root.findall("{http://www.w3.org/2000/svg}rect")
    assert len(rects) == 3 + 4 + 4 + 1
    widths = [float(r.get("width", "0")) for r in rects]
    assert sum(widths[:3]) / sum(widths[3:7]) == pytest.approx(92_500 / 60_000, rel=0.01)
    assert "dark &lt;b&gt;" in chart.html
    assert "<b>" not in chart.drawing
    assert "http" not in chart.html.replace("http://www.w3.org/2000/svg", "")


def test_plotlys_bars_sum_to_each_start() -> None:
    (chart,) = chart_of(report())
    spec = chart._repr_mimebundle_()[PLOTLY]
    totals: dict[str, float] = {}
    for trace in spec["data"]:
        for label, length in zip(trace["y"], trace["x"], strict=True):
            totals[label] = totals.get(label, 0.0) + (length or 0.0)
    assert totals["split warm-cold 1"] == pytest.approx(60.0)
    assert totals["split fresh 1"] == pytest.approx(92.5)
    assert len({(t["marker"]["color"], t["marker"]["pattern"]["shape"]) for t in spec["data"]}) == len(spec["data"])
    assert len(json.dumps(spec)) < 10_000
    assert chart.figure().data


def test_nothing_measured_draws_nothing() -> None:
    assert chart_of(report(providers=())) == ()
    assert sheet(report(providers=())).title == "no start was measured"


def test_a_frame_has_a_row_a_phase_and_json_the_whole() -> None:
    frame = data.frame(report())
    assert frame is not None
    assert list(frame.columns) == ["provider", "kind", "number", "phase", "seconds", "error_s", "total_s"]
    sums = frame.groupby(["provider", "kind", "number"])["seconds"].sum()
    assert sums["split", WARM, 1] == pytest.approx(60.0)
    told = json.loads(data.as_json(report()))
    assert told["providers"][0]["cycles"][1]["zero"]["said"] == ZERO.said
    assert told["providers"][0]["summaries"][1]["n"] == 2
    assert render(sheet(report()))
