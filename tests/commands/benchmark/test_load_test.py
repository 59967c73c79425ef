"""`benchmark`: real traffic to a real deployment on this machine's cloud, kept, shown, compared, interrupted."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import nothing_may_be_left
from tests.deployments.leftovers import processes_of
from tests.frontends.terminals import Done, Terminal, deploy_words, until
from tuna_nb.benchmarks import rows as files

pytestmark = pytest.mark.e2e

Tuna = Callable[..., Done]
QUICK = ("--requests", "60", "--rate", "30", "--output-tokens", "5", "--input-tokens", "20")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A running deployment named `served` in a folder of its own."""
    folder = tmp_path_factory.mktemp("served")
    terminal = Terminal(folder / "data")
    # One spot replica, whatever the load before was: with two, one that goes leaves spot as ready as it was.
    (folder / "policy.yaml").write_text("spot: {min_replicas: 1, max_replicas: 1}\n")
    terminal(*deploy_words("served", "--wait", "--scaling-policy", str(folder / "policy.yaml")))
    yield terminal
    terminal("destroy", "--all")
    nothing_may_be_left(terminal.folder)


@pytest.fixture
def there(tuna: Tuna, served: Terminal, monkeypatch: pytest.MonkeyPatch) -> Tuna:
    """A command line in the folder where `served` runs."""
    monkeypatch.setenv("TUNA_DATA_DIR", str(served.folder))
    return tuna


def folder(served: Terminal, name: str) -> Path:
    return served.folder / "benchmarks" / name


