"""`benchmark cold-start`: deployed, measured from nothing and from zero, and taken down again whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tuna_nb.backends.base import Kind, Ref, ServerlessScaling
from tuna_nb.benchmarks.cold_start import (
    CREATED,
    FRESH,
    KIND,
    WARM,
    ColdStartReport,
    Cycle,
    Mark,
    ProviderStarts,
    Zero,
    phases,
)
from tuna_nb.benchmarks.kept import Shelf
from tuna_nb.commands.benchmark.cold_watch import Watch, wait_for_zero
from tuna_nb.commands.benchmark.first_token import first_token
from tuna_nb.commands.context import Context
from tuna_nb.commands.cost import bill_of
from tuna_nb.commands.deploy import provider_settings
from tuna_nb.deployments.apply import ASKING, FIRST_ANSWER, apply
from tuna_nb.deployments.connection import connection
from tuna_nb.deployments.destroy import destroy
from tuna_nb.deployments.keeping.allowance import Wanted, before_deploy
from tuna_nb.deployments.keeping.watch import resource_ref
from tuna_nb.deployments.plan import SERVERLESS, DeploymentPlan, new_id, plan, require_set_up
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.tracking import tracked
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, CancelledError, ConflictError, EngineError, RequestError, TunaError
from tuna_nb.jobs import Report, Work
from tuna_nb.records import DeploymentRecord

NAME: Final = "cold-start"
EXPECTED_START_S: Final = 300.0
"""What a start is reckoned with beforehand: a plain vLLM container takes one to ten minutes."""
PRETENDED_START_S: Final = 10.0
IDLE_SLACK_S: Final = 120.0
"""A provider may take so much longer than the window to scale down, and to say so."""
TEARDOWN_SHARE: Final = 0.05
"""Of a budget, kept for taking everything down."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is done at each provider. kinds: which cycles are measured. Seconds throughout."""

    repeat: int
    kinds: frozenset[str]
    idle_wait_s: float
    start_timeout_s: float
    window_s: float
    teardown: bool

    def expected_s(self, pretends: bool) -> float:
        """How long a deployment is up, by what starts are reckoned with."""
        start = PRETENDED_START_S if pretends else EXPECTED_START_S
        if self.kinds == {FRESH}:
            return self.repeat * start
        return start + self.repeat * (self.window_s + start)


async def cold_start(options: Namespace, context: Context) -> Work:
    """Everything that can be wrong is said before anything is created, what it may cost too."""
    workspace = context.workspace
    course = _course(options)
    asked = time.time()
    if options.name is not None:
        Shelf(workspace.settings).check(options.name)
    plans = await _plans(workspace, options, course)
    expected = _expected(workspace, plans, course)
    budget = options.budget
    if budget is not None:
        if expected is None:
            raise RequestError(
                "a price is unknown, so no budget can be held", "leave --budget out, or name a provider"
            )
        if expected > budget:
            raise RequestError(
                f"it is reckoned to cost ${expected:.2f}, above the budget of ${budget:.2f}",
                "raise --budget, or lower --repeat",
            )
    notes: dict[str, None] = {}
    for number, one in enumerate(plans):
        name = one.request.service_name
        if workspace.has_records() and workspace.store.live_deployment(name) is not None:
            raise ConflictError(
                f"{name} is there from an earlier run", f"`tuna destroy --service-name {name}` takes it down"
            )
        wanted = None if budget is None else Wanted(budget, action="destroy")
        # Its own budget is for minutes; an hour of the worst case, as a deploy's has to last, is not wanted.
        notes |= dict.fromkeys(before_deploy(workspace, name, None, None, one.worst_case_usd_per_hour))
        await require_set_up(workspace, one)
        # Held by the process that looks after a deployment, too, should this one die.
        kept = None if wanted is None else wanted.record(one.deployment_id, asked)
        plans[number] = replace(one, budget=kept)

    async def body(report: Report) -> ColdStartReport:
        for note in notes:
            report.note(note)
        rate = _rate(plans)
        report.note(_stated(plans, rate, expected, budget))
        report.fact("worst case", "unknown" if rate is None else f"${rate:.2f} per hour")
        report.fact("reckoned", "unknown" if expected is None else f"${expected:.3f}")
        made = _Benchmark(workspace, plans, course, report, budget, expected, asked, options.name)
        return await made.run()

    return Work(NAME, "benchmark", lambda report: tracked(workspace, NAME, "benchmark", report, body), True)


