"""What a person sees of a load test: figures with their intervals, charts in every form, and a page that reads
anywhere."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.benchmarks.requests import failed, row
from tests.views.pages import Page, page
from tuna_nb.benchmarks.compare import compare
from tuna_nb.benchmarks.kept import KeptRun, Plan, at_level, step_of
from tuna_nb.benchmarks.load.spec import Arrivals, Lag, LoadSpec, Target
from tuna_nb.benchmarks.measures import Slo
from tuna_nb.benchmarks.report import LoadReport, Mark, RunCost
from tuna_nb.benchmarks.rows import Row
from tuna_nb.benchmarks.run_list import RowList, RunList
from tuna_nb.views import data, html, text
from tuna_nb.views import page as pages
from tuna_nb.views.charts import PLOTLY
from tuna_nb.views.load_charts import charts_of
from tuna_nb.views.sheets import Sheet, sheet

HOSTILE = "<script>alert('x')</script> & \"quotes\" <b>not bold</b>"
SPEC = LoadSpec(Target("http://x/v1", ("m",)), Arrivals("poisson", 20), requests=400)
SLO = Slo(ttft_ms=150.5)


def rows(count: int = 400, slow: float = 1.0) -> tuple[Row, ...]:
    """The second half on spot; TTFT from 100 to 200 ms."""
    return tuple(
        row(n, scheduled_s=n / 20, ttft_s=slow * (0.1 + (n * 37 % 100) / 1000), backend="spot" if n >= count / 2 else "serverless")
        for n in range(count)
    )  # fmt: skip


def report(kept: tuple[Row, ...] = rows(), spec: LoadSpec = SPEC, **change: Any) -> LoadReport:
    step = replace(
        step_of(spec, kept, None, SLO), lag=Lag(0.0001, 0.0004, 0.0005, 0.001, True, 0.1), notes=("a note",)
    )
    made = LoadReport(
        "run", spec, "service", SLO, (step,), began_at=1.0, took_s=20.0, cost=RunCost(0.02, 0.05, 1.5, "idle, too"),
        marks=(Mark(9.5, "preemption", "spot was taken away"),), resumes={"exact": 3, "failed": 1}, folder="/kept/run",
    )  # fmt: skip
    return replace(made, **change)


def swept() -> LoadReport:
    p = Plan("run", SPEC, "service", None, "rate", (1.0, 2.0, 4.0))
    steps = tuple(step_of(at_level(p, level), rows(80, slow=level), level, None) for level in p.levels)
    return report(steps=steps, sweep="rate")


def fact(made: Sheet, name: str) -> str:
    return dict(made.facts)[name]


# -- figures ----------------------------------------------------------------------------------------------


def test_the_sheet_says_each_figure_with_its_interval() -> None:
    made = sheet(report())
    assert made.title == "run: failed = 0 of 400 requests, TTFT p50 149 ms"
    assert made.tone == "good"
    ttft = next(cells for cells in made.rows if cells[0] == "TTFT, ms")
    assert ttft[1] == "400"
    for cell in ttft[3:]:
        value, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+)–(\S+)\]", cell).groups())  # type: ignore[union-attr]
        assert low <= value <= high
    assert fact(made, "goodput").startswith("51.0% of 400 kept TTFT ≤ 150 ms: ")
    assert fact(made, "answered by") == "serverless 50%, spot 50%"
    assert fact(made, "streams continued elsewhere") == "3"
    assert (
        fact(made, "cost of the run") == "$0.0200; $0.0500 per 1,000 requests, $1.50 per million tokens (idle, too)"
    )


def test_it_says_which_definition_is_shown() -> None:
    notes = "\n".join(sheet(report()).notes)
    assert "TTFT and latency count from the scheduled time, not the sending" in notes
    assert "TPOT is per token, within a request" in notes
    assert "a gap is between two chunks with text" in notes
    assert "95 % confidence, by order statistics" in notes
    assert "9.5 s: spot was taken away" in notes
    closed = report(spec=replace(SPEC, arrivals=Arrivals("closed", concurrency=4)))
    assert "count from when its place was free" in "\n".join(sheet(closed).notes)


def test_a_percentile_from_too_few_is_said_to_be_none() -> None:
    cells = {c[0]: c for c in sheet(report(rows(250))).rows}
    assert cells["TTFT, ms"][-1] == "n too small"
    assert "n too small" in text.render(sheet(report(rows(250))))
    assert "[" in cells["TTFT, ms"][-2]


def test_failures_are_told_by_kind_with_an_example() -> None:
    made = sheet(report((*rows(50), failed(50), failed(51), failed(52, "timeout"), row(53, error="stopped"))))
    assert made.tone == "bad"
    assert made.title.startswith("run: failed = 3 of 54 requests")
    assert "2 × status 503, e.g. status 50" in made.notes
    assert any("latencies are of the 50 that came whole; 3 failed, 1 had not ended" in note for note in made.notes)


def test_a_run_in_which_nothing_came_whole_has_no_empty_table_and_fails_a_script() -> None:
    nothing = report(tuple(failed(n, "refused") for n in range(5)))
    made = sheet(nothing)
    assert (made.columns, made.rows, made.tone) == ((), (), "bad")
    assert not nothing.passed
    assert report().passed
    assert charts_of(nothing) == () or all("svg" not in page(c.html).tags for c in charts_of(nothing))


def test_what_was_not_streamed_shows_latency_alone() -> None:
    whole = report(spec=replace(SPEC, target=replace(SPEC.target, stream=False)))
    made = sheet(whole)
    assert [cells[0] for cells in made.rows] == ["latency, ms", "tokens/s per user"]
    assert any(note.startswith("not streamed: there is no TTFT") for note in made.notes)
    assert charts_of(whole)[0].title == "latency over time"


def test_a_url_has_no_cost_that_is_known() -> None:
    made = sheet(report(service=None, cost=RunCost(None, note="not known here"), resumes=None))
    assert fact(made, "cost of the run") == "unknown: not known here"
    assert "streams continued elsewhere" not in dict(made.facts)
    assert fact(made, "target") == "http://x/v1, m"


def test_a_sweep_has_a_row_a_load() -> None:
    made = sheet(swept())
    assert [cells[0] for cells in made.rows] == ["1", "2", "4"]
    (chart,) = charts_of(swept())
    assert chart.title == "Latency against throughput"
    assert [cells[0] for cells in chart.sheet.rows] == ["1", "2", "4"]


def test_a_comparison_says_what_differs_and_what_speaks_against_it() -> None:
    a, b = report(), report(rows(400, slow=1.5))
    made = sheet(compare(a.figures, b.figures, ("mon", "tue"), ("other arrivals: x and y",)))
    assert made.title.startswith("tue against mon: worse in ")
    verdicts = {cells[0]: cells[-1] for cells in made.rows}
    assert (verdicts["p95 TTFT"], verdicts["error rate"], verdicts["p95 TPOT"]) == (
        "worse",
        "no difference seen",
        "no difference seen",
    )
    assert "NOT ALIKE: other arrivals: x and y" in made.notes
    assert any(note.startswith("B is 50 % slower at p95 TTFT, 95 % CI ") for note in made.notes)
    assert any("bootstrap" in note for note in made.notes)


def test_lists_of_runs_and_of_rows() -> None:
    assert sheet(RunList(())).title == "no runs yet"
    made = sheet(RunList((KeptRun("a", "load-test", "complete", "svc", ("m",), 0.0, 5, 1, 12.3, 4.5),)), now=90.0)
    assert made.rows == (("a", "load-test", "complete", "svc", "m", "1m 30s ago", "5", "1", "12.3 ms", "4.50"),)
    listed = sheet(RowList("a", ((None, row(-1, warmup=True)), (None, failed(1)))))
    assert [cells[-1] for cells in listed.rows] == ["warm-up", "status"]


def test_the_figures_are_a_frame_of_numbers() -> None:
    table = data.frame(report())
    assert table is not None
    assert list(table.index) == ["ttft_ms", "tpot_ms", "chunk_gap_ms", "latency_ms", "user_tokens_per_s"]
    assert table.loc["ttft_ms", "p95_low"] <= table.loc["ttft_ms", "p95"] <= table.loc["ttft_ms", "p95_high"]
    assert table.attrs["achieved_per_s"] == report().figures.achieved_per_s
    assert math.isnan(data.frame(report(rows(100))).loc["ttft_ms", "p99"])  # type: ignore[union-attr]
    assert list(data.frame(swept())["rate"]) == [1, 2, 4]  # type: ignore[index]
    every = data.frame(RowList("a", tuple((None, r) for r in rows())))
    assert every is not None
    assert every["ttft_s"].median() == pytest.approx(0.1495)
    compared = data.frame(compare(report().figures, report().figures))
    assert compared is not None
    assert not compared["seen"].any()


def test_as_json_it_has_figures_and_neither_rows_nor_samples() -> None:
    made = data.as_json(report())
    told = json.loads(made)
    assert told["steps"][0]["figures"]["ttft_ms"]["quantiles"][0]["value"] == pytest.approx(149)
    assert told["resumed"] == 3
    assert "rows" not in told["steps"][0]
    assert len(made) < 30_000


# -- charts and pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [report(), swept()], ids=["one", "sweep"])
def test_each_chart_is_one_bundle_that_plotly_accepts(made: LoadReport) -> None:
    for chart in charts_of(made):
        bundle = chart._repr_mimebundle_()
        assert set(bundle) == {PLOTLY, "text/html", "text/plain"}
        shown = page(bundle["text/html"])
        assert {"svg", "table"} <= set(shown.tags)
        assert ("role", "img") in shown.attributes
        json.dumps(bundle[PLOTLY], allow_nan=False)
        assert "http" not in json.dumps(bundle).replace("http://www.w3.org/2000/svg", "")
        assert chart.figure().layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_a_run_has_latency_over_time_its_spread_and_who_answered() -> None:
    over, spread, shares = charts_of(report())
    assert (over.title, spread.title, shares.title) == (
        "TTFT over time",
        "How latencies are spread",
        "Who answered",
    )
    assert over.spec is not None
    assert spread.spec is not None
    assert [shape["x0"] for shape in over.spec["layout"]["shapes"]] == [9.5], "the preemption is marked"
    assert "spot was taken away" in page(over.html).text
    assert "9.5 s: spot was taken away" in over.text
    for trace in spread.spec["data"]:
        assert trace["y"] == sorted(trace["y"])
        assert trace["x"] == sorted(trace["x"])
        assert trace["y"][-1] == 1


def test_parts_of_a_whole_are_a_whole() -> None:
    shares = charts_of(report())[2]
    assert shares.spec is not None
    for parts in zip(*(trace["y"] for trace in shares.spec["data"]), strict=True):
        assert sum(parts) == pytest.approx(1)


def test_an_endpoint_that_does_not_say_who_answered_has_no_chart_of_it() -> None:
    silent = report(tuple(replace(r, backend=None) for r in rows()))
    assert [c.title for c in charts_of(silent)] == ["TTFT over time", "How latencies are spread"]


def test_a_gap_in_the_traffic_is_a_gap_in_the_line() -> None:
    gone = tuple(replace(r, scheduled_s=r.scheduled_s + 30, first_token_s=r.first_token_s + 30, ended_s=r.ended_s + 30)  # type: ignore[operator]
                 if r.number >= 200 else r for r in rows())  # fmt: skip
    drawn = charts_of(report(gone))[0].drawing
    path = re.search(r"<title>TTFT p50</title>(.*?)</g>", drawn)
    assert path is not None
    assert path[1].count("<path") == 2


@pytest.mark.parametrize("count", [1, 2, 5, 30, 20_000])
def test_few_and_many_requests_are_drawn_small(count: int) -> None:
    kept = rows(count)
    for chart in charts_of(report(kept)):
        assert len(json.dumps(chart._repr_mimebundle_())) < 60_000
    page(html.render(sheet(report(kept))))


def document(made: str) -> Page:
    """The body's fragments, each of which must stand anywhere; the head has the only style sheet."""
    head, _, body = made.partition("<body>")
    assert head.startswith("<!doctype html>")
    assert "<script" not in made
    assert not re.search(
        r"(src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", made.replace("http://x/v1", "")
    )
    return page(body.partition("</body>")[0])


@pytest.mark.parametrize(
    "made", [report(), swept(), report(tuple(failed(n) for n in range(3)))], ids=["one", "sweep", "bad"]
)
def test_the_report_is_one_file_that_needs_nothing_else(made: LoadReport) -> None:
    told = pages.render(made)
    assert "color-scheme: light dark" in told
    assert "default-src 'none'" in told
    assert document(told).text.count("run") >= 1
    assert len(told) < 100_000


def test_what_a_server_says_is_never_read_as_a_tag() -> None:
    bad = replace(failed(51), detail=HOSTILE)
    named = tuple(replace(r, backend=HOSTILE) for r in rows(50))
    made = report(
        (*named, bad), name=HOSTILE, service=HOSTILE, notes=(HOSTILE,), marks=(Mark(15.0, "preemption", HOSTILE),)
    )
    assert "<script>alert" not in pages.render(made)
    assert HOSTILE in document(pages.render(made)).text
    for chart in charts_of(made):
        assert "<script>" not in json.dumps(chart.spec)
        page(chart.html)