def test_a_load_test_is_sent_told_kept_and_shown_again(there: Tuna, served: Terminal, tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.parquet", tmp_path / "report.html"
    done = there(
        "benchmark", "load-test", "--service-name", "served", *QUICK, "--name", "one", "--warmup", "2",
        "--slo", "latency=1m", "--rows", str(rows), "--report", str(page), "-o", "json",
    )  # fmt: skip
    told = done.json
    figures = told["steps"][0]["figures"]
    assert (figures["requests"], figures["whole"], figures["failed"], figures["warmup"]) == (60, 60, 0, 2)
    assert figures["goodput"]["share"] == 1
    assert figures["output_tokens"] == 300
    assert {name for name, _ in figures["backends"]} <= {"spot", "serverless"}
    assert told["cost"]["usd"] > 0
    assert told["resumed"] == 0
    assert "sending to served" in done.err
    assert len(files.read(rows).rows) == 62
    assert files.read(rows).rows == files.read(folder(served, "one") / "rows.jsonl").rows
    assert page.read_text().startswith("<!doctype html>")
    again = there("benchmark", "show", "one", "-o", "json").json
    assert again["steps"] == told["steps"]
    shown = there("benchmark", "show", "one").out
    assert "failed = 0 of 60 requests" in shown
    assert "n too small" in shown
    assert len(there("benchmark", "show", "one", "--rows", "-o", "json").json["rows"]) == 62
    assert [run["name"] for run in there("benchmark", "list", "-o", "json").json["runs"]] == ["one"]
    kept = "".join(p.read_text() for p in folder(served, "one").iterdir())
    assert "Bearer" not in kept
    assert there("benchmark", "load-test", "--service-name", "served", *QUICK, "--name", "one", code=1).refusal[
        0
    ] == ("tuna: there is a run named one already")


def test_two_runs_are_compared_and_the_same_seed_sends_the_same(there: Tuna, served: Terminal) -> None:
    for name in ("a", "b"):
        there("benchmark", "load-test", "--service-name", "served", *QUICK, "--name", name)
    kept = [files.read(folder(served, name) / "rows.jsonl").rows for name in ("a", "b")]
    assert [r.scheduled_s for r in kept[0]] == [r.scheduled_s for r in kept[1]]
    assert [r.input_tokens for r in kept[0]] == [r.input_tokens for r in kept[1]]
    told = there("benchmark", "compare", "a", "b", "-o", "json").json
    assert (told["a"], told["b"], told["warnings"]) == ("a", "b", [])
    assert {d["figure"] for d in told["differences"] if d["low"] is not None} >= {
        "p50 TTFT",
        "p95 latency",
        "error rate",
    }
    assert there("benchmark", "compare", "a", "nope", code=1).refusal[0] == "tuna: no run named 'nope'"


def test_a_preemption_is_marked_and_loses_nothing(there: Tuna, served: Terminal) -> None:
    words = ("benchmark", "load-test", "--service-name", "served", "--concurrency", "4", "--duration", "8s",
             "--output-tokens", "40", "--name", "preempted", "-o", "json")  # fmt: skip
    running = served.start(*words)
    rows = folder(served, "preempted") / "rows.jsonl"
    until(lambda: rows.exists() and rows.stat().st_size > 0)
    there("local", "preempt", "--service-name", "served", "--notice", "0")
    told = served.finish(running).json
    assert "preemption" in {mark["kind"] for mark in told["marks"]}
    assert told["steps"][0]["figures"]["failed"] == 0
    taken = next(mark for mark in told["marks"] if mark["kind"] == "preemption")
    assert 0 < taken["at_s"] < 10
    assert "serverless" in dict(told["steps"][0]["figures"]["backends"])


def test_ctrl_c_keeps_what_came_and_leaves_nothing_running(there: Tuna, served: Terminal) -> None:
    before = {p.pid for p in processes_of(served.folder)}
    running = served.start("benchmark", "load-test", "--service-name", "served", "--rate", "20", "--duration", "10m",
                           "--output-tokens", "3", "--name", "stopped")  # fmt: skip
    rows = folder(served, "stopped") / "rows.jsonl"
    until(lambda: rows.exists() and rows.stat().st_size > 0)
    running.send_signal(signal.SIGINT)
    done = served.finish(running, code=130)
    assert "interrupted after" in done.refusal[0]
    assert done.refusal[1] == "hint: `tuna benchmark show stopped` shows them"
    told = there("benchmark", "show", "stopped", "-o", "json").json
    assert told["interrupted"]
    assert told["steps"][0]["figures"]["whole"] > 0
    assert told["steps"][0]["figures"]["offered_per_s"] > 2, "of the time that it had"
    assert "(interrupted)" in there("benchmark", "show", "stopped").out
    assert {p.pid for p in processes_of(served.folder)} <= before


def test_a_sweep_is_one_load_after_another(there: Tuna, served: Terminal) -> None:
    told = there("benchmark", "load-test", "--service-name", "served", "--sweep", "10,20", "--requests", "20",
                 "--output-tokens", "2", "--name", "swept", "-o", "json").json  # fmt: skip
    assert [(step["level"], step["figures"]["whole"]) for step in told["steps"]] == [(10, 20), (20, 20)]
    assert sorted(p.name for p in folder(served, "swept").glob("rows*")) == ["rows-1.jsonl", "rows-2.jsonl"]
    assert "rates" in there("benchmark", "show", "swept").out


def test_an_endpoint_that_is_down_or_wants_another_key_is_a_report_of_failures(
    there: Tuna, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = ("--model", "m", "--rate", "20", "--requests", "5")
    down = there("benchmark", "load-test", "--url", f"http://127.0.0.1:{port}", *words, "--name", "down", code=1)
    assert "failed = 5 of 5 requests" in down.out
    assert "5 × refused" in down.out
    monkeypatch.setenv("WRONG_KEY", "sk-wrong-and-secret")
    url = there("status", "--service-name", "served", "-o", "json").json["endpoint_url"]
    wrong = there("benchmark", "load-test", "--url", url, *words, "--key-variable", "WRONG_KEY", code=1)
    assert "5 × status 401" in wrong.out
    assert "sk-wrong" not in wrong.out + wrong.err


def test_bad_input_makes_and_sends_nothing(there: Tuna, served: Terminal, tmp_path: Path) -> None:
    def runs() -> Any:
        return json.loads(there("benchmark", "list", "-o", "json").out)["runs"]

    before = runs()
    for more in (("--rate", "0"), ("--rate", "1", "--name", "../x"), ("--rate", "1", "--rows", "x.csv"),
                 ("--rate", "1", "--report", f"{tmp_path}/none/x.html"), ("--rate", "1", "--slo", "x=1s"),
                 ("--rate", "1", "--key-variable", "X")):  # fmt: skip
        refused = there("benchmark", "load-test", "--service-name", "served", *more, code=2)
        assert len(refused.err.splitlines()) == 2, refused.err
        assert refused.refusal[1].startswith("hint: ")
    assert runs() == before
