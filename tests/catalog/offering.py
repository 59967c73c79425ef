"""Offers for tests: a plain one, and what differs."""

from __future__ import annotations

from typing import Any

from tuna_nb.catalog.offers import INCLUDED, Offer, OfferKind

NOW = 1_800_000_000.0
"""The time of every test that asks for one, Unix seconds."""


def offer(
    provider: str = "aws",
    kind: OfferKind = OfferKind.ON_DEMAND,
    gpu: str = "L4",
    usd: float | None = 1.0,
    **more: Any,
) -> Offer:
    more = {"region": None, "observed_at": NOW, "source": "the test", "lines": INCLUDED} | more
    return Offer(provider, kind, gpu, usd, **more)
