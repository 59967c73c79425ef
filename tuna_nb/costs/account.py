"""From the ledger to the bill: what deployments have cost in a span, by what, and what it comes to from here on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tuna_nb.catalog import rules
from tuna_nb.costs import traffic
from tuna_nb.costs.amounts import NOTHING, QUARTER_S, Amount
from tuna_nb.costs.bill import Bill, Forecast, Group, Side
from tuna_nb.costs.ledger import Spent, between, grouped
from tuna_nb.costs.load import NOTHING as NO_USE
from tuna_nb.costs.load import Shares, Used
from tuna_nb.costs.traffic import ROUTER, Traffic
from tuna_nb.records import DeploymentRecord, ResourceRecord

if TYPE_CHECKING:
    from tuna_nb.store import Store
    from tuna_nb.store.books import Books

HOUR_S: Final = 3600.0
PATIENCE_S: Final = 300.0
"""So long nobody may have looked before it counts as a gap."""
UNSURE: Final = 0.1
"""Share of an amount; what may be off by more is called estimated."""
IDLE: Final = "(idle)"
"""What nobody used."""
UNNAMED: Final = "(no key)"

Zone = Callable[[float], dt.datetime]
"""Unix seconds to the user's own wall time."""


def own_zone(at: float) -> dt.datetime:
    """The wall time of this machine's user."""
    return dt.datetime.fromtimestamp(at).astimezone()


def on_the_wall(moment: dt.datetime, here: dt.datetime) -> float:
    """Unix seconds of a wall time (without a zone) where `here` is: a day may have 23 or 25 hours."""
    if isinstance(here.tzinfo, dt.timezone):
        # A fixed offset is what `astimezone()` gives for the machine's own zone, and may differ on another day.
        return moment.timestamp()
    return moment.replace(tzinfo=here.tzinfo).timestamp()


@dataclass(frozen=True, slots=True)
class Part:
    """A resource of a deployment."""

    deployment: DeploymentRecord
    resource: ResourceRecord

    @property
    def gpu(self) -> str:
        request = self.deployment.request
        if self.resource.role == ROUTER:
            return "no GPU"
        return f"{request.get('gpu_count', 1)}x {request.get('gpu', '?')}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger has of a span."""

    parts: Mapping[int, Part]
    spent: Spent
    traffic: Traffic | None


def bill(
    store: Store,
    deployments: Sequence[DeploymentRecord],
    name: str,
    since: float,
    now: float,
    *,
    by: str = "backend",
    zone: Zone = own_zone,
) -> Bill:
    """What these deployments cost in [since, now), Unix seconds, from the records alone.

    by: backend, deployment, day, gpu, model or key.
    """
    parts = {r.id: Part(d, r) for d in deployments for r in store.resources(d.id) if r.state != "planned"}
    facts = Facts(
        parts,
        between(store.books, list(parts), since, now, split=True),
        traffic.between(store.books, [d.id for d in deployments], since, now),
    )
    total, rates = facts.spent.total, [facts.spent.rates.get(number, 0.0) for number in parts]
    used = None if facts.traffic is None else facts.traffic.total.total
    return Bill(
        name,
        _sides(store.books, facts),
        usd=total.usd,
        rate_usd_per_hour=_sum(rates),
        requests=None if used is None else used.requests,
        prompt_tokens=None if used is None else used.prompt_tokens,
        completion_tokens=None if used is None else used.completion_tokens,
        since=max(since, min((d.created_at for d in deployments), default=now)),
        until=now,
        error_usd=total.error_usd,
        by=by,
        groups=() if by == "backend" else _groups(by, facts, zone),
        forecast=_forecast(store.books, facts, now, zone),
        gaps=_gaps(store.books, facts, since, now),
        notes=_sellers(facts),
    )


def _sellers(facts: Facts) -> tuple[str, ...]:
    """How each seller bills, as far as a reader of its invoice should know; a pretended one has none."""
    notes = []
    for part in facts.parts.values():
        resource = part.resource
        rule = rules.of(resource.provider, resource.role, part.deployment.request.get("spots_cloud"))
        if resource.role == ROUTER or rule.provider == "local":
            continue
        if rule.provider != resource.provider:
            broker = rules.rule(resource.provider, resource.role)
            notes += [f"{broker.provider}: {broker.note}"] * bool(broker.note)
        said = [rule.note] * bool(rule.note) + ["assumed to bill by the second"] * rule.assumed
        if said:
            notes.append(f"{rule.provider}: {'; '.join(said)}")
    return tuple(dict.fromkeys(notes))


