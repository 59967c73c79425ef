"""What a replica costs: its GPU, its vCPUs and its memory are three lines of Azure's bill.

Live from the Retail Prices API, which asks for no key; else a snapshot that says what it is. The GPU's meters are
found by their names, which Azure writes nowhere down.
Source: https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuna_nb import tls
from tuna_nb.backends.azure.app import PROFILES
from tuna_nb.catalog import snapshot
from tuna_nb.errors import BackendError

URL: Final = "https://prices.azure.com"
_PATH: Final = "/api/retail/prices"
_KEPT_S: Final = 3600.0
_BACK_OFF_S: Final = 60.0
_TIMEOUT_S: Final = 5.0
_MOST_PAGES: Final = 20
_SECONDS: Final = {"second": 1.0, "hour": 3600.0}


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per hour of one GPU, one vCPU and one GiB. at: Unix seconds."""

    gpus: Mapping[str, float]
    vcpu: float
    memory_gib: float
    at: float
    source: str
    snapshot: bool = False

    def replica(self, gpu: str) -> float | None:
        """A replica's whole price per hour; None for a GPU that is not sold there."""
        if gpu not in self.gpus:
            return None
        shape = PROFILES[gpu]
        return round(self.gpus[gpu] + shape.vcpus * self.vcpu + shape.memory_gib * self.memory_gib, 6)


def shipped(why: str = "") -> Rates:
    """The snapshot's. why: the live ones can't be had, said in its source."""
    offers = snapshot.rates("azure")
    one = next(iter(offers.values()))
    return Rates(
        {gpu: usd for gpu, o in offers.items() if (usd := o.price_per_hour_usd) is not None},
        one.lines.vcpu or 0.0,
        one.lines.memory_gib or 0.0,
        one.observed_at,
        f"{one.source} ({why})" if why else one.source,
        snapshot=True,
    )


class Prices:
    """url: of the Retail Prices API, by default AZURE_PRICES_URL or Azure's own. Answers are kept for an hour."""

    def __init__(self, url: str | None = None) -> None:
        self._url = (url or os.environ.get("AZURE_PRICES_URL") or URL).rstrip("/")
        self._kept: dict[str, tuple[float, Rates]] = {}
        self._failed: dict[str, tuple[float, BackendError]] = {}

    async def rates(self, region: str) -> Rates:
        """Of that region now, or the snapshot with the reason in its source."""
        try:
            return await self.live(region)
        except BackendError as exc:
            return shipped(exc.message)

    async def live(self, region: str) -> Rates:
        """Of that region now. Raises BackendError; for a minute after that without asking again."""
        now = time.monotonic()
        kept, failed = self._kept.get(region), self._failed.get(region)
        if kept is not None and now - kept[0] <= _KEPT_S:
            return kept[1]
        if failed is not None and now - failed[0] <= _BACK_OFF_S:
            raise failed[1]
        try:
            rates = await self._fresh(region)
        except BackendError as exc:
            self._failed[region] = (now, exc)
            raise
        self._kept[region] = (now, rates)
        return rates

    async def _fresh(self, region: str) -> Rates:
        import httpx

        query = (
            f"serviceName eq 'Azure Container Apps' and armRegionName eq '{region}' "
            "and priceType eq 'Consumption' and isPrimaryMeterRegion eq true"
        )
        url: str | None = f"{self._url}{_PATH}"
        params: dict[str, str] | None = {"api-version": "2023-01-01-preview", "$filter": query}
        items: list[dict[str, Any]] = []
        try:
            async with httpx.AsyncClient(verify=tls.trusted(), timeout=_TIMEOUT_S) as http:
                for _ in range(_MOST_PAGES):
                    answer = await http.get(url or "", params=params)
                    answer.raise_for_status()
                    page = answer.json()
                    items += page["Items"]
                    url, params = page.get("NextPageLink"), None
                    if not url:
                        break
            return _read(items, region)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
            why = str(exc) or type(exc).__name__
            raise BackendError(
                f"azure: the price list can't be used: {why.splitlines()[0]}", "the snapshot is used instead"
            ) from exc


def _read(items: list[dict[str, Any]], region: str) -> Rates:
    """Raises ValueError where a line is missing: half a price would be a wrong one."""
    vcpu = memory = None
    gpus: dict[str, float] = {}
    for item in items:
        name = f"{item.get('meterName', '')} {item.get('skuName', '')}"
        hourly = _hourly(item)
        if hourly is None or hourly <= 0 or "idle" in name.lower() or "dedicated" in name.lower():
            continue
        if "GPU" in name.upper():
            for gpu in PROFILES:
                if re.search(rf"\b{gpu.partition('_')[0]}\b", name):
                    gpus[gpu] = hourly
        elif "vCPU Active" in name:
            vcpu = hourly
        elif "Memory Active" in name:
            memory = hourly
    if vcpu is None or memory is None or not gpus:
        raise ValueError(f"no GPU, vCPU and memory lines for {region}")
    return Rates(gpus, vcpu, memory, time.time(), f"Azure's retail prices for {region}, now")


def _hourly(item: Mapping[str, Any]) -> float | None:
    """USD per hour; None for a unit that is no time."""
    unit = str(item.get("unitOfMeasure", "")).lower()
    found = re.fullmatch(r"(\d+)(?: gib| vcpu| gpu)? (second|hour)s?", unit)
    if found is None:
        return None
    return float(item["retailPrice"]) / int(found[1]) * 3600.0 / _SECONDS[found[2]]
