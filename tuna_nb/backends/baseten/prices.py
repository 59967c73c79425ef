"""What an instance of Baseten's costs: by the minute, with its vCPUs and memory in it.

Live from the query that `truss` itself asks of the console's GraphQL; else a dated snapshot.
"""

from __future__ import annotations

import time
from typing import Any, Final

from tuna_nb.backends.baseten.push import ACCELERATORS
from tuna_nb.backends.rest import Api
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Offer
from tuna_nb.errors import BackendError

QUERY: Final = "query Instances { listed_instances { name gpu_count gpu_type price limited_capacity } }"
_KEPT_S: Final = 3600.0


class Prices:
    """api: of the console, which answers GraphQL. An answer is kept for an hour."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._kept: tuple[float, list[dict[str, Any]]] | None = None

    async def instances(self) -> list[dict[str, Any]]:
        """What Baseten lists now. Raises BackendError."""
        now = time.time()
        if self._kept is None or now - self._kept[0] > _KEPT_S:
            told = await self._api.call("POST", "/graphql/", "the list of instances", body={"query": QUERY})
            try:
                listed: list[dict[str, Any]] = told["data"]["listed_instances"]
            except (KeyError, TypeError):
                said = str(((told or {}).get("errors") or [{}])[0].get("message", "no list"))
                raise BackendError(f"baseten: the list of instances: {said}", "the snapshot is used") from None
            self._kept = (now, listed)
        return self._kept[1]


def shipped(gpu: str, count: int) -> Offer | None:
    """As it was published; None where that instance was not."""
    found = (o for o in snapshot.of("baseten") if (o.gpu, o.gpu_count) == (gpu, count))
    return next(found, None)


def cheapest(instances: list[dict[str, Any]], gpu: str, count: int) -> float | None:
    """USD per hour of the smallest instance with so many of that GPU; None where none is listed."""
    fitting = [
        float(one["price"]) * 60
        for one in instances
        if str(one.get("gpu_type") or "").upper() == ACCELERATORS[gpu]
        and one.get("gpu_count") == count
        and one.get("price")
    ]
    return min(fitting, default=None)
