"""What Cloud Run charges: Google's own catalogue where there is a key for it, else the snapshot."""

from __future__ import annotations

import time
from typing import Final

from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Offer
from tuna_nb.catalog.sources.google import GoogleBillingSource
from tuna_nb.errors import BackendError

_KEPT_S: Final = 3600.0
_BACK_OFF_S: Final = 60.0


class Prices:
    """An answer is kept for an hour, and after a failure nobody is asked for a minute."""

    def __init__(self) -> None:
        self._source = GoogleBillingSource()
        self._kept: tuple[float, list[Offer], str] | None = None

    async def offers(self) -> tuple[list[Offer], str]:
        """Of all regions, and why they are the snapshot's where the catalogue was asked in vain."""
        shipped = list(snapshot.of("cloudrun"))
        if self._source.lacks() is not None:
            return shipped, ""
        now = time.monotonic()
        if self._kept is None or now - self._kept[0] > (_BACK_OFF_S if self._kept[2] else _KEPT_S):
            try:
                self._kept = (now, await self._source.fetch(), "")
            except BackendError as exc:
                self._kept = (now, shipped, exc.message)
        return self._kept[1], self._kept[2]
