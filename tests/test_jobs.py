"""Long work in the background: seen, cancelled, awaited, and never spoiled by whoever watches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tuna_nb.errors import BackendError, CancelledError, TunaError
from tuna_nb.jobs import Job, Jobs, LoopThread, Report, Snapshot, Work


class Gate:
    """Work that takes one step, waits until it is let on, and records how it ended."""

    def __init__(self) -> None:
        self.entered, self.open, self.undone = threading.Event(), asyncio.Event(), threading.Event()

    async def run(self, report: Report) -> str:
        report.step("waiting", 0.5)
        self.entered.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            report.note("undoing")
            self.undone.set()
            raise
        return "result"

    def let_on(self) -> None:
        LoopThread.loop().call_soon_threadsafe(self.open.set)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.let_on()


def seen_by(job: Job) -> tuple[list[Snapshot], threading.Event]:
    seen: list[Snapshot] = []
    ended = threading.Event()

    def view(s: Snapshot) -> None:
        seen.append(s)
        if s.final:
            ended.set()

    job.subscribe(view)
    return seen, ended


def test_a_job_reports_its_steps_and_its_result(gate: Gate) -> None:
    job = Job(Work("a", "deploy", gate.run))
    seen, ended = seen_by(job)
    assert gate.entered.wait(10)
    gate.let_on()
    assert job.wait(10) == "result"
    assert ended.wait(10)
    assert seen[-1].state == "done"
    assert seen[-1].fraction == 1.0
    assert [e.text for e in seen[-1].log] == ["waiting", "done"]
    assert [s.fraction for s in seen] == sorted(s.fraction for s in seen)


def test_views_are_called_on_one_thread_only(gate: Gate) -> None:
    job = Job(Work("a", "deploy", gate.run))
    threads: set[str] = set()
    job.subscribe(lambda _s: threads.add(threading.current_thread().name))
    _, ended = seen_by(job)
    gate.let_on()
    assert ended.wait(10)
    assert threads == {"tuna-jobs"}


def test_a_view_that_raises_is_dropped_and_the_work_goes_on(gate: Gate) -> None:
    job = Job(Work("a", "deploy", gate.run))
    calls: list[Snapshot] = []

    def broken(s: Snapshot) -> None:
        calls.append(s)
        raise ValueError("broken view")

    job.subscribe(broken)
    gate.let_on()
    assert job.wait(10) == "result"
    assert len(calls) == 1
    assert any("a view was dropped" in e.text for e in job.snapshot.log)


def test_cancel_lets_the_work_undo_itself(gate: Gate) -> None:
    job = Job(Work("a", "deploy", gate.run))
    assert gate.entered.wait(10)
    assert job.cancel()
    with pytest.raises(CancelledError, match="a: deploy was cancelled"):
        job.wait(10)
    assert gate.undone.is_set()
    assert job.snapshot.state == "cancelled"
    assert not job.cancel()


def test_a_failure_is_the_error_itself() -> None:
    async def fail(_report: Report) -> None:
        raise BackendError("no capacity", "try another region")

    job = Job(Work("a", "deploy", fail))
    with pytest.raises(BackendError, match="no capacity"):
        job.wait(10)
    assert job.snapshot.error is not None
    assert job.snapshot.error.hint == "try another region"


def test_an_unforeseen_failure_is_named_a_defect_and_keeps_its_cause() -> None:
    async def fail(_report: Report) -> None:
        raise KeyError("surprise")

    job = Job(Work("a", "deploy", fail))
    with pytest.raises(TunaError, match="failed unexpectedly: KeyError") as e:
        job.wait(10)
    assert isinstance(e.value.__cause__, KeyError)


async def test_a_job_can_be_awaited_without_blocking(gate: Gate) -> None:
    job = Job(Work("a", "deploy", gate.run))
    waiting = asyncio.create_task(_await(job))
    await asyncio.sleep(0)
    gate.let_on()
    assert await waiting == "result"


async def test_awaiting_a_cancelled_job_gives_our_error_and_not_a_bare_cancel(gate: Gate) -> None:
    job = Job(Work("a", "deploy", gate.run))
    job.cancel()
    with pytest.raises(CancelledError):
        await job


async def _await(job: Job) -> Any:
    return await job


def test_submitting_a_name_under_way_reattaches_to_it(gate: Gate) -> None:
    jobs = Jobs()
    first, new = jobs.submit(Work("a", "deploy", gate.run))
    again, newer = jobs.submit(Work("a", "deploy", gate.run))
    assert (new, newer) == (True, False)
    assert first is again
    gate.let_on()
    first.wait(10)
    third, newest = jobs.submit(Work("a", "deploy", gate.run))
    assert newest
    assert third is not first
    third.wait(10)


def test_cancelling_all_waits_for_the_clean_up(gate: Gate) -> None:
    jobs = Jobs()
    job, _ = jobs.submit(Work("a", "deploy", gate.run))
    assert gate.entered.wait(10)
    jobs.cancel_all(10)
    assert job.snapshot.final
    assert jobs.running() == []


def test_a_snapshot_never_changes(gate: Gate) -> None:
    job = Job(Work("a", "deploy", gate.run))
    assert gate.entered.wait(10)
    before = job.snapshot
    text = repr(before)
    gate.let_on()
    job.wait(10)
    assert repr(before) == text
    assert job.snapshot is not before