def _course(options: Namespace) -> Course:
    """Raises RequestError."""
    if options.repeat < 1:
        raise RequestError(f"--repeat is {options.repeat}", "at least 1")
    if options.budget is not None and not options.budget > 0:
        raise RequestError(f"--budget is {options.budget:g}", "more than 0")
    window = options.scaledown_window
    idle_wait = window + IDLE_SLACK_S if options.idle_wait is None else options.idle_wait
    for flag, value in (("--idle-wait", idle_wait), ("--start-timeout", options.start_timeout)):
        if not 0 < value < float("inf"):
            raise RequestError(f"{flag} is {value:g}", "a number of seconds above 0")
    kinds = frozenset({FRESH} if options.fresh_only else {WARM} if options.warm_only else {FRESH, WARM})
    return Course(options.repeat, kinds, idle_wait, options.start_timeout, window, not options.no_teardown)


async def _plans(workspace: Workspace, options: Namespace, course: Course) -> list[DeploymentPlan]:
    """One for each provider, nothing created. Raises RequestError."""
    names: list[str | None] = [None]
    if options.serverless_provider is not None:
        names = list(dict.fromkeys(n.strip() for n in options.serverless_provider.split(",") if n.strip()))
        if not names:
            raise RequestError("--serverless-provider names none", "for example --serverless-provider modal,runpod")
    settings = provider_settings(options)
    if len(names) > 1:
        known = {n: workspace.backend(n or "").options for n in names}
        for key in settings:
            if not any(key in own for own in known.values()):
                raise RequestError(f"none of {', '.join(str(n) for n in names)} has an option {key!r}")
    made = []
    for name in names:
        own = settings
        if len(names) > 1:
            own = {k: v for k, v in settings.items() if k in workspace.backend(name or "").options}
        request = DeployRequest(
            service_name=f"{NAME}-{name or 'cheapest'}",
            model=options.model,
            gpu=options.gpu,
            gpu_count=options.gpu_count,
            serverless_provider=name,
            tp_size=options.tp_size,
            max_model_len=options.max_model_len,
            cold_start_mode=options.cold_start_mode,
            serverless=ServerlessScaling(scaledown_window=course.window_s),
            serverless_only=True,
            engine_cmd=options.engine_cmd,
            image=options.image,
            engine_args=options.engine_args,
            health_path=options.health_path,
            quantization=options.quantization,
            options=own,
        )
        made.append(await plan(workspace, request, new_id()))
    return made


def _stated(
    plans: list[DeploymentPlan],
    rate: float | None,
    expected: float | None,
    budget: float | None,
) -> str:
    """What is about to be spent, in words."""
    where = " and ".join(one.serverless_provider for one in plans)
    if rate is None or expected is None:
        return f"{where}: a price is unknown, and so is what this will cost"
    cap = "no budget is set" if budget is None else f"all is taken down before ${budget:.2f}"
    return f"{where}: reckoned ${expected:.4f}, at a worst case of ${rate:.2f} per hour; {cap}"


def _rate(plans: list[DeploymentPlan]) -> float | None:
    rates = [one.worst_case_usd_per_hour for one in plans]
    return None if any(r is None for r in rates) else sum(r or 0 for r in rates)


def _expected(workspace: Workspace, plans: list[DeploymentPlan], course: Course) -> float | None:
    """USD: each at its worst case for as long as it is reckoned to be up."""
    total = 0.0
    for one in plans:
        if (rate := one.worst_case_usd_per_hour) is None:
            return None
        total += rate * course.expected_s(workspace.backend(one.serverless_provider).pretends) / 3600
    return total


