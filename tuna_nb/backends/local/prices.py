"""What the local cloud charges: a price list like a real provider's, so that cost figures mean something.

The figures are illustrative. They were set on 2026-11-20 to lie near public list prices of that time: the
serverless side three to five times the spot side, which is the gap that a hybrid deployment lives on. Nobody is
charged anything.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tuna_nb.backends.base import Kind
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.catalog.rules import rule
from tuna_nb.errors import RequestError, did_you_mean

PRICED_ON: Final = datetime.date(2026, 11, 20)
SOURCE: Final = f"local cloud's own price list, illustrative, {PRICED_ON.isoformat()}"


@dataclass(frozen=True, slots=True)
class GpuPrice:
    """One GPU's price in USD per hour on either side."""

    serverless_usd: float
    spot_usd: float

    def of(self, kind: Kind) -> float:
        return self.serverless_usd if kind is Kind.SERVERLESS else self.spot_usd


PRICES: Final[Mapping[str, GpuPrice]] = {
    "T4": GpuPrice(0.59, 0.14),
    "L4": GpuPrice(0.80, 0.22),
    "A10G": GpuPrice(1.10, 0.32),
    "A10": GpuPrice(1.10, 0.30),
    "V100": GpuPrice(1.60, 0.45),
    "RTX4090": GpuPrice(1.10, 0.28),
    "RTX5090": GpuPrice(1.58, 0.42),
    "L40S": GpuPrice(1.95, 0.50),
    "L40": GpuPrice(1.75, 0.46),
    "A40": GpuPrice(1.15, 0.31),
    "RTXA6000": GpuPrice(1.22, 0.33),
    "RTX3090": GpuPrice(0.70, 0.18),
    "RTXA4000": GpuPrice(0.58, 0.15),
    "RTXA5000": GpuPrice(0.70, 0.19),
    "RTX6000ADA": GpuPrice(1.90, 0.49),
    "RTXPRO6000": GpuPrice(3.00, 0.85),
    "H100_40GB": GpuPrice(2.60, 0.70),
    "A100_40GB": GpuPrice(2.10, 0.62),
    "A100_80GB": GpuPrice(2.50, 0.78),
    "H100": GpuPrice(3.95, 1.15),
    "H200": GpuPrice(4.54, 1.40),
    "B200": GpuPrice(6.25, 1.95),
}
"""USD per hour for one GPU, by the GPU's canonical name."""


def price_per_hour_usd(gpu: str, kind: Kind) -> float:
    """One GPU's price. Raises RequestError for a GPU that is not on the list."""
    try:
        return PRICES[gpu].of(kind)
    except KeyError:
        raise RequestError(f"the local cloud has no GPU {gpu!r}", did_you_mean(gpu, PRICES)) from None


def offers() -> list[Offer]:
    """The whole list, both sides, dated with the day it was set."""
    at = datetime.datetime.combine(PRICED_ON, datetime.time(), datetime.UTC).timestamp()
    return [
        Offer(
            "local",
            OfferKind(kind),
            gpu,
            price.of(kind),
            None,
            at,
            SOURCE,
            billing=rule("local", kind).billing,
        )
        for gpu, price in PRICES.items()
        for kind in (Kind.SERVERLESS, Kind.SPOT)
    ]
