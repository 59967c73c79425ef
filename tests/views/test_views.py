"""Every result, as text, as HTML and as JSON: whole, escaped, readable anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest

from tests.catalog.models.configs import known
from tests.views.pages import page
from tuna_nb.backends.base import (
    Check,
    Engine,
    Kind,
    Plan,
    PlannedResource,
    Replica,
    ServerlessScaling,
    ServiceRequest,
    State,
)
from tuna_nb.benchmarks.rows import Row
from tuna_nb.benchmarks.story import Story
from tuna_nb.catalog.fit import fits
from tuna_nb.catalog.gpus import GPUS
from tuna_nb.catalog.models.memory import Model, Wanted
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.costs.bill import Bill, Forecast, Side, Versus
from tuna_nb.costs.budget_list import BudgetList, BudgetRow
from tuna_nb.costs.unserving import Unserving
from tuna_nb.deployments.checks import ProviderChecks
from tuna_nb.deployments.connection import Connection
from tuna_nb.deployments.destroy import Removed
from tuna_nb.deployments.plan import DeploymentPlan
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.status import Component, DeploymentStatus, Fleet
from tuna_nb.errors import EngineError, TunaError
from tuna_nb.jobs import Job, LogEntry, Report, Snapshot, Work
from tuna_nb.records import JobRecord
from tuna_nb.views import data, html, live, text
from tuna_nb.views.sheets import Sheet, age, error_sheet, sheet, usd

HOSTILE = "<script>alert('x')</script> & \"quotes\" [bold]not markup[/bold] é 漢"
NOW = 1_800_000_000.0


def status(words: str = HOSTILE, **change: Any) -> DeploymentStatus:
    component = Component(
        "serverless", "local", f"name {words}", "ready", True, 0.8, (Replica("r1", State.READY, NOW),),
        url="http://127.0.0.1:1", detail=words,
    )  # fmt: skip
    values: dict[str, Any] = {
        "name": "life", "id": "0123456789", "state": "running", "model": "Qwen/Qwen3-0.6B", "gpu": "1x L4",
        "endpoint_url": "http://127.0.0.1:43227", "created_at": NOW - 90, "observed_at": NOW,
        "components": (component, replace(component, role="spot", rate_usd_per_hour=None, state="unknown")),
        "spot_state": "READY", "routing": {"total": 4, "pct_spot": 75.0, "pct_serverless": 25.0},
        "error": words, "hint": words,
    }  # fmt: skip
    return DeploymentStatus(**values | change)


def deployment_plan() -> DeploymentPlan:
    request = ServiceRequest("d", "n", Kind.SERVERLESS, Engine("m/x"), "L4", 1, ServerlessScaling())
    side = Plan(request, (PlannedResource(HOSTILE, "n", None),), None, (HOSTILE,))
    asked = DeployRequest(service_name="life", model="m/x", gpu="L4")
    return DeploymentPlan("d", asked, side, side, "process")


def bill() -> Any:
    sides = tuple(
        Side(role, HOSTILE, 2, 1, 0.5, 0.4, 0.8, 2, error_usd=0.01, boot_usd=0.1, idle_usd=0.2, charged_usd=charged)
        for role, charged in (("serverless", 0.6), ("spot", None))
    )
    return Bill(
        "life", sides, 0.8, 1.6, 4, 600, 400, NOW - 3600, NOW, 0.02,
        forecast=Forecast(2.0, 30.0, HOSTILE),
        versus=(Versus("serverless only", 1.6), Versus("on-demand only", None, HOSTILE)),
        versus_since=NOW - 600, versus_usd=0.7, gaps=((NOW - 900, NOW - 500),), notes=(HOSTILE,),
    )  # fmt: skip


def job_record(**change: Any) -> JobRecord:
    values: dict[str, Any] = {
        "id": "1", "name": "life", "verb": "deploy", "deployment_id": None, "state": "failed", "step": HOSTILE,
        "fraction": 0.5, "host": "elsewhere", "pid": 1, "pid_created_at": NOW, "cancel_requested": False,
        "started_at": NOW - 5, "seen_at": NOW, "ended_at": NOW, "error": HOSTILE,
    }  # fmt: skip
    return JobRecord(**values | change)


def story() -> Story:
    row = Row(1, "m", False, 0.0, 0.0, None, 1.0, error=HOSTILE, backend="spot")
    return Story(NOW, (row,), ((NOW, HOSTILE),), 3, bill(), 0.01, 12.0)


def model_fit() -> Any:
    dear = Offer("modal", OfferKind.SERVERLESS, "H100", 4.0, None, NOW - 90, HOSTILE)
    described = Model(HOSTILE, known("google/gemma-3-27b-it"), HOSTILE)
    return fits(described, list(GPUS), Wanted(), offers=[dear])


RESULTS: dict[str, Callable[[], Any]] = {
    "status": status,
    "a destroyed status": lambda: status(state="destroyed", components=(), spot_state=None, routing=None),
    "fleet": lambda: Fleet((status(),), (("local", "spot", HOSTILE),), (("aws", HOSTILE),)),
    "no fleet": lambda: Fleet(()),
    "plan": deployment_plan,
    "bill": bill,
    "no bill": lambda: Bill("life", (), 0.0, 0.0, None, None, None, 0.0, NOW),
    "checks": lambda: ProviderChecks((("local", Check(HOSTILE, False, HOSTILE, HOSTILE)),)),
    "jobs": lambda: [job_record(), job_record(ended_at=None, error=None)],
    "no jobs": list,
    "story": story,
    "fit": model_fit,
    "removed": lambda: Removed(("life",)),
    "nothing removed": lambda: Removed((), HOSTILE),
    "connection": lambda: Connection("life", HOSTILE, "http://127.0.0.1:1/v1", {"Authorization": "Bearer k-e-y"}),
    "words": lambda: HOSTILE,
}  # fmt: skip
HAVE_HOSTILE = set(RESULTS) - {"no fleet", "no bill", "no jobs", "removed"}


@pytest.fixture(params=RESULTS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(kind: str) -> Any:
    return RESULTS[kind]()


def test_html_is_whole_and_safe_anywhere(made: Any, kind: str) -> None:
    shown = page(html.render(sheet(made, NOW)))
    assert "<script>" not in html.render(sheet(made, NOW))
    if kind in HAVE_HOSTILE:
        assert HOSTILE in shown.text


def test_text_says_the_same_without_colour_or_markup(made: Any, kind: str) -> None:
    shown = text.render(sheet(made, NOW), width=300)
    assert "\x1b" not in shown
    assert not any(line.startswith("<") for line in shown.splitlines() if "script" not in line)
    if kind in HAVE_HOSTILE:
        # Not taken for rich's own markup.
        assert "[bold]not markup[/bold]" in shown


def test_text_and_html_have_the_same_figures(made: Any) -> None:
    shown = sheet(made, NOW)
    in_html, in_text = page(html.render(shown)).text, text.render(shown, width=1000)
    for value in (shown.title, *(v for fact in shown.facts for v in fact), *(c for row in shown.rows for c in row)):
        assert value in in_html
        assert value in in_text


def test_json_is_json_and_holds_no_key(made: Any) -> None:
    shown = data.as_json(made)
    json.loads(shown)
    assert "k-e-y" not in shown
    for rendered in (html.render(sheet(made, NOW)), text.render(sheet(made, NOW)), repr(made)):
        assert "k-e-y" not in rendered


def test_a_tables_rows_are_as_wide_as_its_head(made: Any) -> None:
    shown = sheet(made, NOW)
    assert all(len(row) == len(shown.columns) for row in shown.rows)


def test_a_result_without_a_view_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="no view for int"):
        sheet(3)


def test_unknown_money_stays_unknown() -> None:
    assert usd(None) == "unknown"
    assert usd(0.0) == "$0.0000"
    assert usd(1234.5, 2) == "$1,234.50"
    fleet = Fleet((status(), status(components=())))
    assert ("costs now", "unknown per hour") in sheet(fleet, NOW).facts


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3599, "59m 59s"), (3600, "1h 0m"), (90000, "1d 1h")],
)
def test_a_span_is_shown_in_its_two_largest_units(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_a_tone_is_never_the_only_sign() -> None:
    for tone in ("good", "bad", "busy"):
        assert any(sign in html.render(Sheet("x", tone=tone)) for sign in "✔✖…")


def test_an_error_is_a_sheet_too() -> None:
    shown = page(html.render(error_sheet(TunaError(HOSTILE, HOSTILE))))
    assert shown.text.count(HOSTILE) == 2


def test_a_dataframe_has_numbers_and_times() -> None:
    frame = data.frame(Fleet((status(),)))
    assert frame is not None
    assert str(frame["created_at"].dt.tz) == "UTC"
    assert data.frame(status()) is None
    jobs = data.frame([job_record(ended_at=None)])
    assert jobs is not None
    assert jobs["ended_at"].isna().all()


# -- a job's view -----------------------------------------------------------------------------------------


def snapshot(**change: Any) -> Snapshot:
    log = tuple(LogEntry(NOW + i, f"{HOSTILE} {i}") for i in range(3))
    values: dict[str, Any] = {
        "name": "life", "verb": "deploy", "step": HOSTILE, "fraction": 0.4, "started_at": NOW, "log": log,
        "facts": (("endpoint", HOSTILE),),
    }  # fmt: skip
    return Snapshot(**values | change)


@pytest.mark.parametrize("state", ["running", "cancelling", "done", "failed", "cancelled"])
def test_a_jobs_bundle_is_static_whatever_its_state(state: str) -> None:
    error = EngineError(HOSTILE, HOSTILE) if state in ("failed", "cancelled") else None
    bundle = live.static_bundle(snapshot(state=state, error=error, ended_at=NOW + 9), NOW + 9)
    assert set(bundle) == {"text/plain", "text/html"}
    shown = page(bundle["text/html"])
    assert state in shown.text
    assert "3 log lines" in shown.text
    assert HOSTILE in shown.text
    assert ("status", "polite") in [(dict(shown.attributes).get("role"), dict(shown.attributes).get("aria-live"))]
    if error is not None:
        assert f"hint: {HOSTILE}" in shown.text
        assert f"hint: {HOSTILE}" in bundle["text/plain"]


def test_a_long_log_stays_small_in_the_saved_file() -> None:
    log = tuple(LogEntry(NOW, "x" * 100) for _ in range(500))
    assert len(live.static_bundle(snapshot(log=log), NOW)["text/html"]) < 20_000


def test_progress_on_a_pipe_is_plain_lines_each_once() -> None:
    out = StringIO()
    show = text.TextProgress(out, clock=lambda: NOW)
    first = snapshot(log=(LogEntry(NOW, "one"),))
    second = snapshot(log=(*first.log, LogEntry(NOW + 61, "two")))
    for s in (first, first, second, replace(second, state="done", ended_at=NOW + 62)):
        show(s)
    assert out.getvalue() == "     0s  one\n  1m 1s  two\n"


def test_progress_on_a_terminal_redraws_one_bar() -> None:
    class Tty(StringIO):
        def isatty(self) -> bool:
            return True

    out = Tty()
    show = text.TextProgress(out, clock=lambda: NOW)
    first = snapshot(log=(LogEntry(NOW, "one"),), step="serving")
    show(first)
    show(replace(first, state="done", ended_at=NOW))
    assert out.getvalue().count("[########            ]  40% running: serving") == 1
    assert out.getvalue().endswith("\r\x1b[K")


def test_an_error_that_is_shown_elsewhere_is_not_said_twice() -> None:
    for shown, times in ((True, 0), (False, 1)):
        out = StringIO()
        show = text.TextProgress(out, error_is_shown=shown)
        failed = snapshot(
            log=(LogEntry(NOW, "one"), LogEntry(NOW, "failed: why")), state="failed", error=TunaError("why")
        )
        show(failed)
        assert out.getvalue().count("failed: why") == times
        assert "one" in out.getvalue()


def test_a_view_ends_as_plain_html_and_frees_its_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import threading

    from ipywidgets.widgets.widget import _instances

    shown: list[dict[str, Any]] = []

    class Handle:
        def update(self, bundle: dict[str, Any], raw: bool) -> None:
            shown.append(bundle)

    def display(bundle: dict[str, Any], raw: bool, display_id: bool) -> Handle:
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(live, "CLOSE_AFTER_S", 0.05)
    before = set(_instances)
    go = threading.Event()

    async def run(report: Report) -> str:
        report.step(HOSTILE, 0.5)
        await asyncio.to_thread(go.wait)
        return "end"

    job = Job(Work("life", "deploy", run))
    first, second = live.JobView(job), live.JobView(job)
    first.show()
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    second.show()
    # Showing a job again closes the older view: a cell that is run ten times has one.
    assert first._closed
    assert not second._closed
    go.set()
    assert job.wait(10) == "end"
    deadline = 100
    while not second._closed and deadline:
        threading.Event().wait(0.05)
        deadline -= 1
    assert second._closed
    assert live.JobView._open == {}
    assert set(shown[-1]) == {"text/plain", "text/html"}
    assert "done" in page(shown[-1]["text/html"]).text
    assert set(_instances) == before


def budget_row(**change: Any) -> BudgetRow:
    values: dict[str, Any] = {
        "name": f"x {HOSTILE}", "per": "day", "limit_usd": 20.0, "spent_usd": 16.5, "left_usd": 3.5, "per_cent": 82.5,
        "since": NOW, "resets_at": NOW + 3600, "warn": (50.0, 80.0), "action": "destroy", "fired": (50.0, 80.0),
        "webhook": "https://hooks.example/...",
    }  # fmt: skip
    return BudgetRow(**values | change)


def test_a_budget_shows_what_is_left_what_has_fired_and_what_is_unsure() -> None:
    made = sheet(BudgetList((budget_row(),)), NOW)
    cells = dict(zip(made.columns, made.rows[0], strict=True))
    assert (cells["limit"], cells["left"], cells["used"]) == ("$20.00", "$3.5000", "82 %")
    assert (cells["at 100 %"], cells["has fired"], made.tone) == ("destroy", "50 %, 80 %", "plain")
    used = sheet(BudgetList((budget_row(left_usd=0.0, unknown_hours=2.0, trouble="no answer"),)), NOW)
    assert used.tone == "bad"
    assert any("2.0 h have no known price" in note for note in used.notes)
    assert any("is tried again: no answer" in note for note in used.notes)
    assert "tuna budget set" in sheet(BudgetList(()), NOW).notes[0]


def test_what_bills_and_does_not_serve_is_red_wherever_it_is_seen() -> None:
    stuck = Unserving("spot", "aws", "stuck loading", NOW - 1200, 0.4, NOW)
    one = status(unserving=(stuck,))
    for shown in (sheet(one, NOW), sheet(Fleet((one,)), NOW)):
        assert shown.tone == "bad"
        assert any(
            "spot on aws bills but has not served for 20 min (stuck loading): $0.4000" in n for n in shown.notes
        )
    assert sheet(Fleet((one,)), NOW).rows[0][1] == "running, NOT SERVING"
    forgotten = replace(stuck, kind="forgotten", since=NOW - 30 * 3600)
    listed = sheet(Fleet((status(unserving=(forgotten,)),)), NOW)
    assert listed.rows[0][1] == "running", "it does serve, if anybody asks"
    assert any("nobody has asked it anything for 30 h" in note for note in listed.notes)
    bill = Bill("x", (), 1.0, 0.5, None, None, None, unserving=(("x", stuck),))
    assert sheet(bill, NOW).tone == "bad"
    assert "stuck loading" in sheet(bill, NOW).notes[0]
    table = data.frame(Fleet((one,)))
    assert table is not None
    assert list(table["unserving"]) == ["spot: stuck loading"]


def test_dollars_are_no_formula_in_a_notebook() -> None:
    """JupyterLab typesets what stands between two dollar signs of an output, unless it is told not to."""
    for made in (html.render(sheet(bill(), NOW)), html.job(Snapshot("x", "deploy"), NOW)):
        outermost = re.findall(r"<(?:div|details)[^>]*>", made)[0]
        assert "mathjax_ignore" in outermost