@dataclass
class _Benchmark:
    """All providers side by side; what one of them fails at does not stop the others."""

    workspace: Workspace
    plans: list[DeploymentPlan]
    course: Course
    report: Report
    budget: float | None
    expected: float | None
    at: float
    name: str | None = None

    async def run(self) -> ColdStartReport:
        begun = time.monotonic()
        limit_s = None
        if self.budget is not None and (rate := _rate(self.plans)):
            limit_s = (1 - TEARDOWN_SHARE) * self.budget / rate * 3600
        tellers = [
            _Starts(self.workspace, one, self.course, self.report, limit_s, self.budget) for one in self.plans
        ]
        # Not a TaskGroup: one that fails must not cancel the others, and a cancel waits until all have cleaned up.
        try:
            outcomes = await asyncio.gather(*(one.run() for one in tellers), return_exceptions=True)
        except asyncio.CancelledError:
            for one in tellers:
                if one.left is not None and one.error is not None:
                    raise CancelledError(f"{NAME}: cancelled, but {one.error.message}", one.error.hint) from None
            raise CancelledError(f"{NAME}: cancelled; everything it had created is gone") from None
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        providers = tuple(o for o in outcomes if isinstance(o, ProviderStarts))
        if not any(p.cycles for p in providers) and (error := next(t.error for t in tellers if t.error)):
            raise error
        made = ColdStartReport(
            self.plans[0].request.model,
            self.plans[0].request.gpu,
            self.at,
            time.monotonic() - begun,
            providers,
            self.expected,
            self.budget,
        )
        return await asyncio.to_thread(self._keep, made)

    def _keep(self, made: ColdStartReport) -> ColdStartReport:
        shelf, where = Shelf(self.workspace.settings), ",".join(p.provider for p in made.providers)
        named = replace(made, name=self.name or shelf.new_name(self.at, f"{NAME}-{where}"))
        target = {"base_url": where, "models": [made.model]}
        shelf.keep(KIND, named.name, {"began_at": self.at, "spec": {"target": target}}, named)
        return named


