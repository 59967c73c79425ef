"""What Cloud Run charges for a GPU and for the vCPUs and memory beside it, from Google's Cloud Billing catalogue.

A GPU's container is billed by instance, so that the instance-based rates of its region are the ones that count.
https://cloud.google.com/billing/docs/reference/rest/v1/services.skus, read on 2026-11-21.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from tuna_nb.catalog import gpus
from tuna_nb.catalog.offers import Lines, Offer, OfferKind
from tuna_nb.catalog.rules import rule
from tuna_nb.catalog.sources import http
from tuna_nb.catalog.sources.base import Source, changed
from tuna_nb.errors import CredentialsError

URL: Final = "https://cloudbilling.googleapis.com"
CLOUD_RUN: Final = "152E-C115-5142"
KEYS: Final = ("GOOGLE_API_KEY", "GOOGLE_CLOUD_API_KEY")
SIGN_IN: Final = f"export {KEYS[0]}=<an API key of a project with the Cloud Billing API enabled>"
_PAGE: Final = 5000
_MOST_PAGES: Final = 50
_UNITS: Final = {"gpu": "s", "cpu": "s", "memory": "GiBy.s"}
"""What a rate is for, as the catalogue writes it: seconds, and GiB-seconds. Any other is not guessed at."""
_OTHERS: Final = re.compile(
    r"^(Jobs|Worker Pools|Delayed Jobs)\b|Delayed|Commitment|Min Instance|Request-based", re.I
)
_GPU: Final = {"L4": re.compile(r"\bL4\b", re.I), "RTXPRO6000": re.compile(r"\bRTX[ -]?PRO[ -]?6000\b", re.I)}
_REDUNDANT: Final = re.compile(r"\b(no|non|not|without)?[ -]*zonal(?:ly)?[ -]redundan", re.I)


class GoogleBillingSource(Source):
    """environ: where the key is looked up."""

    name = "google"
    sellers = frozenset({"cloudrun"})
    kinds: ClassVar[frozenset[OfferKind]] = frozenset({OfferKind.SERVERLESS})
    fresh_s: ClassVar[float] = 86400.0

    def __init__(self, url: str | None = None, *, environ: Mapping[str, str] | None = None) -> None:
        self._env = os.environ if environ is None else environ
        self._url = url

    def lacks(self) -> str | None:
        return None if self._key() else SIGN_IN

    async def fetch(self) -> list[Offer]:
        skus = await self._skus()
        now = time.time()
        rates: dict[str, dict[str, float]] = {"cpu": {}, "memory": {}}
        sold: dict[tuple[str, str, str], float] = {}
        for sku in skus:
            words = http.text(self.name, sku, "description") or ""
            usage = http.field(self.name, sku, "category")
            if http.text(self.name, usage, "usageType") != "OnDemand" or _OTHERS.search(words):
                continue
            gpu = next((name for name, pattern in _GPU.items() if pattern.search(words)), None)
            part = "gpu" if gpu else _part(words)
            if part is None:
                continue
            usd = self._usd_per_hour(sku, words, _UNITS[part])
            for region in self._regions(sku):
                if gpu:
                    self._put(sold, (gpu, region, _redundancy(words)), usd, words)
                else:
                    self._put(rates[part], region, usd, words)
        if not sold:
            raise changed(self.name, f"none of its {len(skus)} prices is of a GPU")
        return [
            Offer(
                provider="cloudrun",
                kind=OfferKind.SERVERLESS,
                gpu=gpu,
                price_per_hour_usd=usd,
                region=region,
                observed_at=now,
                source="Cloud Billing catalogue",
                machine=f"{gpus.spelling(gpu, 'cloudrun')}{' zonal' if note.startswith('with ') else ''}",
                lines=Lines(vcpu=rates["cpu"].get(region), memory_gib=rates["memory"].get(region)),
                billing=rule("cloudrun", OfferKind.SERVERLESS).billing,
                note=note,
            )
            for (gpu, region, note), usd in sold.items()
        ]

    async def _skus(self) -> list[dict[str, Any]]:
        key = http.key_of(self.name, self._key(), SIGN_IN)
        if key is None:
            raise CredentialsError(f"{self.name}: there is no key", SIGN_IN)
        base = (self._url or self._env.get("TUNA_GOOGLE_BILLING_URL") or URL).rstrip("/")
        found: list[dict[str, Any]] = []
        token = ""
        for _ in range(_MOST_PAGES):
            said = await http.ask_json(
                self.name,
                f"{base}/v1/services/{CLOUD_RUN}/skus",
                timeout_s=self.timeout_s,
                params={"pageSize": str(_PAGE), "currencyCode": "USD", **({"pageToken": token} if token else {})},
                # In the URL it would end in logs on the way.
                headers={"x-goog-api-key": key},
                sign_in=SIGN_IN,
            )
            found += http.records(self.name, said, "skus")
            token = said.get("nextPageToken") or ""
            if not token:
                return found
        raise changed(self.name, f"it has more than {_MOST_PAGES} pages")

    def _usd_per_hour(self, sku: Mapping[str, Any], words: str, unit: str) -> float:
        """Of the last tier: the ones before it are what is free each month. A nano is a 1e-9 of the unit price."""
        history = http.records(self.name, sku, "pricingInfo")
        priced = http.field(self.name, history[-1] if history else None, "pricingExpression")
        told = http.text(self.name, priced, "usageUnit")
        if told != unit:
            raise changed(self.name, f"{words!r} is priced per {told}, not per {unit}")
        tiers = http.records(self.name, priced, "tieredRates")
        last = max(tiers, key=lambda tier: http.number(self.name, tier, "startUsageAmount") or 0.0, default=None)
        price = http.field(self.name, last, "unitPrice")
        if http.text(self.name, price, "currencyCode") != "USD":
            raise changed(self.name, f"{words!r} is not priced in USD")
        # Proto JSON leaves out what is 0 and writes 64-bit whole numbers as text.
        units = price.get("units", "0")
        if not isinstance(units, str | int) or not str(units).isdecimal():
            raise changed(self.name, "units is no whole number")
        usd = int(units) + (http.number(self.name, {"nanos": 0, **price}, "nanos") or 0.0) / 1e9
        if usd <= 0:
            raise changed(self.name, f"{words!r} has no price")
        return round(usd * 3600, 9)

    def _regions(self, sku: Mapping[str, Any]) -> list[str]:
        found = http.field(self.name, sku, "serviceRegions")
        if not isinstance(found, list) or not all(isinstance(region, str) for region in found):
            raise changed(self.name, "serviceRegions is no list of texts")
        return found

    def _put(self, prices: dict[Any, float], of: Any, usd: float, words: str) -> None:
        if prices.setdefault(of, usd) != usd:
            raise changed(self.name, f"{words!r} has two prices for one region")

    def _key(self) -> str | None:
        return next((key for name in KEYS if (key := self._env.get(name, "").strip())), None)


def _part(words: str) -> str | None:
    """Which of the instance-based rates it is; None for anything else."""
    if not re.match(r"Services (CPU|Memory) \(Instance-based billing\)", words, re.I):
        return None
    return "cpu" if words.lower().startswith("services cpu") else "memory"


def _redundancy(words: str) -> str:
    found = _REDUNDANT.search(words)
    if found is None:
        return ""
    return "without zonal redundancy" if found[1] else "with zonal redundancy"
