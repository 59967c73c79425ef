"""Budgets held against what is to be begun: refused where it would break one, else what the reader should know."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.costs import budgets
from tuna_nb.costs.account import Zone, own_zone
from tuna_nb.costs.budgets import Standing, Window
from tuna_nb.deployments.plan import ROUTER, SERVERLESS
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError
from tuna_nb.records import EVERYTHING, BudgetRecord, DeploymentRecord


@dataclass(frozen=True, slots=True)
class Wanted:
    """A budget that is to be set together with a deployment."""

    limit_usd: float
    per: str = "total"
    warn: tuple[float, ...] = budgets.WARN
    action: str = "notify"
    webhook: bool = False

    def record(self, scope: str, now: float) -> BudgetRecord:
        """As it will be in the store."""
        return BudgetRecord("", scope, self.limit_usd, self.per, self.warn, self.action, self.webhook, now)


def before_deploy(
    workspace: Workspace,
    name: str,
    live: DeploymentRecord | None,
    wanted: Wanted | None,
    worst_case_usd_per_hour: float | None,
    *,
    now: float | None = None,
    zone: Zone = own_zone,
) -> tuple[str, ...]:
    """What the plan's reader should know of the budgets over it. Raises RequestError where it would break one.

    What is there already is not kept from being mended, unless a budget that acts is used up.
    """
    at = time.time() if now is None else now
    # Looking at what would be created makes no records where there are none.
    over = standings(workspace, None if live is None else live.id, at, zone) if workspace.has_records() else []
    if wanted is not None:
        _check_own(wanted)
        over = [s for s in over if s.budget.scope == EVERYTHING or s.budget.per != wanted.per]
        own = wanted.record("" if live is None else live.id, at)
        over.append(
            Standing(own, name, Window("", at, None), 0.0)
            if live is None
            else budgets.standing(workspace.store, own, at, zone)
        )
    held = over if live is None else [s for s in over if s.used_up and s.budget.action != "notify"]
    refused = budgets.would_break(held, worst_case_usd_per_hour, f"deploy {name}")
    if refused is not None:
        raise refused
    return tuple(budgets.outlook(one, worst_case_usd_per_hour) for one in over)


def before_scale(
    workspace: Workspace,
    record: DeploymentRecord,
    serverless: ServerlessScaling,
    spot: SpotScaling,
    *,
    now: float | None = None,
    zone: Zone = own_zone,
) -> None:
    """Raises RequestError where more than there may be now would break a budget; less never does."""
    request = DeployRequest.from_json(record.request)
    before, after = request.serverless, request.spot
    if (
        serverless.workers_max <= before.workers_max
        and serverless.workers_min <= before.workers_min
        and spot.max_replicas <= after.max_replicas
        and spot.min_replicas <= after.min_replicas
    ):
        return
    worst: float | None = 0.0
    for resource in workspace.store.resources(record.id):
        most = {ROUTER: 1, SERVERLESS: serverless.workers_max}.get(resource.role, spot.max_replicas)
        price = resource.price_per_hour_usd
        worst = None if worst is None or price is None else worst + most * price
    over = standings(workspace, record.id, time.time() if now is None else now, zone)
    refused = budgets.would_break(over, worst, f"scale {record.name}")
    if refused is not None:
        raise refused


def standings(workspace: Workspace, deployment_id: str | None, now: float, zone: Zone = own_zone) -> list[Standing]:
    """Of the budgets over a deployment, or, without an id, over one that is yet to be: those over all."""
    scope = EVERYTHING if deployment_id is None else deployment_id
    return [budgets.standing(workspace.store, one, now, zone) for one in workspace.store.budgets.applying(scope)]


def _check_own(wanted: Wanted) -> None:
    try:
        budgets.check(wanted.limit_usd, wanted.per, wanted.warn, wanted.action)
    except RequestError as e:
        raise RequestError(f"--budget: {e.message}", (e.hint or "").replace("--limit", "--budget")) from None


def require_overflow(record_request: DeployRequest, action: str) -> None:
    """Raises RequestError where a deployment has no overflow that could be stopped."""
    if action == "stop-overflow" and record_request.serverless_only:
        raise RequestError(
            f"{record_request.service_name} is serverless only: there is no overflow to stop",
            "choose --action scale-down, destroy or notify",
        )
