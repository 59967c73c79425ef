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
from datetime import UTC, datetime
from typing import Any, Final

from tuna_nb.backends.azure.app import PROFILES

URL: Final = "https://prices.azure.com"
_PATH: Final = "/api/retail/prices"
_KEPT_S: Final = 3600.0
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

    def replica(self, gpu: str) -> float | None:
        """A replica's whole price per hour; None for a GPU that is not sold there."""
        if gpu not in self.gpus:
            return None
        shape = PROFILES[gpu]
        return round(self.gpus[gpu] + shape.vcpus * self.vcpu + shape.memory_gib * self.memory_gib, 6)


SNAPSHOT: Final = Rates(
    gpus={"T4": 0.26, "A100_80GB": 1.90},
    vcpu=0.000024 * 3600,
    memory_gib=0.000003 * 3600,
    at=datetime(2026, 1, 1, tzinfo=UTC).timestamp(),
    source="figures of early 2026 for US regions, not checked against Azure's price page",
)
"""GPU: as another deployment tool published them, early 2026. vCPU and memory: Azure's long-standing active rates
per second, from memory. The live list is what counts."""


class Prices:
    """url: of the Retail Prices API, by default AZURE_PRICES_URL or Azure's own. Answers are kept for an hour."""

    def __init__(self, url: str | None = None) -> None:
        self._url = (url or os.environ.get("AZURE_PRICES_URL") or URL).rstrip("/")
        self._kept: dict[str, tuple[float, Rates]] = {}

    async def rates(self, region: str) -> Rates:
        """Of that region now, or the snapshot with the reason in its source."""
        now = time.time()
        kept = self._kept.get(region)
        if kept is None or now - kept[0] > _KEPT_S:
            kept = self._kept[region] = (now, await self._fresh(region))
        return kept[1]

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
            async with httpx.AsyncClient(timeout=_TIMEOUT_S) as http:
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
            return Rates(
                SNAPSHOT.gpus,
                SNAPSHOT.vcpu,
                SNAPSHOT.memory_gib,
                SNAPSHOT.at,
                f"{SNAPSHOT.source} (the price list can't be used: {why.splitlines()[0]})",
            )


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
