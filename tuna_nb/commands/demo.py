"""`demo`: the whole story on this machine: deploy, traffic, a spot GPU taken away, nothing lost, the bill."""

from __future__ import annotations

import asyncio
import contextlib
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.benchmarks.load.run import run
from tuna_nb.benchmarks.load.spec import Arrivals, Lengths, LoadSpec, Prompts, Target
from tuna_nb.benchmarks.report import CONTINUED
from tuna_nb.benchmarks.rows import Row
from tuna_nb.benchmarks.story import Story
from tuna_nb.commands.context import Context
from tuna_nb.commands.cost import bill_of
from tuna_nb.commands.local import backend, preempt
from tuna_nb.deployments.apply import apply
from tuna_nb.deployments.connection import connection
from tuna_nb.deployments.destroy import destroy
from tuna_nb.deployments.plan import new_id, plan
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.tracking import take_over, tracked
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError, TunaError
from tuna_nb.jobs import Report, Work

NAME = "demo"
PER_SECOND = 8.0
MAX_TOKENS = 24
WAIT_S = 60.0

REQUEST = DeployRequest(
    service_name=NAME,
    model="Qwen/Qwen3-0.6B",
    gpu="L4",
    serverless_provider=LocalBackend.name,
    spots_cloud=LocalBackend.name,
    serverless=ServerlessScaling(concurrency=32, scaledown_window=5),
    spot=SpotScaling(min_replicas=1, max_replicas=1, target_qps=50),
    # Minutes on a real cloud, seconds here; nothing else about the story is changed.
    options={"cold_start_s": "1", "boot_s": "6", "notice_s": "5", "decode_tokens_per_s": "24"},
)


async def demo(options: Namespace, context: Context) -> Work:
    if options.requests < 1:
        raise RequestError(f"--requests is {options.requests}", "at least 1")
    workspace = context.workspace

    async def body(report: Report) -> Story:
        return await _Demo(workspace, report, options.requests).play(options.keep)

    return Work(NAME, "demo", lambda report: _begin(workspace, report, body))


async def _begin(workspace: Workspace, report: Report, body: Any) -> Story:
    await take_over(workspace, NAME, report)
    story: Story = await tracked(workspace, NAME, "demo", report, body)
    return story


@dataclass
class _Demo:
    workspace: Workspace
    report: Report
    requests: int
    rows: list[Row] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    continued: int = 0

    async def play(self, keep: bool) -> Story:
        begun = time.monotonic()
        left_over = self.workspace.store.live_deployment(NAME)
        if left_over is not None:
            self.report.note("an earlier demo was not taken down; doing that first")
            await destroy(self.workspace, left_over, self.report)
        quiet = Report(lambda **change: self.report.publish(log=change.get("log"), fact=change.get("fact")))
        planned = await plan(self.workspace, REQUEST, new_id())
        try:
            self.report.step("deploying one model on serverless and spot", 0.02)
            record = await apply(self.workspace, planned, quiet, until_spot=False)
            story = await self._traffic(record.id, begun)
        except BaseException:  # Ctrl-C, too: what was deployed must go
            if not keep:
                await self._finish(quiet)
            raise
        if keep:
            self.report.note(f"kept; `tuna destroy --service-name {NAME}` ends it")
        else:
            await self._finish(quiet)
        return story

    async def _traffic(self, deployment_id: str, begun: float) -> Story:
        record = self.workspace.store.deployment(NAME)
        link = await connection(self.workspace, record)
        router = RouterClient(
            link.base_url.removesuffix("/v1"), self.workspace.secrets.get(deployment_id, "admin_key")
        )
        self._event("the endpoint answers, from serverless; a spot GPU is booting")
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(self._watch(router))
            director = group.create_task(self._preempt_under_load(router))
            load = LoadSpec(
                Target(link.base_url, (link.model,), link.headers),
                Arrivals("constant", rate=PER_SECOND),
                Prompts(input_tokens=Lengths(16), output_tokens=Lengths(MAX_TOKENS)),
                requests=self.requests,
            )
            if (ran := await run(load, self._count)).interrupted:
                raise TunaError(ran.notes[0], "run the demo again") if ran.died else asyncio.CancelledError
            watcher.cancel()
            director.cancel()
        resumes = (await router.stats())["resumes"]
        self.continued = sum(resumes.get(way, 0) for way in CONTINUED)
        self.report.step("reading the bill", 0.9)
        bill = await bill_of(self.workspace, record)
        names = {r.name for r in self.workspace.store.resources(record.id)}
        own = await backend(self.workspace).cloud.bill()
        return Story(
            began_at=ran.began_at,
            rows=tuple(sorted(self.rows, key=lambda row: row.number)),
            events=tuple(self.events),
            continued=self.continued,
            bill=bill,
            providers_bill_usd=sum(i.usd for i in own.intervals if i.resource in names),
            seconds=time.monotonic() - begun,
        )

    def _count(self, new: Sequence[Row]) -> None:
        before = len(self.rows)
        self.rows += new
        done, failed = len(self.rows), sum(row.error is not None for row in self.rows)
        if done // 20 > before // 20 or done == self.requests or any(row.error for row in new):
            by_spot = sum(row.backend == "spot" for row in self.rows)
            self.report.step(
                f"{done} of {self.requests} requests answered, {by_spot} by spot; failed = {failed}",
                0.1 + 0.8 * done / self.requests,
            )

    async def _watch(self, router: RouterClient) -> None:
        """Say when the router's view of the spot side changes."""
        said = {
            "READY": "spot is ready: traffic moves to it",
            "DRAINING": "the spot GPU is being taken away: running streams finish, new ones go to serverless",
            "COLD": "no spot GPU: serverless answers",
            "WARMING": "the spot GPU is gone: serverless answers, and goes on with the streams that it left",
        }
        last = "WARMING"
        while True:
            state = str((await router.health())["spot_state"]).upper()
            if state != last:
                last = state
                self._event(said.get(state, f"spot is {state.lower()}"))
            await asyncio.sleep(0.1)

    async def _preempt_under_load(self, router: RouterClient) -> None:
        """Once spot carries the traffic, and a third of it has been sent, take the GPU away."""
        end = time.monotonic() + WAIT_S
        while len(self.rows) < self.requests / 3 or not (await router.health())["skyserve_ready"]:
            if time.monotonic() > end:
                raise TunaError("the spot side was not ready in time to be preempted", "run the demo again")
            await asyncio.sleep(0.1)
        replica = await preempt(self.workspace, NAME, 0, None)
        self._event(f"the cloud kills spot replica {replica}, without notice, in the middle of its streams")

    def _event(self, text: str) -> None:
        self.events.append((time.time(), text))
        self.report.note(f"» {text}")

    async def _finish(self, report: Report) -> None:
        """Take it down and see that this machine's cloud has nothing left; a cancel does not stop this."""

        async def down() -> None:
            record = self.workspace.store.live_deployment(NAME)
            if record is not None:
                self.report.step("taking everything down", 0.95)
                await destroy(self.workspace, record, report)
            cloud = backend(self.workspace).cloud
            if not await cloud.resources():
                await cloud.shutdown()

        task = asyncio.create_task(down())
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        task.result()
