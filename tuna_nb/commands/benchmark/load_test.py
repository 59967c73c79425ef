"""`benchmark load-test`: sends it, tells how it goes, keeps what came."""

from __future__ import annotations

import asyncio
import contextlib
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tuna_nb.benchmarks import rows as rows_files
from tuna_nb.benchmarks.aiperf import Beside
from tuna_nb.benchmarks.kept import Keeping, Plan, Shelf, at_level, step_of
from tuna_nb.benchmarks.live import Live
from tuna_nb.benchmarks.load.spec import LoadSpec
from tuna_nb.benchmarks.report import LoadReport, Mark, RunCost, Step
from tuna_nb.benchmarks.rows import Row
from tuna_nb.commands.benchmark import load_spec, other_engine, report_file, write_page
from tuna_nb.commands.context import Context
from tuna_nb.commands.cost import bill_of_all
from tuna_nb.commands.local import preempt, spot_side
from tuna_nb.deployments.connection import connection
from tuna_nb.deployments.moments import read_mark
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.tracking import tracked
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import CancelledError, TunaError, UsageError
from tuna_nb.jobs import Report, Work
from tuna_nb.records import DeploymentRecord

TELL_S: Final = 0.5
LOG_S: Final = 15.0
ASK_S: Final = 20.0
"""Longest wait for the bill and the router's counters, before and after."""
AGAIN_S: Final = 1.0
_MARKS: Final = ("preemption", "state", "breaker", "limit", "backend", "gap")


async def load_test(options: Namespace, context: Context) -> Work:
    """Raises UsageError, NotFoundError, ConflictError; nothing has been sent or made then."""
    from tuna_nb.benchmarks.load.run import check

    workspace, shelf = context.workspace, Shelf(context.workspace.settings)
    levels = load_spec.levels(options)
    limits = load_spec.slo(options.slo)
    report_file(options.report)
    if options.rows is not None:
        if len(levels) > 1:
            raise UsageError("--rows takes one load", "a sweep keeps a file a step; `tuna benchmark show` has them")
        rows_files.check_format(Path(options.rows).expanduser())
    record = None
    if options.url is not None:
        target = load_spec.url_target(options)
    else:
        if options.key_variable is not None:
            raise UsageError("--key-variable goes with --url", "the key of a deployment is known")
        record = workspace.store.deployment(options.service_name)
        link = await connection(workspace, record)
        models = tuple(options.model) or (link.model,)
        target = load_spec.target_of(options, link.base_url, models, link.headers)
    spec = load_spec.load_spec(options, target, levels)
    check(spec)
    preempt_at_s = None
    if options.preempt_at is not None:
        preempt_at_s = load_spec.span("--preempt-at", options.preempt_at)
        if record is None:
            raise UsageError("--preempt-at goes with --service-name", "only the local cloud preempts to order")
        spot_side(workspace, record)
    notes = other_engine.check(options, workspace.settings, spec)
    name = options.name or shelf.new_name(time.time(), options.service_name)
    shelf.check(name)
    sweep = ("concurrency" if spec.arrivals.kind == "closed" else "rate") if levels else None
    plan = Plan(name, spec, options.service_name, limits, sweep, levels)

    async def body(report: Report) -> LoadReport:
        made = await _Run(
            workspace,
            shelf,
            plan,
            record,
            report,
            context,
            options.engine,
            notes=list(notes),
            preempt_at_s=preempt_at_s,
        ).play()
        if options.rows is not None:
            await asyncio.to_thread(rows_files.write, Path(options.rows).expanduser(), made.step.rows)
        if options.report is not None:
            await asyncio.to_thread(write_page, options.report, made, context)
        return made

    async def run(report: Report) -> LoadReport:
        made: LoadReport = await tracked(workspace, name, "benchmark", report, body)
        return made

    return Work(name, "benchmark", run, shows_result=True)


