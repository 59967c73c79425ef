"""`benchmark cold-start` on this machine's cloud: real containers, from nothing and from zero, and nothing left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.conftest import nothing_may_be_left
from tests.deployments.conftest import Told
from tests.deployments.leftovers import settings_of
from tests.deployments.providers import SoldOut, Stubborn
from tuna_nb import grammar
from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, LogLine, Ref, State, Status
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.benchmarks.cold_start import FRESH, WARM, ColdStartReport
from tuna_nb.commands.benchmark import benchmark
from tuna_nb.commands.benchmark.cold_start import cold_start
from tuna_nb.commands.context import Context
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, CancelledError, ConflictError, RequestError, TunaError

pytestmark = pytest.mark.e2e

QUICK = ("--scaledown-window", "0.3", "--option", "cold_start_s=0.2", "--option", "stop_grace_s=1")


@pytest.fixture
def workspace(own_data_folder: Path) -> Iterator[Workspace]:
    """Over the local cloud of the test's own folder. The test must leave nothing there."""
    made = Workspace(settings_of(own_data_folder))
    made._backends["local"] = LocalBackend(own_data_folder / "local-cloud")
    yield made
    made.close()
    nothing_may_be_left(own_data_folder)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Any:
    """install(backend, ...): these providers are there, too."""

    def add(*backends: Backend) -> None:
        entries = {b.name: EntryPoint(b.name, "x:y", registry.GROUP) for b in (*backends, LocalBackend())}
        monkeypatch.setattr(registry, "_found", lambda: entries)
        for backend in backends:
            workspace._backends[backend.name] = backend

    return add


async def measure(workspace: Workspace, *words: str, told: Told | None = None) -> ColdStartReport:
    least = ["benchmark", "cold-start", "--model", "Qwen/Qwen3-0.6B", "--gpu", "L4"]
    if "--serverless-provider" not in words:
        least += ["--serverless-provider", "local"]
    options = grammar.parse(grammar.build(), [*least, *QUICK, *words])
    work = await cold_start(options, Context(workspace))
    report: ColdStartReport = await work.run((told or Told()).report)
    return report


async def owned(workspace: Workspace, provider: str = "local") -> list[Ref]:
    return await workspace.backend(provider).list_owned()


def live(workspace: Workspace) -> list[str]:
    return [d.name for d in workspace.store.deployments() if d.destroyed_at is None]


async def test_a_fresh_deploy_and_cycles_from_zero_are_measured_and_all_is_gone(workspace: Workspace) -> None:
    report = await measure(workspace, "--repeat", "2")
    (one,) = report.providers
    assert [(c.kind, c.number) for c in one.cycles] == [(FRESH, 0), (WARM, 0), (WARM, 1)]
    for cycle in one.cycles:
        assert sum(p.ms for p in cycle.phases) == cycle.total_ms
        # The cloud tells when a container begins and serves, its log when the engine speaks: nothing is undivided.
        shown = [p.name for p in cycle.phases if p.name != "create"]
        assert shown == ["queue", "image", "weights + engine", "first token"]
        assert {p.name: p.ms for p in cycle.phases}["image"] >= 200
    assert all(c.zero is not None and c.zero.said == "idle, 0 replicas, not billing" for c in one.cycles[1:])
    assert [(s.kind, s.n) for s in one.summaries] == [(FRESH, 1), (WARM, 2)]
    assert (one.error, one.kept) == (None, False)
    assert one.usd is not None
    assert one.usd > 0
    assert (await owned(workspace), live(workspace)) == ([], [])


async def test_what_was_measured_is_kept_and_shown_again(workspace: Workspace) -> None:
    report = await measure(workspace, "--repeat", "1", "--warm-only")
    words = ["benchmark", "show", report.name]
    again = await benchmark(grammar.parse(grammar.build(), words), Context(workspace))
    assert again == report
    listed = await benchmark(grammar.parse(grammar.build(), ["benchmark", "list"]), Context(workspace))
    assert [(r.name, r.kind, r.state) for r in listed.runs] == [(report.name, "cold-start", "complete")]


