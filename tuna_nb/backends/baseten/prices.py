"""What an instance of Baseten's costs: by the minute, with its vCPUs and memory in it.

Live from the query that `truss` itself asks of the console's GraphQL; else a dated snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from tuna_nb.backends.baseten.push import ACCELERATORS
from tuna_nb.backends.rest import Api
from tuna_nb.errors import BackendError

QUERY: Final = "query Instances { listed_instances { name gpu_count gpu_type price limited_capacity } }"
_KEPT_S: Final = 3600.0

_PER_MINUTE: Final[Mapping[str, Mapping[int, float]]] = {
    "T4": {1: 0.01052},
    "L4": {1: 0.01414, 2: 0.04002, 4: 0.08003},
    "A10G": {1: 0.02012, 2: 0.05672, 4: 0.11344, 8: 0.32576},
    "A100_80GB": {count: 0.06667 * count for count in range(1, 9)},
    "H100_40GB": {1: 0.06250},
    "H100": {count: 0.10833 * count for count in (1, 2, 4, 8)},
    "H200": {count: 0.20800 * count for count in (1, 2, 4, 8)},
    "B200": {count: 0.16633 * count for count in (1, 2, 4, 8)},
}
"""USD per minute of the smallest instance with so many GPUs."""
SNAPSHOT_AT: Final = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
"""When the table was collected; when Baseten wrote it is not known."""
SNAPSHOT_SOURCE: Final = "Baseten's instance type reference, as collected by 2026-11"


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


def snapshot(gpu: str, count: int) -> float | None:
    """USD per hour as it was published; None where that instance was not."""
    minute = _PER_MINUTE.get(gpu, {}).get(count)
    return None if minute is None else minute * 60


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
