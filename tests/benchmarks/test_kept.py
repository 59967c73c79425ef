"""A run is kept whole, under its own name, without a key, and read again as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.requests import failed, row
from tuna_nb.benchmarks.kept import Plan, Shelf, at_level, step_of
from tuna_nb.benchmarks.load.spec import Arrivals, Lag, Lengths, LoadSpec, Prompts, Target
from tuna_nb.benchmarks.measures import Slo
from tuna_nb.benchmarks.report import LoadReport, Mark, RunCost
from tuna_nb.errors import ConflictError, NotFoundError, UsageError
from tuna_nb.settings import Settings

SECRET = "sk-very-secret"
SPEC = LoadSpec(
    Target("http://x/v1", ("m", "n"), {"Authorization": f"Bearer {SECRET}"}, extra={"top_k": 3}),
    Arrivals("gamma", 5.0, cv=2.0),
    Prompts(input_tokens=Lengths(100, 0.5), output_tokens=Lengths(20)),
    duration_s=10.0,
    warmup_requests=1,
)
ROWS = (row(-1, warmup=True), *(row(n, scheduled_s=n / 5) for n in range(40)), failed(40, scheduled_s=8.0))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(Settings(tmp_path / "data", ""))


def plan(name: str = "one", **change: object) -> Plan:
    return replace(Plan(name, SPEC, "service", Slo(ttft_ms=200)), **change)  # type: ignore[arg-type]


def report(p: Plan, began_at: float = 100.0, **change: object) -> LoadReport:
    step = replace(
        step_of(p.spec, ROWS, None, p.slo, bool(change.get("interrupted"))),
        lag=Lag(0.001, 0.002, 0.003, 0.004, True, 0.2), began_at=101.0, took_s=9.0, notes=("a note",),
    )  # fmt: skip
    made = LoadReport(
        p.name, p.spec, p.service, p.slo, (step,), began_at=began_at, took_s=11.0, cost=RunCost(0.5, 1.0, 2.0, "all"),
        marks=(Mark(3.0, "preemption", "spot was taken away"),), resumes={"exact": 2, "failed": 1}, notes=("told",),
    )  # fmt: skip
    return replace(made, **change)  # type: ignore[arg-type]


def test_a_run_is_read_again_as_it_was(shelf: Shelf) -> None:
    keeping = shelf.begin(plan(), 100.0)
    keeping.rows(ROWS[:10])
    keeping.rows(ROWS[10:])
    kept = keeping.end(report(plan()), "<p>page</p>")
    found = shelf.load("one")
    assert found.spec == replace(SPEC, target=replace(SPEC.target, headers={}))
    assert found == replace(kept, spec=found.spec)
    assert found.resumed == 2
    assert sorted(p.name for p in keeping.folder.iterdir()) == [
        "report.html",
        "report.json",
        "rows.jsonl",
        "spec.json",
    ]


def test_no_key_is_ever_written(shelf: Shelf) -> None:
    keeping = shelf.begin(plan(), 100.0)
    keeping.end(report(plan()), "<p>page</p>")
    for path in keeping.folder.iterdir():
        assert SECRET not in path.read_text(), path.name
        assert path.stat().st_mode & 0o077 == 0


def test_a_run_whose_process_died_is_read_to_its_last_whole_row(shelf: Shelf) -> None:
    keeping = shelf.begin(plan(), 100.0)
    keeping.rows(ROWS)
    keeping.close()
    path = keeping.folder / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    found = shelf.load("one")
    assert found.interrupted
    assert found.figures.whole == 40
    assert found.figures.failed == 0
    assert any("cut off and is left out" in note for note in found.notes)
    assert [run.state for run in shelf.runs()] == ["unfinished"]


def test_a_run_that_was_cut_off_offered_what_it_had_time_for(shelf: Shelf) -> None:
    shelf.begin(plan(), 100.0).end(report(plan(), interrupted=True), None)
    assert shelf.load("one").figures.offered_per_s == pytest.approx(5.0)
    shelf.begin(plan("two"), 100.0).end(report(plan("two")), None)
    assert shelf.load("two").figures.offered_per_s == pytest.approx(41 / 10)


def test_a_name_is_taken_once(shelf: Shelf) -> None:
    shelf.begin(plan(), 100.0)
    with pytest.raises(ConflictError, match="there is a run named one already"):
        shelf.begin(plan(), 100.0)
    with pytest.raises(ConflictError):
        shelf.check("one")
    shelf.check("two")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "a b", "x" * 81, "ä"])
def test_a_name_that_is_no_folder_of_ours_is_refused(shelf: Shelf, name: str) -> None:
    with pytest.raises(UsageError, match="can't name a run"):
        shelf.check(name)


def test_a_made_name_says_what_and_when_and_is_free(shelf: Shelf) -> None:
    first = shelf.new_name(1000.0, "my-service")
    assert first.startswith("my-service-19700101-")
    shelf.begin(plan(first), 1000.0)
    second = shelf.new_name(1000.0, "my-service")
    assert second != first
    shelf.check(second)
    shelf.check(shelf.new_name(1000.0, None))


def test_the_list_has_the_newest_first_and_survives_what_it_cannot_read(shelf: Shelf, tmp_path: Path) -> None:
    assert shelf.runs() == []
    assert not (tmp_path / "data").exists(), "looking makes nothing"
    for number, name in enumerate(("old", "new")):
        shelf.begin(plan(name), 100.0 + number).end(report(plan(name), 100.0 + number), None)
    broken = tmp_path / "data" / "benchmarks" / "broken"
    broken.mkdir()
    (broken / "spec.json").write_text("{")
    (tmp_path / "data" / "benchmarks" / "empty").mkdir()
    runs = shelf.runs()
    assert [run.name for run in runs] == ["new", "old"]
    assert (runs[0].state, runs[0].requests, runs[0].failed, runs[0].ttft_p50_ms) == (
        "complete",
        41,
        1,
        pytest.approx(100),
    )
    with pytest.raises(UsageError, match=r"spec\.json can't be read"):
        shelf.load("broken")


def test_an_unknown_name_is_answered_with_the_nearest(shelf: Shelf) -> None:
    shelf.begin(plan("monday"), 100.0)
    with pytest.raises(NotFoundError) as e:
        shelf.load("mondy")
    assert e.value.hint == "did you mean 'monday'?"


def test_a_sweep_keeps_a_file_a_step(shelf: Shelf) -> None:
    p = plan(sweep="rate", levels=(1.0, 2.0, 4.0))
    keeping = shelf.begin(p, 100.0)
    keeping.rows(ROWS[:5], 0)
    keeping.rows(ROWS[5:9], 1)
    steps = tuple(
        step_of(at_level(p, level), rows, level, p.slo) for level, rows in ((1.0, ROWS[:5]), (2.0, ROWS[5:9]))
    )
    keeping.end(replace(report(p), steps=steps, sweep="rate", interrupted=True), None)
    found = shelf.load("one")
    assert [(step.level, len(step.rows)) for step in found.steps] == [(1.0, 5), (2.0, 4)]
    assert at_level(p, 4.0).arrivals.rate == 4.0
    assert at_level(replace(p, sweep="concurrency"), 4.0).arrivals.concurrency == 4


def test_what_a_newer_version_wrote_more_is_left_out(shelf: Shelf) -> None:
    keeping = shelf.begin(plan(), 100.0)
    path = keeping.folder / "spec.json"
    data = json.loads(path.read_text())
    data["spec"]["colour"] = data["spec"]["target"]["shape"] = "new"
    path.write_text(json.dumps(data))
    assert shelf.load("one").spec.seed == 0
