"""What Baseten's usage summary says of a model: an amount for each day and deployment, updated hourly.

It covers 31 days at the most in one answer, and none before 2026-01-01; amounts are numbers or decimal text. The
source, the management API's `GET /v1/billing/usage_summary` as read on 2026-11-22, does not say whether a
deployment's amount is before credits, nor whether the building of its image is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tuna_nb.backends.account import DAY_S, down_to, understood, up_to, usd, within
from tuna_nb.backends.base import Charge, Ref
from tuna_nb.backends.rest import Api

_MOST: Final = timedelta(days=31)
_FIRST: Final = datetime(2026, 1, 1, tzinfo=UTC)


async def charges(api: Api, ref: Ref, since: float, until: float) -> list[Charge]:
    """Raises CredentialsError, BackendError. A model of which no id is known is told by its name."""
    what = f"the bill of {ref.name}"
    at, end = max(down_to(since, DAY_S), _FIRST), up_to(until, DAY_S)
    found: list[Charge] = []
    while at < end:
        to = min(at + _MOST, end)
        span = {"start_date": at.isoformat(), "end_date": to.isoformat()}
        told = await api.call("GET", "/v1/billing/usage_summary", what, params=span)
        with understood("baseten", what):
            # Nothing at all was used: the part is left out.
            used = told.get("dedicated_usage") or {"breakdown": []}
            for item in used["breakdown"]:
                if _is_ours(item["billable_resource"], ref):
                    # The end of a summary is a day that the next one begins with.
                    found += [c for c in _days(item) if at.timestamp() <= c.started_at < to.timestamp()]
        at = to
    return within(found, since, until)


def _is_ours(resource: Mapping[str, Any], ref: Ref) -> bool:
    if resource["kind"] != "MODEL_DEPLOYMENT":
        return False
    return bool(resource["model_name"] == ref.name if ref.id is None else resource["model_id"] == ref.id)


def _days(item: Mapping[str, Any]) -> list[Charge]:
    """Raises ValueError where its days do not add up to it."""
    resource, days = item["billable_resource"], item.get("daily") or []
    made = []
    for day in days:
        at = datetime.fromisoformat(str(day["date"])).replace(tzinfo=UTC).timestamp()
        what = f"{resource.get('instance_type') or 'instance'} of deployment {resource['id']}, {day['minutes']} min"
        made.append(Charge(at, at + DAY_S, usd(day["subtotal"]), what))
    if abs(sum(c.usd for c in made) - usd(item["subtotal"])) > 0.005 * (len(days) + 1):
        raise ValueError(f"the days of deployment {resource['id']} do not add up to its subtotal")
    return made
