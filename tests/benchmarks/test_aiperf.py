"""aiperf as another engine, before a program that behaves like it: what it is given, what is read, and its end.

The real one is met in `test_cross_check.py`.
"""

from __future__ import annotations

import asyncio
import json
import stat
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuna_nb.benchmarks import aiperf
from tuna_nb.benchmarks.load.arrivals import schedule
from tuna_nb.benchmarks.load.prompts import asks
from tuna_nb.benchmarks.load.spec import Arrivals, Lengths, LoadSpec, Prompts, Target
from tuna_nb.benchmarks.rows import Row
from tuna_nb.errors import RequestError, TunaError, UsageError

EXPORT = Path(__file__).with_name("aiperf_0_13_export.json")
KEY = "sk-a-key-that-nobody-sees"
SPEC = LoadSpec(
    Target("http://127.0.0.1:9/v1", ("m",), {"Authorization": f"Bearer {KEY}"}),
    Arrivals("poisson", rate=20),
    Prompts(input_tokens=Lengths(8), output_tokens=Lengths(4)),
    requests=30,
    seed=5,
)

PRETENDED = """
import json, os, subprocess, sys, time
here = {here!r}
told = json.loads(sys.stdin.readline())
argv = told["argv"]
told["process"] = sys.argv
told["environment"] = dict(os.environ)
told["requests"] = open(argv[argv.index("--input-file") + 1]).read()
json.dump(told, open(here + "/told.json", "w"))
if {mode!r} == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
    json.dump([os.getpid(), child.pid], open(here + "/pids.json", "w"))
    time.sleep(600)
if {mode!r} == "die":
    print("401 for", told["headers"]["Authorization"])
    sys.exit(3)
out = argv[argv.index("--output-artifact-dir") + 1]
os.makedirs(out)
open(out + "/profile_export_aiperf.json", "w").write(open({export!r}).read())
"""


def pretend(folder: Path, mode: str = "answer") -> Path:
    """A folder in which aiperf seems to be installed."""
    script = folder / "pretended.py"
    script.write_text(PRETENDED.format(here=str(folder), mode=mode, export=str(EXPORT)))
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(stat.S_IRWXU)
    (folder / "installed").write_text(aiperf.VERSION)
    return folder


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


def quiet(_line: str) -> None:
    """Nobody listens."""


async def test_it_is_given_our_own_schedule_and_bodies(tmp_path: Path) -> None:
    await aiperf.run_aiperf(SPEC, pretend(tmp_path), quiet)
    rows = [json.loads(line) for line in told(tmp_path)["requests"].splitlines()]
    assert [r["payload"] for r in rows] == [json.loads(a.body) for a in islice(asks(SPEC), 30)]
    due = [round(1000 * at, 3) for at in islice(schedule(SPEC), 30)]
    assert [r["timestamp"] for r in rows] == due
    assert "--fixed-schedule" in told(tmp_path)["argv"]


async def test_a_closed_loop_keeps_as_many_under_way(tmp_path: Path) -> None:
    spec = replace(SPEC, arrivals=Arrivals("closed", concurrency=7))
    await aiperf.run_aiperf(spec, pretend(tmp_path), quiet)
    words = told(tmp_path)["argv"]
    assert words[words.index("--concurrency") + 1] == "7"
    assert words[words.index("--request-count") + 1] == "30"
    assert "--fixed-schedule" not in words


async def test_no_key_is_in_its_command_line_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    await aiperf.run_aiperf(SPEC, pretend(tmp_path), quiet)
    found = told(tmp_path)
    assert found["headers"] == {"Authorization": f"Bearer {KEY}"}
    assert KEY not in json.dumps([found["process"], found["environment"], found["argv"]])
    # With it aiperf can't load a tokenizer from a folder.
    assert "HF_HUB_OFFLINE" not in found["environment"]


async def test_what_it_says_as_it_dies_is_told_without_the_key(tmp_path: Path) -> None:
    with pytest.raises(TunaError, match=r"aiperf ended with 3 and no figures: 401 for \*\*\*") as failed:
        await aiperf.run_aiperf(SPEC, pretend(tmp_path, "die"), quiet)
    assert KEY not in str(failed.value)


async def test_a_cancel_ends_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiperf, "TERM_S", 0.3)
    running = asyncio.create_task(aiperf.run_aiperf(SPEC, pretend(tmp_path, "hang"), quiet))
    await _hanging(tmp_path)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert _alive(tmp_path) == []


async def test_one_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiperf, "TERM_S", 0.3)
    monkeypatch.setattr(aiperf, "START_S", 1.0)
    with pytest.raises(TunaError, match="aiperf has not ended in"):
        await aiperf.run_aiperf(replace(SPEC, grace_s=0.5), pretend(tmp_path, "hang"), quiet)
    assert _alive(tmp_path) == []


async def _hanging(folder: Path) -> None:
    async with asyncio.timeout(20):
        while not (folder / "pids.json").exists() or not (folder / "pids.json").read_text().endswith("]"):
            await asyncio.sleep(0.02)


def _alive(folder: Path) -> list[int]:
    pids = json.loads((folder / "pids.json").read_text())
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def test_its_report_is_read() -> None:
    figures = aiperf.read(EXPORT.read_text())
    assert (figures.version, figures.requests, figures.errors) == ("0.13.0", 60, 0)
    assert figures.ttft is not None
    assert figures.ttft.p50 == pytest.approx(45.64, abs=0.01)
    assert figures.ttft.p99 is None  # of 60
    assert figures.chunk_gap is not None
    assert figures.chunk_gap.n > 300
    assert figures.chunk_gap.p99 is not None
    assert figures.late_p99_ms == pytest.approx(4.587, abs=0.001)


@pytest.mark.parametrize("text", ["", "[]", '{"aiperf_version": "9"', '{"request_count": {"avg": 1}}'])
def test_what_is_no_report_is_said(text: str) -> None:
    with pytest.raises(TunaError, match="aiperf's report can't be read"):
        aiperf.read(text)


def test_both_tools_stand_side_by_side_with_what_they_count() -> None:
    rows = [
        Row(n, "m", False, n * 0.1, n * 0.1 + 0.001, n * 0.1 + 0.051, n * 0.1 + 1.031, 200,
            input_tokens=8, output_tokens=50, gaps_ms=(20.0,) * 49)
        for n in range(60)
    ]  # fmt: skip
    shown = aiperf.beside(aiperf.read(EXPORT.read_text()), rows)
    from_sending, from_schedule = shown[:2]
    assert from_sending.tuna == pytest.approx(50.0)
    assert from_schedule.tuna == pytest.approx(51.0)
    assert from_sending.apart == pytest.approx(50.0 / 45.6401 - 1, abs=1e-4)
    assert "aiperf says 45.64 ms, Tuna says 50 ms (+9.6%)" in from_sending.said
    assert "Tuna: from the scheduled time" in from_schedule.said
    by_name = {one.what: one for one in shown}
    assert by_name["output tokens"].tuna == pytest.approx(60 * 50 / (59 * 0.1 + 1.03))
    assert by_name["median time per output token"].tuna == pytest.approx(20.0)


def test_nothing_is_installed_that_nobody_said_yes_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="840 MB"):
        aiperf.require_consent(tmp_path, False)
    aiperf.require_consent(tmp_path, True)
    aiperf.require_consent(pretend(tmp_path), False)


def test_an_endpoint_that_it_can_not_ask_is_refused() -> None:
    with pytest.raises(RequestError, match=r"at \.\.\./v1"):
        aiperf.check(replace(SPEC, target=replace(SPEC.target, base_url="http://127.0.0.1:9/openai")))