@dataclass
class _Run:
    workspace: Workspace
    shelf: Shelf
    plan: Plan
    record: DeploymentRecord | None
    report: Report
    context: Context
    engine: str = "native"
    beside: tuple[Beside, ...] = ()
    steps: list[Step] = field(default_factory=list)
    marks: list[tuple[float, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    preempt_at_s: float | None = None

    async def play(self) -> LoadReport:
        """Raises CancelledError where it was interrupted, after what came is kept."""
        began_at, begun = time.time(), time.monotonic()
        router = self._router()
        spent, resumes = await asyncio.gather(self._spent(), self._resumes(router))
        keeping = self.shelf.begin(self.plan, began_at)
        beside = [asyncio.create_task(self._preempt())]
        if router is not None:
            beside.append(asyncio.create_task(self._follow(router)))
        ended: BaseException | None = None
        try:
            await self._all_steps(keeping)
        except (asyncio.CancelledError, TunaError) as e:
            ended = e
        finally:
            keeping.close()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        after, later = await asyncio.gather(self._spent(), self._resumes(router))
        if ended is None and self.engine != "native":
            ended = await self._other_engine()
        made = LoadReport(
            self.plan.name,
            self.plan.spec,
            self.plan.service,
            self.plan.slo,
            tuple(self.steps),
            self.plan.sweep,
            began_at=began_at,
            took_s=time.monotonic() - begun,
            interrupted=ended is not None,
            cost=self._cost(spent, after),
            marks=self._told_marks(),
            resumes=None if resumes is None or later is None else _grown(resumes, later),
            notes=tuple(self.notes),
            beside=self.beside,
        )
        made = await asyncio.to_thread(self._keep, keeping, made)
        if ended is None:
            return made
        raise self._stopped(made, ended) from None

    async def _other_engine(self) -> BaseException | None:
        """After ours, and after the cost of ours is known. What goes wrong with it takes nothing from ours."""
        try:
            self.beside, notes = await other_engine.beside(
                self.plan.spec, self.steps[-1].rows, self.workspace.settings, self.report
            )
            self.notes += notes
        except asyncio.CancelledError as e:
            return e
        except TunaError as e:
            self.notes.append(f"aiperf: {e.message}")
        return None

    def _keep(self, keeping: Keeping, made: LoadReport) -> LoadReport:
        return keeping.end(made, None if self.context.page is None else self.context.page(made))

    def _stopped(self, made: LoadReport, why: BaseException) -> TunaError:
        f = made.figures
        kept = f"{f.whole} whole answers and {f.failed} failed are kept as {made.name!r}"
        hint = f"`tuna benchmark show {made.name}` shows them"
        if isinstance(why, TunaError) and not isinstance(why, CancelledError):
            return type(why)(f"{why.message}; {kept}", f"{why.hint}; {hint}" if why.hint else hint)
        return CancelledError(f"{made.name}: interrupted after {made.took_s:.0f} s; {kept}", hint)

    async def _all_steps(self, keeping: Keeping) -> None:
        levels: Sequence[float | None] = self.plan.levels or (None,)
        for number, level in enumerate(levels):
            spec = at_level(self.plan, level)
            named = "" if level is None else f"{self.plan.sweep} {level:g}: "
            self.report.step(f"{named}sending to {self.plan.service or spec.target.base_url}", number / len(levels))
            await self._step(keeping, spec, level, (number, len(levels)))

    async def _step(self, keeping: Keeping, spec: LoadSpec, level: float | None, place: tuple[int, int]) -> None:
        from tuna_nb.benchmarks.load.run import run

        live, rows = Live(spec), list[Row]()

        def on_rows(new: Sequence[Row]) -> None:
            rows.extend(new)
            live.add(new)
            keeping.rows(new, place[0])

        began_at, begun = time.time(), time.monotonic()
        teller = asyncio.create_task(self._tell(live, level, place))
        running, cancelled = asyncio.create_task(run(spec, on_rows)), False
        try:
            while not running.done():
                try:
                    await asyncio.wait({running})
                except asyncio.CancelledError:
                    # It ends itself, and its last rows are still to come.
                    cancelled = True
                    running.cancel()
            ran = running.result()
        except BaseException:
            self.steps.append(replace(step_of(spec, rows, level, self.plan.slo, True), began_at=began_at,
                                      took_s=time.monotonic() - begun))  # fmt: skip
            raise
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)
        early = cancelled or ran.interrupted
        made = await asyncio.to_thread(step_of, spec, ran.rows, level, self.plan.slo, early)
        self.steps.append(
            replace(made, lag=ran.lag, began_at=ran.began_at, took_s=ran.took_s, notes=tuple(ran.notes))
        )
        if cancelled:
            raise asyncio.CancelledError
        if ran.interrupted:
            raise TunaError(next(iter(ran.notes), "the load generator ended early"), "run it again")

    async def _tell(self, live: Live, level: float | None, place: tuple[int, int]) -> None:
        """How it goes, some times a second; in the log, for who has no bar, some times a minute."""
        begun = logged = time.monotonic()
        named = "" if level is None else f"{self.plan.sweep} {level:g}: "
        while True:
            await asyncio.sleep(TELL_S)
            now = time.monotonic()
            said = named + live.said(now - begun)
            self.report.publish(step=said, fraction=(place[0] + live.fraction(now - begun)) / place[1])
            if now - logged >= LOG_S:
                logged = now
                self.report.note(said)

    def _router(self) -> RouterClient | None:
        if self.record is None or ROUTER not in {r.role for r in self.workspace.store.resources(self.record.id)}:
            return None
        key = self.workspace.secrets.get(self.record.id, "admin_key")
        return RouterClient(self.plan.spec.target.base_url.removesuffix("/v1"), key)

    async def _follow(self, router: RouterClient) -> None:
        """Note what happens at the router from now on."""
        last: int | None = None
        while True:
            try:
                async with contextlib.aclosing(router.events(last)) as events:
                    async for event in events:
                        last = event.id if event.id is not None else last
                        mark = read_mark(event.kind, {"time": time.time(), **event.data})
                        if mark is not None and mark.kind in _MARKS:
                            self.marks.append((mark.at, mark.kind, mark.said))
                            if mark.kind == "preemption":
                                self.report.note(mark.said)
            except TunaError as e:
                note = f"for a while the router told no events: {e.message}"
                if note not in self.notes:
                    self.notes.append(note)
            await asyncio.sleep(AGAIN_S)

    def _told_marks(self) -> tuple[Mark, ...]:
        if not self.steps:
            return ()
        first = self.steps[0].began_at + self.steps[0].figures.began_s
        return tuple(Mark(at - first, kind, said) for at, kind, said in sorted(self.marks))

    async def _preempt(self) -> None:
        if self.preempt_at_s is None or self.record is None:
            return
        await asyncio.sleep(self.preempt_at_s)
        try:
            replica = await preempt(self.workspace, self.record.name, 0, None)
        except TunaError as e:
            self.notes.append(f"no spot replica was taken away: {e.message}")
        else:
            self.report.note(f"spot replica {replica} is being taken away, without notice")

    async def _resumes(self, router: RouterClient | None) -> dict[str, int] | None:
        if router is None:
            return None
        try:
            async with asyncio.timeout(ASK_S):
                return {str(k): int(v) for k, v in (await router.stats())["resumes"].items()}
        except (TunaError, TimeoutError) as e:
            self.notes.append(f"resumed streams are not counted: {e or 'the router did not answer in time'}")
            return None

    async def _spent(self) -> float | None:
        """What the deployment has cost up to now; None where it can't be told."""
        if self.record is None:
            return None
        try:
            async with asyncio.timeout(ASK_S):
                bill = await bill_of_all(self.workspace, [self.record], self.record.name, compared=False)
        except (TunaError, TimeoutError) as e:
            self.notes.append(f"the cost of the run is not known: {e or 'its providers did not answer in time'}")
            return None
        return None if bill.unknown_hours else bill.usd

    def _cost(self, before: float | None, after: float | None) -> RunCost:
        if self.record is None:
            return RunCost(None, note="what this endpoint costs is not known here")
        if before is None or after is None:
            return RunCost(None, note="what runs has no known price, or could not be asked")
        usd = max(0.0, after - before)
        whole = sum(step.figures.whole for step in self.steps)
        tokens = sum(step.figures.input_tokens + step.figures.output_tokens for step in self.steps)
        return RunCost(
            usd, usd / whole * 1000 if whole else None, usd / tokens * 1e6 if tokens else None,
            "all that was billed meanwhile, idle time included",
        )  # fmt: skip


def _grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """A router that was restarted meanwhile counts from 0."""
    return {k: n - before.get(k, 0) if n >= before.get(k, 0) else n for k, n in after.items()}