async def test_each_fresh_deploy_is_one_of_its_own(workspace: Workspace) -> None:
    report = await measure(workspace, "--repeat", "2", "--fresh-only")
    assert [(c.kind, c.number) for c in report.providers[0].cycles] == [(FRESH, 0), (FRESH, 1)]
    assert len(workspace.store.deployments()) == 2
    assert (await owned(workspace), live(workspace)) == ([], [])


async def test_only_cycles_from_zero_leave_the_deploy_uncounted(workspace: Workspace) -> None:
    report = await measure(workspace, "--repeat", "1", "--warm-only")
    assert [c.kind for c in report.providers[0].cycles] == [WARM]


class Lingering(LocalBackend):
    """Says for `more_s` after its containers are gone that it still bills; `asked`: how often it was looked at."""

    name: ClassVar[str] = "lingering"
    tells_usage: ClassVar[bool] = False

    def __init__(self, folder: Path, more_s: float) -> None:
        super().__init__(folder)
        self.more_s = more_s
        self.zero_at: float | None = None
        self.told_zero = 0

    async def status(self, ref: Ref) -> Status:
        told = await super().status(ref)
        if told.state is not State.IDLE:
            self.zero_at = None
            return told
        self.zero_at = self.zero_at or time.monotonic()
        if time.monotonic() - self.zero_at < self.more_s:
            return replace(told, billing=True)
        self.told_zero += 1
        return told


async def test_a_provider_that_says_it_still_bills_is_waited_for(workspace: Workspace, install: Any) -> None:
    lingering = Lingering(Path(workspace.settings.data_dir) / "local-cloud", 1.5)
    install(lingering)
    report = await measure(workspace, "--serverless-provider", "lingering", "--repeat", "1", "--warm-only")
    cycle = report.providers[0].cycles[0]
    assert cycle.zero is not None
    assert cycle.zero.waited_s >= 1.5
    assert lingering.told_zero >= 1


async def test_a_provider_that_never_comes_to_zero_is_given_up_and_what_was_measured_kept(
    workspace: Workspace, install: Any
) -> None:
    install(Lingering(Path(workspace.settings.data_dir) / "local-cloud", 1e9))
    report = await measure(workspace, "--serverless-provider", "lingering", "--repeat", "1", "--idle-wait", "2")
    (one,) = report.providers
    assert [c.kind for c in one.cycles] == [FRESH]
    assert one.error is not None
    assert "has not scaled" in one.error
    assert "it says idle, 0 replicas, billing" in one.error
    assert (await owned(workspace, "lingering"), live(workspace)) == ([], [])


class Silent(LocalBackend):
    """Shows states by looking alone: no history of what it bills, no log, and no time of a container's begin."""

    name: ClassVar[str] = "silent"
    tells_usage: ClassVar[bool] = False

    async def status(self, ref: Ref) -> Status:
        told = await super().status(ref)
        now = time.time()
        return replace(told, replicas=tuple(replace(r, started_at=now, start_told=False) for r in told.replicas))

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        raise BackendError("silent has no logs")
        yield


async def test_what_is_seen_by_looking_says_how_inexact_it_is(workspace: Workspace, install: Any) -> None:
    install(Silent(Path(workspace.settings.data_dir) / "local-cloud"))
    report = await measure(workspace, "--serverless-provider", "silent", "--repeat", "1", "--warm-only")
    cycle = report.providers[0].cycles[0]
    assert sum(p.ms for p in cycle.phases) == cycle.total_ms
    assert not {"image", "weights", "engine"} & {p.name for p in cycle.phases}
    queue = cycle.phases[0]
    assert queue.name == "queue"
    assert 0 < queue.error_ms <= queue.ms + 1


