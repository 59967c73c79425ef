"""What of a deployment bills without serving, from its records and what its providers say now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tuna_nb.backends.base import Status
from tuna_nb.costs import traffic
from tuna_nb.costs.load import Load, Minute
from tuna_nb.costs.unserving import BETWEEN_S, FORGOTTEN_S, QUIET_S, Observed, Unserving, find
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.records import DeploymentRecord, QuietRecord, ResourceRecord

if TYPE_CHECKING:
    from tuna_nb.store import Store


def rule_of(store: Store, deployment_id: str) -> QuietRecord:
    """The deployment's own, else the usual one, which only tells."""
    return store.budgets.quiet(deployment_id) or QuietRecord(deployment_id, QUIET_S, FORGOTTEN_S, stop=False)


def unserving(
    store: Store, record: DeploymentRecord, statuses: Mapping[int, Status], now: float
) -> dict[int, Unserving]:
    """By resource id. statuses: of those that were asked just now, by resource id."""
    rule = rule_of(store, record.id)
    resources = store.resources(record.id)
    load = _load(store, record, resources, now, rule)
    found: dict[int, Unserving] = {}
    for resource in resources:
        if resource.role == ROUTER or resource.state in ("planned", "gone"):
            continue
        since = now - max(rule.quiet_s, rule.forgotten_s) - BETWEEN_S
        status = statuses.get(resource.id)
        seen = Observed(
            resource.role,
            resource.provider,
            [*store.books.ended_between([resource.id], since, now), *store.books.open_intervals([resource.id])],
            load,
            "" if status is None else str(status.state),
            () if status is None else tuple((r.id, str(r.state)) for r in status.replicas),
        )
        one = find(seen, now, rule.quiet_s, rule.forgotten_s)
        if one is not None:
            found[resource.id] = one
    return found


def _load(
    store: Store, record: DeploymentRecord, resources: list[ResourceRecord], now: float, rule: QuietRecord
) -> Load | None:
    """The minutes that matter: the last ones, and the last one with any request. None where no router counts."""
    books = store.books
    lives = tuple((span.begun_at, span.until) for span in books.spans(record.id, traffic.ROUTER))
    if not lives or all(r.role != ROUTER for r in resources):
        return None
    minutes = traffic.load(books, record.id, now - rule.quiet_s - BETWEEN_S, now).minutes
    last = books.last_minute(record.id)
    if not minutes and last is not None:
        minutes = (Minute(last, arrivals=((0, 1),)),)
    return Load(lives, minutes)
