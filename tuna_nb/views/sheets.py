"""What a person sees of a result, before it is text or HTML: a title, facts, a table, notes.

One mapping per kind of result, so that terminal, notebook and saved file say the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tuna_nb.costs.unserving import said

if TYPE_CHECKING:
    from tuna_nb.backends.base import Check
    from tuna_nb.benchmarks.cold_start import ColdStartReport
    from tuna_nb.benchmarks.story import Story
    from tuna_nb.catalog.fit import FitList
    from tuna_nb.catalog.listing import PriceList
    from tuna_nb.costs.bill import Bill
    from tuna_nb.costs.budget_list import BudgetList
    from tuna_nb.deployments.checks import ProviderChecks
    from tuna_nb.deployments.connection import Connection
    from tuna_nb.deployments.destroy import Removed
    from tuna_nb.deployments.plan import DeploymentPlan
    from tuna_nb.deployments.routers import RouterReport
    from tuna_nb.deployments.status import DeploymentStatus, Fleet
    from tuna_nb.errors import TunaError
    from tuna_nb.records import JobRecord


@dataclass(frozen=True, slots=True)
class Sheet:
    """tone: good, bad, busy or plain; says how the title is coloured, never the only sign of it."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    tone: str = "plain"


def sheet(result: Any, now: float | None = None) -> Sheet:
    """The sheet of any command's result. Raises TypeError for one that has none."""
    now = time.time() if now is None else now
    if isinstance(result, list) and result:
        result = tuple(result)
        kind = f"{type(result[0]).__name__}s"
    else:
        kind = type(result).__name__
    make = _SHEETS.get(kind)
    if make is None:
        raise TypeError(f"no view for {kind}")
    return make(result, now)


def usd(amount: float | None, digits: int = 4) -> str:
    """Dollars for reading; unknown stays unknown."""
    return "unknown" if amount is None else f"${amount:,.{digits}f}"


