"""What the same traffic would have cost otherwise: all serverless, all on demand, all spot; and what is assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.catalog import rules
from tuna_nb.catalog.offers import Offer, OfferKind, Shape
from tuna_nb.costs import ledger, traffic
from tuna_nb.costs.bill import Versus
from tuna_nb.costs.replay import MOST_REQUESTS, Machine, Outcome, Request, fleet, requests_of, serverless
from tuna_nb.records import DeploymentRecord, ResourceRecord

if TYPE_CHECKING:
    from tuna_nb.store import Store
    from tuna_nb.store.books import Books

LONGEST_S: Final = 7 * 86400.0
"""So much of a longer traffic is replayed: its last week."""
_LAST_BOOTS: Final = 20
_USUAL_BOOT_S: Final = {"serverless": 60.0, "spot": 300.0}
"""Where no replica has told yet: a plain vLLM container on an L4, and a spot machine with its image."""
_QPS_WINDOW_S: Final = 60.0
"""SkyServe's."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """since: from when the traffic is compared, Unix seconds. usd: what was really paid since."""

    versus: tuple[Versus, ...]
    since: float
    usd: float


def compare(
    store: Store, deployment: DeploymentRecord, since: float, now: float, on_demand: Offer | None
) -> Comparison | None:
    """None where no router has counted any traffic. on_demand: the machine to compare with, if one is known."""
    resources = [r for r in store.resources(deployment.id) if r.state != "planned"]
    since = max(since, now - LONGEST_S)
    load = traffic.load(store.books, deployment.id, since, now)
    if not load.minutes or not load.lives:
        return None
    begins = max(since, load.lives[0][0])
    until = min(now, deployment.destroyed_at or now)
    requests = [r for r in requests_of(load) if r.arrived_at >= begins]
    if len(requests) > MOST_REQUESTS:
        requests = requests[-MOST_REQUESTS:]
        begins = requests[0].arrived_at
    paid = ledger.between(store.books, [r.id for r in resources], begins, now).total.usd
    sides = {r.role: r for r in resources}
    traffic_there_was = _Traffic(store.books, deployment.request, requests, begins, until)
    made = []
    if "serverless" in sides:
        made.append(traffic_there_was.on_serverless(sides["serverless"]))
    if "spot" in sides:
        made.append(traffic_there_was.on_demand(sides["spot"], on_demand))
        made.append(traffic_there_was.on_spot(sides["spot"]))
    return Comparison(tuple(made), begins, paid)


def cheapest(offers: Sequence[Offer], gpu: str, count: int, cloud: str | None) -> Offer | None:
    """The on-demand machine to compare with: in the spot side's own cloud where that sells it, else anywhere."""
    fit = [
        o
        for o in offers
        if o.kind is OfferKind.ON_DEMAND and o.gpu == gpu and o.price_per_hour_usd is not None and o.holds(count)
    ]
    here = [o for o in fit if o.provider == cloud] or fit
    return min(here, key=lambda o: _price(o, count) or float("inf"), default=None)


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Requests between two moments, and how the deployment that had them scales."""

    books: Books
    request: Mapping[str, Any]
    requests: Sequence[Request]
    begins: float
    until: float

    def on_serverless(self, side: ResourceRecord) -> Versus:
        policy = "serverless only"
        if side.price_per_hour_usd is None:
            return Versus(policy, None, f"{side.provider}'s price is unknown")
        boot_s, said = _boot(self.books, side)
        machine = Machine(
            side.price_per_hour_usd,
            boot_s,
            rules.of(side.provider, side.role, self.request.get("spots_cloud")).billing,
        )
        scaling = ServerlessScaling(**self.request["serverless"])
        outcome = serverless(self.requests, scaling, machine, self.begins, self.until)
        return Versus(policy, outcome.usd, f"{_containers(outcome)}, {said}")

    def on_spot(self, side: ResourceRecord) -> Versus:
        policy = "spot only"
        if side.price_per_hour_usd is None:
            return Versus(policy, None, f"{side.provider}'s price is unknown")
        boot_s, said = _boot(self.books, side)
        outcome = self._fleet(
            Machine(
                side.price_per_hour_usd,
                boot_s,
                rules.of(side.provider, side.role, self.request.get("spots_cloud")).billing,
            )
        )
        note = f"{self._unserved(outcome)} and more at each preemption, {said}"
        return Versus(policy, outcome.usd, note, outcome.unserved)

    def on_demand(self, side: ResourceRecord, offer: Offer | None) -> Versus:
        policy = "on-demand only"
        price = None if offer is None else _price(offer, int(self.request["gpu_count"]))
        if offer is None or price is None:
            return Versus(policy, None, "no on-demand price of this GPU is known here")
        boot_s, said = _boot(self.books, side)
        outcome = self._fleet(Machine(price, boot_s, offer.billing))
        where = f"{offer.provider} {offer.machine or offer.gpu} at ${price:.3f}/h"
        note = f"{where}, scaled as the spot side is; {self._unserved(outcome)}, {said}"
        return Versus(policy, outcome.usd, note, outcome.unserved)

    def _fleet(self, machine: Machine) -> Outcome:
        window_s = float(self.request.get("options", {}).get("qps_window_s", _QPS_WINDOW_S))
        scaling = SpotScaling(**self.request["spot"])
        return fleet(self.requests, scaling, machine, self.begins, self.until, qps_window_s=window_s)

    def _unserved(self, outcome: Outcome) -> str:
        return f"{outcome.unserved:,} of {len(self.requests):,} requests would have found no machine ready"


def _boot(books: Books, side: ResourceRecord) -> tuple[float, str]:
    """Seconds until a replica serves, and where that is from."""
    boots = books.boots(side.id, _LAST_BOOTS)
    if boots:
        mean = sum(boots) / len(boots)
        return mean, f"booting for {mean:.0f} s, as its last {'one' if len(boots) == 1 else len(boots)} did"
    usual = _USUAL_BOOT_S[side.role]
    return usual, f"taken to boot for {usual:.0f} s"


def _containers(outcome: Outcome) -> str:
    return f"{outcome.starts} container{'s' * (outcome.starts != 1)} for {outcome.hours * 3600:,.0f} s in all"


def _price(offer: Offer, count: int) -> float | None:
    all_in = offer.all_in(Shape(count, offer.own_shape.vcpus, offer.own_shape.memory_gib))
    return None if all_in is None else all_in.usd_per_hour