def _sides(books: Books, facts: Facts) -> tuple[Side, ...]:
    together: dict[tuple[str, str], list[int]] = {}
    for number, part in facts.parts.items():
        if part.resource.role != ROUTER or facts.spent.by_resource[number].seconds:
            together.setdefault((part.resource.role, part.resource.provider), []).append(number)
    charges = books.charges(list(facts.parts))
    sides = []
    for (role, provider), numbers in sorted(together.items()):
        amount = sum((facts.spent.by_resource[n] for n in numbers), NOTHING)
        words = [word for n in numbers if (word := books.basis(n)) is not None]
        told = [c for c in charges if c.resource_id in numbers]
        sides.append(
            Side(
                role,
                provider,
                replicas=amount.starts,
                running=sum(facts.spent.running.get(n, 0) for n in numbers),
                hours=amount.seconds / HOUR_S,
                usd=amount.usd,
                rate_usd_per_hour=_sum([facts.spent.rates.get(n, 0.0) for n in numbers]),
                requests=_requests(facts, role, numbers),
                error_usd=amount.error_usd,
                unknown_hours=amount.unknown_s / HOUR_S,
                boot_usd=amount.boot_usd if words and all(boot for _, boot in words) else None,
                idle_usd=None if role == ROUTER else _idle(facts, role, numbers),
                basis=_basis(amount, {basis for basis, _ in words}),
                charged_usd=sum(c.usd for c in told) if told else None,
                charged_until=max((c.ended_at for c in told), default=None),
            )
        )
    return tuple(sides)


def _basis(amount: Amount, words: set[str]) -> str:
    """Where a side's figures come from; one that may be off by a tenth is no measurement."""
    if amount.error_usd > UNSURE * amount.usd:
        return "estimated"
    return " and ".join(sorted(words)) or "measured"


def _requests(facts: Facts, role: str, numbers: Sequence[int]) -> int | None:
    if facts.traffic is None or role == ROUTER:
        return None
    ours = {facts.parts[n].deployment.id for n in numbers}
    return sum(
        _of_role(shares, role).requests for (name, _), shares in facts.traffic.by_quarter.items() if name in ours
    )


def _idle(facts: Facts, role: str, numbers: Sequence[int]) -> float | None:
    """What was paid while no request ran there: of each quarter's cost but the boot, the share of its time."""
    if facts.traffic is None:
        return None
    idle = 0.0
    for (number, quarter), amount in facts.spent.by_quarter.items():
        if number not in numbers or not amount.seconds:
            continue
        shares = facts.traffic.by_quarter.get((facts.parts[number].deployment.id, quarter))
        busy_s = 0.0 if shares is None else _of_role(shares, role).busy_s
        up_s = min(float(QUARTER_S), amount.seconds)
        idle += max(0.0, amount.usd - amount.boot_usd) * max(0.0, 1 - busy_s / up_s)
    return idle


def _of_role(shares: Shares, role: str) -> Used:
    """A replica that is addressed by itself is named after its side: `spot.3`."""
    return sum((used for name, used in shares.backends.items() if name.partition(".")[0] == role), NO_USE)


def _groups(by: str, facts: Facts, zone: Zone) -> tuple[Group, ...]:
    spent, parts = facts.spent, facts.parts
    if by in ("gpu", "deployment"):
        amounts: dict[str, Amount] = {}
        for number, amount in spent.by_resource.items():
            name = parts[number].gpu if by == "gpu" else parts[number].deployment.name
            amounts[name] = amounts.get(name, NOTHING) + amount
        return tuple(Group(n, a.usd) for n, a in sorted(amounts.items(), key=lambda one: -one[1].usd))
    if by == "day":
        days = grouped(spent, lambda _, quarter: zone(quarter).date().isoformat())
        used: dict[str, Used] = {}
        for (_, quarter), shares in facts.traffic.by_quarter.items() if facts.traffic else ():
            day = zone(quarter).date().isoformat()
            used[day] = used.get(day, NO_USE) + shares.total
        return tuple(_group(d, days.get(d, NOTHING).usd, used.get(d, NO_USE)) for d in sorted({*days, *used}))
    return _shared(by, facts)


