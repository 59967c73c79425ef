"""What SkyPilot's cost report says of a service's machines. It is no cloud's account: SkyPilot multiplies the time
that it saw a machine up by its catalogue's price of today, without disk and egress; each line says so.

Machines of a service are clusters named `<service>-<number>`. Where SkyServe's controller is a machine of its own,
they are in its book and not in this report. Source: `core.cost_report` of skypilot 0.14.1, which tells 0 where it
has no price: that is read as unknown.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from tuna_nb.backends.account import DAY_S, understood, usd, within
from tuna_nb.backends.base import Charge, Ref
from tuna_nb.backends.skyserve import accounts
from tuna_nb.backends.skyserve.client import Client
from tuna_nb.errors import BackendError

_LOOK: Final = (
    "the cloud's own invoice has the figures: AWS Cost Explorer, Google's Billing, Azure's Cost Management"
)


async def charges(sky: Client, ref: Ref, since: float, until: float) -> list[Charge]:
    """Raises CredentialsError, BackendError; the latter too where the report has no machine of it at all."""
    if accounts.never_used():
        raise _none(ref)  # asking would start an API server
    now = time.time()
    days = max(1, math.ceil((now - since) / DAY_S)) + 1
    told = await sky.ask(f"the cost report of {ref.name}", lambda sky: sky.cost_report(days=days))
    with understood("skyserve", "SkyPilot's cost report"):
        machine = re.compile(rf"{re.escape(ref.name)}-\d+")
        ours = [one for one in told if machine.fullmatch(one["name"])]
        found = [charge for one in ours for charge in _charges(one, now)]
    if not ours:
        raise _none(ref)
    return within(found, since, until)


def _none(ref: Ref) -> BackendError:
    return BackendError(f"skyserve: SkyPilot's cost report has no machine of {ref.name}", _LOOK)


def _charges(cluster: Mapping[str, Any], now: float) -> list[Charge]:
    """Its cost, shared out over the times that it was up."""
    spans = [(start, now if end is None else end) for start, end in cluster["usage_intervals"] or ()]
    up_s, total = sum(end - start for start, end in spans), usd(cluster["total_cost"])
    if up_s > 0 and total <= 0:
        raise BackendError(f"skyserve: SkyPilot has no price of {cluster['name']}, which was up", _LOOK)
    kind = cluster.get("resources_str") or "machine"
    what = f"SkyPilot's estimate for {kind} {cluster['name']}, at its catalogue's prices"
    return [Charge(start, end, total * (end - start) / up_s, what) for start, end in spans if end > start]