async def test_several_providers_are_measured_and_one_that_fails_stops_no_other(
    workspace: Workspace, install: Any
) -> None:
    install(SoldOut(Path(workspace.settings.data_dir) / "local-cloud"))
    report = await measure(workspace, "--serverless-provider", "local,sold-out", "--repeat", "1")
    by_name = {p.provider: p for p in report.providers}
    assert len(by_name["local"].cycles) == 2
    assert by_name["sold-out"].cycles == ()
    assert "has no L4 free" in str(by_name["sold-out"].error)
    assert (await owned(workspace), live(workspace)) == ([], [])


async def test_a_deploy_that_fails_is_told_and_leaves_nothing(workspace: Workspace) -> None:
    with pytest.raises(TunaError, match="can't start"):
        await measure(workspace, "--option", "engine_args=--die-at-start")
    assert (await owned(workspace), live(workspace)) == ([], [])


@pytest.mark.parametrize(
    "moment", ["serverless on local", "first answer", "waiting until local says", "one request", "taking it down"]
)
async def test_a_cancel_leaves_nothing_whenever_it_comes(workspace: Workspace, moment: str) -> None:
    told = Told()
    running = asyncio.create_task(measure(workspace, "--repeat", "1", told=told))
    async with asyncio.timeout(60):
        while moment not in told:
            assert not running.done(), told.lines
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises((CancelledError, asyncio.CancelledError)):
            await running
    assert (await owned(workspace), live(workspace)) == ([], [])


async def test_a_budget_below_what_it_is_reckoned_to_cost_creates_nothing(workspace: Workspace) -> None:
    with pytest.raises(RequestError, match="above the budget"):
        await measure(workspace, "--budget", "0.0001")
    assert (await owned(workspace), workspace.store.deployments()) == ([], [])


async def test_a_budget_ends_what_takes_longer_than_it_was_reckoned_to(workspace: Workspace) -> None:
    # 0.8 USD an hour by the local price list: reckoned are 2 * 10 s, and 25 s are paid for; a start takes 60 s.
    report = asyncio.create_task(
        measure(workspace, "--repeat", "1", "--option", "serverless_price_per_hour_usd=36",
                "--option", "cold_start_s=60", "--budget", "0.21")
    )  # fmt: skip
    began = time.monotonic()
    with pytest.raises(TunaError, match=r"the budget of \$0.21 is used up"):
        await report
    assert time.monotonic() - began < 50
    assert (await owned(workspace), live(workspace)) == ([], [])


async def test_what_could_not_be_taken_down_is_said(workspace: Workspace, install: Any) -> None:
    stubborn = Stubborn(Path(workspace.settings.data_dir) / "local-cloud")
    install(stubborn)
    report = await measure(workspace, "--serverless-provider", "stubborn", "--repeat", "1")
    (one,) = report.providers
    assert len(one.cycles) == 2
    assert one.kept
    assert "503 to DELETE" in str(one.left)
    assert live(workspace) == ["cold-start-stubborn"]
    with pytest.raises(ConflictError, match="from an earlier run"):
        await measure(workspace, "--serverless-provider", "stubborn")
    stubborn.refuses = False
    await _destroy(workspace)


async def test_a_cancel_says_what_it_could_not_take_down(workspace: Workspace, install: Any) -> None:
    stubborn = Stubborn(Path(workspace.settings.data_dir) / "local-cloud")
    install(stubborn)
    told = Told()
    running = asyncio.create_task(measure(workspace, "--serverless-provider", "stubborn", told=told))
    async with asyncio.timeout(60):
        while "waiting until stubborn" not in told:
            assert not running.done(), told.lines
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(CancelledError, match=r"could not be taken down: .*503 to DELETE") as cancelled:
            await running
    assert "tuna destroy --service-name cold-start-stubborn" in str(cancelled.value.hint)
    stubborn.refuses = False
    await _destroy(workspace)


async def test_no_teardown_leaves_it_serving(workspace: Workspace) -> None:
    report = await measure(workspace, "--repeat", "1", "--no-teardown")
    assert report.providers[0].kept
    assert live(workspace) == ["cold-start-local"]
    await _destroy(workspace)


async def _destroy(workspace: Workspace) -> None:
    from tests.deployments.lives import destroy

    for name in live(workspace):
        await destroy(workspace, name)
