"""Vast.ai's market: machines of many hosts, each offer with its own price.

The same machines are asked for twice, as rented for good and as rented by bidding, since only the search says how
an offer is sold: nearly every one has a `min_bid`.

Source: https://docs.vast.ai (search offers), read on 2026-11-21.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from tuna_nb.catalog import gpus
from tuna_nb.catalog.offers import MONTH_HOURS, Lines, Offer, OfferKind, believable
from tuna_nb.catalog.rules import rule
from tuna_nb.catalog.sources import http
from tuna_nb.catalog.sources.base import MACHINES, Source, changed

URL: Final = "https://console.vast.ai"
KEYS: Final = ("VAST_API_KEY", "VASTAI_API_KEY")
SIGN_IN: Final = f"export {KEYS[0]}=<a key of cloud.vast.ai/manage-keys>, or unset it: prices need none"
DISK_GB: Final = 50
"""The search counts so much disk into `dph_total`; also what hosts must have free."""
_MOST: Final = 3000
"""Offers of one search, the best first by Vast.ai's own score; there are no further pages."""

_FLOOR: Final = "the least bid, not what clears"


class VastSource(Source):
    """disk_gb: which an offer's own `dph_total` includes. environ: where the key is looked up."""

    name = "vast"
    sellers = frozenset({"vast"})
    kinds: ClassVar[frozenset[OfferKind]] = MACHINES
    fresh_s: ClassVar[float] = 300.0

    def __init__(
        self, url: str | None = None, *, disk_gb: int = DISK_GB, environ: Mapping[str, str] | None = None
    ) -> None:
        self._env = os.environ if environ is None else environ
        self._url = url
        self._disk_gb = disk_gb

    async def fetch(self) -> list[Offer]:
        try:
            async with asyncio.TaskGroup() as both:
                kept = both.create_task(self._search("ondemand"))
                bid = both.create_task(self._search("bid"))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        # Thousands of them would hold up whatever else the loop has to do.
        return await asyncio.to_thread(self._offers, kept.result(), bid.result(), time.time())

    def _offers(self, kept: list[dict[str, Any]], bid: list[dict[str, Any]], now: float) -> list[Offer]:
        self._check_disk(kept)
        on_demand = {self._id(row): http.number(self.name, row, "dph_base") for row in kept}
        found = [self._dedicated(row, now) for row in kept]
        found += [self._interruptible(row, now, on_demand.get(self._id(row))) for row in bid]
        offers = [offer for offer in found if offer is not None]
        if not offers:
            raise changed(self.name, "none of its offers could be read" if found else "there are no offers")
        return offers

    async def _search(self, kind: str) -> list[dict[str, Any]]:
        key = http.key_of(self.name, self._key(), SIGN_IN)
        said = await http.ask_json(
            self.name,
            (self._url or self._env.get("VAST_URL") or URL).rstrip("/") + "/api/v0/bundles/",
            timeout_s=self.timeout_s,
            body={
                "verified": {"eq": True},
                "rentable": {"eq": True},
                "rented": {"eq": False},
                "external": {"eq": False},
                "disk_space": {"gte": self._disk_gb},
                "type": kind,
                # By price, what is cut off would be every large machine.
                "order": [["score", "desc"]],
                "limit": _MOST,
                "allocated_storage": self._disk_gb,
            },
            headers={"Authorization": f"Bearer {key}"} if key else None,
            sign_in=SIGN_IN,
        )
        return http.records(self.name, said, "offers")

    def _dedicated(self, row: Mapping[str, Any], now: float) -> Offer | None:
        price = http.number(self.name, row, "dph_base")
        usable = price is not None and price > 0
        return self._offer(row, now, OfferKind.DEDICATED, price if usable else None, "" if usable else "no price")

    def _interruptible(self, row: Mapping[str, Any], now: float, on_demand: float | None) -> Offer | None:
        bid, why = believable(http.number(self.name, row, "min_bid"), on_demand)
        return self._offer(row, now, OfferKind.INTERRUPTIBLE, bid, why or _FLOOR)

    def _offer(
        self, row: Mapping[str, Any], now: float, kind: OfferKind, machine_usd: float | None, note: str
    ) -> Offer | None:
        """machine_usd: per hour for the whole of it, without its disk. None for a GPU that nobody here knows."""
        name, ram_mb = http.text(self.name, row, "gpu_name"), http.number(self.name, row, "gpu_ram")
        count = http.number(self.name, row, "num_gpus")
        gpu = gpus.identify_whole(name, ram_mb / 1024 if ram_mb else None, "vast") if name else None
        if gpu is None or not count:
            return None
        cores, share = self._cores(row)
        memory_mb = http.number(self.name, row, "cpu_ram")
        reliability = _first(row, "reliability", "reliability2")
        return Offer(
            provider="vast",
            kind=kind,
            gpu=gpu.name,
            price_per_hour_usd=None if machine_usd is None else machine_usd / count,
            region=(http.text(self.name, row, "geolocation") or "").strip(" ,") or None,
            observed_at=now,
            source="Vast.ai offers",
            gpu_count=int(count),
            machine=str(self._id(row)),
            vcpus=cores,
            memory_gib=None if memory_mb is None or share is None else round(memory_mb * share / 1024, 1),
            lines=Lines(disk_gb_month=http.number(self.name, row, "storage_cost")),
            billing=rule("vast", kind).billing,
            confidence=None if reliability is None else min(1.0, max(0.0, reliability)),
            note=note,
        )

    def _id(self, row: Mapping[str, Any]) -> int:
        """Which offer it is, in either search."""
        return int(http.number(self.name, row, "id") or 0)

    def _cores(self, row: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """Cores that come with the offer, and their share of the host's, which is its share of the memory too."""
        effective = http.number(self.name, row, "cpu_cores_effective")
        cores = http.number(self.name, row, "cpu_cores")
        return effective, min(1.0, effective / cores) if effective and cores else None

    def _check_disk(self, rows: list[dict[str, Any]]) -> None:
        """`storage_cost` is USD per GB and month. By the hour, by the day or by the TB it would be off by hundreds,
        and the totals that the offers state themselves would show it."""
        implied = []
        for row in rows:
            total, base, storage = (
                http.number(self.name, row, n) for n in ("dph_total", "dph_base", "storage_cost")
            )
            if total and base and storage:
                implied.append((total - base) * MONTH_HOURS / storage)
        if implied and not self._disk_gb / 20 < statistics.median(implied) < self._disk_gb * 20:
            raise changed(self.name, "dph_total is not dph_base and a month's storage_cost for the disk asked for")

    def _key(self) -> str | None:
        for name in KEYS:
            if self._env.get(name, "").strip():
                return self._env[name]
        home = Path(self._env.get("HOME") or "~").expanduser()
        config = Path(self._env.get("XDG_CONFIG_HOME") or home / ".config")
        for path in (config / "vastai" / "vast_api_key", home / ".vast_api_key"):
            try:
                return path.read_text().strip() or None
            except (OSError, UnicodeDecodeError):
                continue
        return None


def _first(row: Mapping[str, Any], *names: str) -> float | None:
    """The first of them that is there: the field's name has changed, and an offer may have neither."""
    return next((http.number("vast", row, name) for name in names if row.get(name) is not None), None)