def _shared(by: str, facts: Facts) -> tuple[Group, ...]:
    """Each quarter's cost, shared by who used it, by the time of their requests; idle where nobody did."""
    costs: dict[tuple[str, int], float] = {}
    for (number, quarter), amount in facts.spent.by_quarter.items():
        key = (facts.parts[number].deployment.id, quarter)
        costs[key] = costs.get(key, 0.0) + amount.usd
    usd: dict[str, float] = {}
    used: dict[str, Used] = {}
    quarters = facts.traffic.by_quarter if facts.traffic else {}
    for key in sorted({*costs, *quarters}):
        shares = quarters.get(key, Shares())
        each = shares.keys if by == "key" else _models(facts, key[0], shares)
        seconds = sum(one.request_s for one in each.values())
        for name, one in each.items():
            used[name] = used.get(name, NO_USE) + one
            if seconds:
                usd[name] = usd.get(name, 0.0) + costs.get(key, 0.0) * one.request_s / seconds
        if not seconds and key in costs:
            usd[IDLE] = usd.get(IDLE, 0.0) + costs[key]
    names = sorted({*usd, *used}, key=lambda name: -usd.get(name, 0.0))
    return tuple(_group(name, usd.get(name, 0.0), used.get(name, NO_USE)) for name in names)


def _models(facts: Facts, deployment_id: str, shares: Shares) -> dict[str, Used]:
    """By model where the router routes by it; else all of it is the deployment's one model's."""
    if shares.models or not shares.total.requests:
        return shares.models
    names = {p.deployment.id: str(p.deployment.request.get("model", "?")) for p in facts.parts.values()}
    return {names[deployment_id]: shares.total}


def _group(name: str, usd: float, used: Used) -> Group:
    return Group(name or UNNAMED, usd, used.requests, used.prompt_tokens + used.completion_tokens)


def _forecast(books: Books, facts: Facts, now: float, zone: Zone) -> Forecast | None:
    """What it will have cost at the end of the day and the month: so far, and the rest as the last hours went."""
    numbers, here = list(facts.parts), zone(now)
    begun = min((p.resource.created_at for p in facts.parts.values()), default=now)
    if not any(facts.spent.running.values()) and not any(
        p.deployment.destroyed_at is None for p in facts.parts.values()
    ):
        return None
    today = here.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    month, next_day = today.replace(day=1), today + dt.timedelta(days=1)
    next_month = (month + dt.timedelta(days=32)).replace(day=1)
    seen_s = min(now - begun, 24 * HOUR_S)
    if seen_s >= HOUR_S:
        per_s = between(books, numbers, now - seen_s, now).total.usd / seen_s
        method = f"as the last {seen_s / HOUR_S:.0f} hours went"
    else:
        rate = _sum([facts.spent.rates.get(n, 0.0) for n in numbers])
        if rate is None:
            return Forecast(None, None, "a price in use is unknown")
        per_s, method = rate / HOUR_S, "as it costs at this moment: it is not an hour old"

    def by(begins: dt.datetime, ends: dt.datetime) -> float:
        so_far = between(books, numbers, on_the_wall(begins, here), now).total.usd
        return so_far + per_s * max(0.0, on_the_wall(ends, here) - now)

    return Forecast(by(today, next_day), by(month, next_month), method)


def _gaps(books: Books, facts: Facts, since: float, now: float) -> tuple[tuple[float, float], ...]:
    """Spans in which nobody looked at a resource whose provider keeps no history, each once."""
    gaps: set[tuple[float, float]] = set()
    for number, part in facts.parts.items():
        resource = part.resource
        spans = books.spans(part.deployment.id, f"resource:{number}")
        known = books.basis(number)
        if not spans or (known is not None and known[0] == "provider-reported"):
            continue
        until = min(now, resource.gone_at or now)
        at = max(since, spans[0].begun_at)
        for span in spans:
            if span.begun_at > at:
                gaps.add((at, span.begun_at))
            at = max(at, span.until)
        if until - at > PATIENCE_S:
            gaps.add((at, until))
    return tuple(sorted(gaps))


def _sum(rates: Sequence[float | None]) -> float | None:
    return None if any(r is None for r in rates) else sum(r for r in rates if r is not None)