@dataclass
class _Starts:
    """One provider's cycles, on deployments that never outlive them."""

    workspace: Workspace
    plan: DeploymentPlan
    course: Course
    report: Report
    limit_s: float | None
    budget: float | None
    cycles: list[Cycle] = field(default_factory=list)
    error: TunaError | None = None
    usd: float | None = 0.0
    left: str | None = None
    _record: DeploymentRecord | None = None

    @property
    def provider(self) -> str:
        return self.plan.serverless_provider

    async def run(self) -> ProviderStarts:
        limit = asyncio.timeout(self.limit_s)
        try:
            async with limit:
                await self._measure()
        except TimeoutError:
            self._over_budget()
        except CancelledError:
            if not limit.expired():
                raise
            self._over_budget()
        except TunaError as e:
            self.error = e
            self.report.note(f"{self.provider}: {e.message}")
        return ProviderStarts(
            self.provider,
            self.plan.request.service_name,
            self.plan.worst_case_usd_per_hour,
            tuple(self.cycles),
            self.workspace.backend(self.provider).poll_s,
            self.usd,
            None if self.error is None else self.error.message,
            kept=self._record is not None,
            left=self.left,
        )

    def _over_budget(self) -> None:
        self.error = TunaError(f"stopped: at its worst case the budget of ${self.budget:.2f} is used up")
        self.report.note(f"{self.provider}: {self.error.message}")

    async def _measure(self) -> None:
        fresh_only = self.course.kinds == {FRESH}
        for number in range(self.course.repeat if fresh_only else 1):
            last = number == self.course.repeat - 1 or not fresh_only
            try:
                cycle = await self._fresh(number)
                if FRESH in self.course.kinds:
                    self._keep(cycle)
                if WARM in self.course.kinds:
                    for turn in range(self.course.repeat):
                        self._keep(await self._warm(turn))
            except BaseException:  # Ctrl-C, too: what was deployed must go
                await self._down(keep=False)
                raise
            await self._down(keep=last and not self.course.teardown)

    async def _fresh(self, number: int) -> Cycle:
        """Deploy; what `apply` reports is when the provider was asked, when it answered, and the first token."""
        if number:
            # The name of what is gone is not used again: some providers take minutes to forget one.
            again = await plan(self.workspace, self.plan.request, new_id())
            self.plan = replace(again, budget=self.plan.budget)
        self._step(f"fresh deploy {number + 1}")
        stamps: dict[str, float] = {}
        watch = Watch(self._backend, self._ref)
        looking = contextlib.AsyncExitStack()
        started = asyncio.Event()

        def publish(**change: Any) -> None:
            step, fact = change.get("step") or "", change.get("fact") or ("",)
            for name, matches in (
                ("asked", step.startswith(ASKING)),
                ("created", step == FIRST_ANSWER),
                ("answered", fact[0] == "endpoint"),
            ):
                if matches:
                    stamps.setdefault(name, time.time())
            if "asked" in stamps and not started.is_set():
                watch.began_at = stamps["asked"]
                started.set()
            if (text := change.get("log")) is not None:
                self.report.note(f"{self.provider}: {text}")

        async def look() -> None:
            await started.wait()
            await looking.enter_async_context(watch.looking())
            await asyncio.Event().wait()

        looker = asyncio.create_task(look())
        try:
            self._record = await apply(self.workspace, self.plan, Report(publish), until_spot=False)
        finally:
            looker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looker
            await looking.aclose()
        asked, answered = stamps["asked"], stamps["answered"]
        created = Mark(CREATED, round((stamps["created"] - asked) * 1000), 0, "our own call")
        made = await self._cycle(FRESH, number, watch, answered, marks=(created,))
        return replace(
            made,
            notes=(
                *made.notes,
                "its first token is the whole answer of one token that a deploy ends with",
            ),
        )

    async def _warm(self, number: int) -> Cycle:
        self._step(
            f"cycle {number + 1} of {self.course.repeat}: waiting until {self.provider} says that nothing runs"
        )
        zero = await wait_for_zero(self._backend, self._ref(), self.course.idle_wait_s)
        assert self._record is not None
        link = await connection(self.workspace, self._record)
        self._step(f"cycle {number + 1} of {self.course.repeat}: at zero ({zero.said}); one request")
        watch = Watch(self._backend, self._ref, time.time())
        begun = time.monotonic()
        asking = asyncio.create_task(first_token(link, self.course.start_timeout_s))
        async with watch.looking():
            try:
                while not asking.done():
                    await asyncio.wait({asking}, timeout=self._backend.poll_s)
                    if watch.failed and not asking.done():
                        raise EngineError(f"{self.provider}: the engine can't start: {watch.failed}")
            finally:
                asking.cancel()
                await asyncio.wait({asking})
        came = asking.result()
        return await self._cycle(
            WARM, number, watch, watch.began_at + (came.at - begun), zero=zero, asked=came.asked
        )

    async def _cycle(
        self,
        kind: str,
        number: int,
        watch: Watch,
        ended_at: float,
        *,
        zero: Zero | None = None,
        asked: int = 1,
        marks: tuple[Mark, ...] = (),
    ) -> Cycle:
        total = round((ended_at - watch.began_at) * 1000)
        made, notes = phases((*marks, *await watch.marks(ended_at)), total, fresh=kind == FRESH)
        if watch.troubles:
            notes = (*notes, f"{self.provider} could not be asked {watch.troubles} times meanwhile")
        return Cycle(kind, number, watch.began_at, total, made, zero, asked, notes)

    def _keep(self, cycle: Cycle) -> None:
        self.cycles.append(cycle)
        parts = ", ".join(f"{p.name} {p.ms / 1000:.2f}" for p in cycle.phases)
        self.report.note(f"{self.provider}: {cycle.kind} {cycle.number + 1}: {cycle.ttft_s:.2f} s ({parts})")

    def _step(self, text: str) -> None:
        done = len(self.cycles) / (self.course.repeat + (self.course.kinds == {FRESH, WARM}))
        self.report.step(f"{self.provider}: {text}", 0.05 + 0.85 * done)

    @property
    def _backend(self) -> Any:
        return self.workspace.backend(self.provider)

    def _ref(self) -> Ref:
        """By its record, where its provider's own id is as soon as it is known."""
        record = self.workspace.store.live_deployment(self.plan.request.service_name)
        if record is not None:
            for resource in self.workspace.store.resources(record.id):
                if resource.role == SERVERLESS:
                    return resource_ref(resource)
        one = self.plan.serverless.request
        return Ref(self.provider, Kind.SERVERLESS, one.name, None, one.deployment_id)

    async def _down(self, keep: bool) -> None:
        """Gone, and seen gone; a cancel does not stop this. What it has cost is read on the way."""
        name = self.plan.request.service_name
        record = self.workspace.store.live_deployment(name)
        if keep and record is not None:
            self.report.note(f"{name} is kept; `tuna destroy --service-name {name}` ends it")
            await self._cost(record)
            return
        if record is not None:
            self._step("taking it down")
            task = asyncio.create_task(destroy(self.workspace, record, Report(self._quiet)))
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
            if (error := task.exception()) is not None:
                self.left = getattr(error, "message", str(error))
                self.error = TunaError(
                    f"{name} could not be taken down: {self.left}",
                    f"`tuna destroy --service-name {name}` tries again",
                )
                raise self.error from error
        gone, self._record = self._record or record, None
        if gone is not None:
            await self._cost(gone)

    async def _cost(self, record: DeploymentRecord) -> None:
        try:
            bill = await bill_of(self.workspace, self.workspace.store.deployment(record.name))
            self.usd = None if self.usd is None else self.usd + bill.usd
        except BackendError:
            self.usd = None

    def _quiet(self, *, log: str | None = None, **_: Any) -> None:
        if log is not None:
            self.report.note(f"{self.provider}: {log}")