def age(seconds: float) -> str:
    """A span in its two largest units, e.g. `3m 12s`."""
    whole = int(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // below}{small}"
    return f"{whole}s"


def _tone(state: str) -> str:
    if state in ("running", "ready", "done"):
        return "good"
    if state in ("failed", "degraded", "interrupted", "unknown"):
        return "bad"
    return "busy" if state in ("deploying", "destroying", "starting", "waiting", "draining") else "plain"


def _status(s: DeploymentStatus, now: float) -> Sheet:
    facts = [("model", s.model), ("gpu", s.gpu), ("age", age(now - s.created_at))]
    if s.endpoint_url:
        facts.append(("endpoint", f"{s.endpoint_url}/v1"))
    facts.append(("costs now", f"{usd(s.rate_usd_per_hour, 3)} per hour"))
    if s.spot_state:
        facts.append(("spot", s.spot_state.lower()))
    if s.routing and s.routing["total"]:
        r = s.routing
        facts.append(
            (
                "answered by",
                f"spot {r['pct_spot']:.0f} %, serverless {r['pct_serverless']:.0f} % of {r['total']} requests",
            )
        )
    rows = tuple(
        (
            c.role,
            c.provider,
            str(c.state),
            str(len(c.replicas) or "-"),
            "yes" if c.billing else "no",
            usd(c.rate_usd_per_hour, 3),
            c.detail,
        )
        for c in s.components
    )
    wrong = tuple(said(one, s.name) for one in s.unserving)
    notes = wrong + tuple(n for n in (s.error and f"last error: {s.error}", s.hint and f"hint: {s.hint}") if n)
    state = f"{s.state}: {s.step}" if s.step else s.state
    return Sheet(
        f"{s.name} is {state}",
        tuple(facts),
        ("part", "provider", "state", "replicas", "billing", "$/h now", "detail") if rows else (),
        rows,
        notes,
        "bad" if s.unserving else _tone(s.state),
    )


def _router(r: RouterReport, now: float) -> Sheet:
    s = r.state
    facts = [("host", s.host if s.address is None else f"{s.host} ({s.address})")]
    if s.url is not None:
        facts.append(("url", s.url))
        there, here = (f"{v} ({b})" if b else v for v, b in ((s.version, s.build), (r.version_here, r.build_here)))
        facts.append(("version", f"{there or 'unknown'}, here {here}"))
    if s.started_at is not None:
        again = f", restarted {s.restarts} times" if s.restarts else ""
        facts.append(("up", age(now - s.started_at) + again))
    if s.memory_bytes is not None:
        facts.append(("memory", f"{s.memory_bytes / 2**20:.0f} MiB"))
    facts.append(("starts again by", s.supervised or "nothing: deploying the same name again starts it"))
    state = "runs" if s.url is not None else "does not run"
    return Sheet(f"the router of {r.name} {state}", tuple(facts), notes=r.notes, tone="good" if s.url else "bad")


def _fleet(f: Fleet, now: float) -> Sheet:
    rows = tuple(
        (
            s.name,
            f"{s.state}, NOT SERVING" if any(not one.forgotten for one in s.unserving) else s.state,
            s.model,
            s.gpu,
            usd(s.rate_usd_per_hour, 3),
            age(now - s.created_at),
            s.endpoint_url or "-",
        )
        for s in f.deployments
    )
    rates = [s.rate_usd_per_hour for s in f.deployments]
    total = None if any(r is None for r in rates) else sum(r or 0 for r in rates)
    notes = [f"{s.name}: {said(one, s.name)}" for s in f.deployments for one in s.unserving]
    notes += [f"{s.name}: {s.error}" for s in f.deployments if s.error]
    notes += [f"{s.name}: {s.hint}" for s in f.deployments if s.hint]
    notes += [
        f"owned by no deployment: {role} {name} at {provider} (`tuna destroy --orphans`)"
        for provider, role, name in f.orphans
    ]
    notes += [f"{provider} could not be asked: {why}" for provider, why in f.unasked]
    so_far = () if f.meter is None else (("so far, by the records", f.meter.so_far),)
    bad = any(_tone(s.state) == "bad" or s.unserving for s in f.deployments) or bool(f.orphans)
    title = f"{len(rows)} deployment{'s' * (len(rows) != 1)}" if rows else "no deployments"
    return Sheet(
        title,
        (("costs now", f"{usd(total, 3)} per hour"), *so_far) if rows else (),
        ("name", "state", "model", "gpu", "$/h now", "age", "endpoint") if rows else (),
        rows,
        tuple(notes),
        "bad" if bad else "plain",
    )


def _plan(p: DeploymentPlan, _now: float) -> Sheet:
    rows = tuple(
        (role, provider, r.what, usd(r.worst_case_usd_per_hour, 3), r.name) for role, provider, r in p.resources
    )
    return Sheet(
        f"{p.request.service_name}: would be created (nothing is yet)",
        (
            ("model", p.request.model),
            ("gpu", f"{p.request.gpu_count}x {p.request.gpu}"),
            ("worst case", f"{usd(p.worst_case_usd_per_hour, 3)} per hour"),
        ),
        ("part", "provider", "what", "worst $/h", "name"),
        rows,
        p.notes,
    )


def _checks(c: ProviderChecks, _now: float) -> Sheet:
    def judged(provider: str, row: Check) -> str:
        return "ok" if row.passed else "not set up" if provider in c.unused else "MISSING"

    rows = tuple((p, judged(p, r), r.name, r.message, r.fix or "") for p, r in c.rows)
    missing = sum(judged(p, r) == "MISSING" for p, r in c.rows)
    return Sheet(
        "all that is needed is here" if not missing else f"{missing} missing",
        (),
        ("provider", "", "what", "found", "to fix"),
        rows,
        (),
        "bad" if missing else "good",
    )


def _jobs(jobs: tuple[JobRecord, ...], now: float) -> Sheet:
    rows = tuple(
        (
            j.name,
            j.verb,
            "interrupted" if j.ended_at is None and not j.alive else j.state,
            j.step,
            f"{j.fraction:.0%}",
            age((j.ended_at or now) - j.started_at),
            f"{j.pid} on {j.host}",
            j.error or "",
        )
        for j in jobs
    )
    return Sheet(
        f"{len(jobs)} job{'s' * (len(jobs) != 1)}",
        (),
        ("name", "verb", "state", "step", "done", "time", "process", "error"),
        rows,
    )


def _story(s: Story, _now: float) -> Sheet:
    whole = len(s.rows) - s.failed
    start = s.began_at
    facts = [("requests", str(len(s.rows))), ("answered whole", str(whole)), ("failed", str(s.failed))]
    facts.append(("streams continued on another GPU", str(s.continued)))
    if s.median_ttft_s is not None:
        facts.append(("median time to first token", f"{s.median_ttft_s * 1000:.0f} ms"))
    facts += [
        ("cost", f"{usd(s.bill.usd)}; the local cloud's own bill says {usd(s.providers_bill_usd)}"),
        ("time", age(s.seconds)),
    ]
    width = 80
    ribbon = [s.ribbon[i : i + width] for i in range(0, len(s.ribbon), width)]
    rows = tuple((f"{max(0.0, at - start):.1f} s", text) for at, text in s.events)
    notes = ("who answered, request by request (░ serverless, █ spot, x nobody):", *ribbon)
    errors = [f"request {o.number}: {o.error}" for o in s.rows if o.error][:5]
    parts = [f"{x.role}: {x.hours * 3600:,.0f} s billed, {usd(x.usd)}, {x.requests} requests" for x in s.bill.sides]
    return Sheet(
        f"failed = {s.failed} of {len(s.rows)} requests through a preemption without notice, "
        f"{s.continued} stream{'s' * (s.continued != 1)} continued",
        tuple(facts),
        ("when", "what happened"),
        rows,
        (*notes, *parts, *errors),
        "bad" if s.failed else "good",
    )


def _removed(r: Removed, _now: float) -> Sheet:
    return Sheet(f"gone: {', '.join(r.names)}" if r.names else r.note or "nothing to destroy", tone="good")


def _connection(c: Connection, _now: float) -> Sheet:
    return Sheet(
        f"{c.name} answers at {c.base_url}",
        (("model", c.model),),
        notes=(f'`eval "$(tuna connect {c.name} --env)"` sets OPENAI_BASE_URL and OPENAI_API_KEY in a shell',),
    )


def _fit(fits: FitList, now: float) -> Sheet:
    from tuna_nb.views.fit_sheet import fit_sheet

    return fit_sheet(fits, now)


def _bill(b: Bill, now: float) -> Sheet:
    from tuna_nb.views.bill_sheet import bill_sheet

    return bill_sheet(b, now)


def _budgets(b: BudgetList, now: float) -> Sheet:
    from tuna_nb.views.budget_sheet import budget_sheet

    return budget_sheet(b, now)


def _prices(p: PriceList, now: float) -> Sheet:
    from tuna_nb.views.price_sheet import price_sheet

    return price_sheet(p, now)


def _cold_start(r: ColdStartReport, now: float) -> Sheet:
    from tuna_nb.views.cold_start_sheet import cold_start_sheet

    return cold_start_sheet(r, now)


def _load_test(result: Any, now: float) -> Sheet:
    from tuna_nb.views import load_sheet

    makers: dict[str, Callable[[Any, float], Sheet]] = {
        "LoadReport": load_sheet.report_sheet,
        "Comparison": load_sheet.comparison_sheet,
        "RunList": load_sheet.list_sheet,
        "RowList": load_sheet.rows_sheet,
    }
    return makers[type(result).__name__](result, now)


_SHEETS: Final[Mapping[str, Callable[[Any, float], Sheet]]] = {
    "DeploymentStatus": _status,
    "Fleet": _fleet,
    "RouterReport": _router,
    "DeploymentPlan": _plan,
    "Bill": _bill,
    "BudgetList": _budgets,
    "PriceList": _prices,
    "ProviderChecks": _checks,
    "JobRecords": _jobs,
    "Story": _story,
    "FitList": _fit,
    "ColdStartReport": _cold_start,
    "LoadReport": _load_test,
    "Comparison": _load_test,
    "RunList": _load_test,
    "RowList": _load_test,
    "Removed": _removed,
    "Connection": _connection,
    "list": lambda _r, _now: Sheet("none"),
    "str": lambda r, _now: Sheet(r),
}
"""By the name of the result's class, a list by that of its items: importing the classes would cost more than most
verbs do."""


def error_sheet(error: TunaError) -> Sheet:
    return Sheet(error.message, notes=(f"hint: {error.hint}",) if error.hint else (), tone="bad")
