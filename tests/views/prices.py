"""Lists of prices as `show-gpus` makes them: every kind of offer, dated, some stale, some without a quote."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from tuna_nb.catalog import gpus
from tuna_nb.catalog.listing import Answer, Priced, PriceList, Seen, SourceReport
from tuna_nb.catalog.offers import DAY_S, Lines, Offer, OfferKind, Shape

NOW = 1_800_000_000.0
HOUR_S = 3600.0
SHAPE = Shape(1, 8, 32, 100)
CONTAINER = Lines(vcpu=0.0473, memory_gib=0.008, disk_gb_month=0.0)
"""What a serverless provider bills beside the GPU: USD per vCPU-hour and GiB-hour."""


def offer(provider: str, kind: OfferKind, gpu: str, price: float | None, region: str | None, **more: Any) -> Offer:
    more = {"observed_at": NOW - HOUR_S, "source": f"{provider}'s price list"} | more
    return Offer(provider, kind, gpu, price, region, **more)


def priced(made: Offer, shape: Shape | None = SHAPE, **more: Any) -> Priced:
    return Priced(made, gpus.find(made.gpu).vram_gb, made.all_in(shape), made.is_stale(NOW), **more)


def price_list(
    *offers: Offer, shape: Shape | None = SHAPE, history: tuple[Seen, ...] = (), total: int | None = None
) -> PriceList:
    rows = tuple(priced(o, shape) for o in offers)
    source = SourceReport("snapshot", Answer.FRESH, len(rows), NOW - DAY_S)
    return PriceList(rows, len(rows) if total is None else total, shape, (source,), NOW, history)


def _regions(provider: str, gpu: str, prices: dict[str, tuple[float, ...]], **more: Any) -> list[Offer]:
    """Spot offers, one a zone: the region's name and a, b, c."""
    return [
        offer(provider, OfferKind.SPOT, gpu, price, region, zone=f"{region}{'abc'[number]}", vcpus=8, memory_gib=32,
              lines=Lines(disk_gb_month=0.08), **more)
        for region, zones in prices.items()
        for number, price in enumerate(zones)
    ]  # fmt: skip


def realistic() -> PriceList:
    """Some 40 offers of all five kinds for four GPUs, as a query for them would give: stale ones, one without a
    quote, one of eight GPUs, one whose disk has no price."""
    s, o, d, i = OfferKind.SERVERLESS, OfferKind.ON_DEMAND, OfferKind.DEDICATED, OfferKind.INTERRUPTIBLE
    vm: dict[str, Any] = {"vcpus": 8, "memory_gib": 32, "lines": Lines(disk_gb_month=0.08)}
    shipped: dict[str, Any] = {
        "source": "snapshot of 2026-12-20",
        "observed_at": NOW - 26 * DAY_S,
        "snapshot": True,
    }
    stale: dict[str, Any] = {"observed_at": NOW - 45 * DAY_S, "source": "snapshot of 2026-12-01", "snapshot": True}
    host: dict[str, Any] = {
        "vcpus": 16, "memory_gib": 64, "lines": Lines(disk_gb_month=0.15), "observed_at": NOW - 300,
        "source": "vast's offers", "confidence": 0.99,
    }  # fmt: skip
    return price_list(
        offer("modal", s, "L4", 0.80, None, lines=CONTAINER, **shipped),
        offer("runpod", s, "L4", 0.69, "EU-RO-1", stock="High"),
        offer("cloudrun", s, "L4", 0.671, "us-central1", lines=Lines(0.0648, 0.0072, 0.0)),
        offer("baseten", s, "L4", 0.8484, None, **stale),
        offer("aws", o, "L4", 0.8048, "us-east-1", machine="g6.xlarge", **vm),
        offer("gcp", o, "L4", 0.7067, "us-central1", machine="g2-standard-4", **vm),
        *_regions("aws", "L4", {"us-east-1": (0.301, 0.355, 0.42), "eu-west-1": (0.39, 0.41), "us-west-2": (0.33,)}),
        *_regions("gcp", "L4", {"us-central1": (0.2826, 0.2826), "europe-west4": (0.345, 0.36)}),
        offer("azure", OfferKind.SPOT, "L4", None, "westeurope", note="no spot quote: it is equal to the on-demand price"),
        offer("vast", i, "L4", 0.18, "Sweden, SE", **host),
        offer("vast", d, "L4", 0.29, "Sweden, SE", **host),
        offer("tensordock", d, "L4", 0.35, "Delaware", lines=Lines(0.003, 0.002, None), **shipped),
        offer("modal", s, "A100_80GB", 2.50, None, lines=CONTAINER, **shipped),
        offer("runpod", s, "A100_80GB", 2.17, "EU-RO-1", stock="Medium"),
        offer("azure", s, "A100_80GB", 3.31, "westus3", lines=Lines(0.0864, 0.0108, 0.0), **shipped),
        *_regions("gcp", "A100_80GB", {"us-central1": (1.57, 1.71), "us-east4": (1.99,)}),
        offer("vast", i, "A100_80GB", 0.52, "Texas, US", **host),
        offer("vast", d, "A100_80GB", 0.89, "Texas, US", **host),
        offer("modal", s, "H100", 3.95, None, lines=CONTAINER, **shipped),
        offer("runpod", s, "H100", 4.18, "US-KS-2", stock="Low"),
        offer("baseten", s, "H100", 6.5, None, **stale),
        offer("cerebrium", s, "H100", 2.79, "us-east-1", lines=Lines(0.0236, 0.0079, 0.0), **shipped),
        offer("aws", o, "H100", 6.88, "us-east-1", gpu_count=8, vcpus=192, memory_gib=2048, machine="p5.48xlarge",
              lines=Lines(disk_gb_month=0.08)),
        *_regions("aws", "H100", {"us-east-1": (2.1, 2.6, 3.4), "us-west-2": (2.45, 2.5), "eu-north-1": (1.98,)}),
        *_regions("gcp", "H100", {"us-central1": (2.25,), "asia-southeast1": (3.1, 3.3)}, source="gpuhunt",
                  observed_at=NOW - 3 * DAY_S),
        offer("vast", d, "H100", 1.87, "Iceland, IS", **host),
        offer("vast", i, "RTX4090", 0.16, "Quebec, CA", **host),
        offer("vast", d, "RTX4090", 0.31, "Quebec, CA", **host),
        offer("runpod", s, "RTX4090", 1.1, "EU-RO-1"),
        offer("tensordock", d, "RTX4090", None, "Chubbuck", note="its price is not told"),
        history=seen(),
    )  # fmt: skip


def seen(days: int = 30) -> tuple[Seen, ...]:
    """A month of the L4: serverless that changed once, spot that moves every day, a marketplace's bid."""
    made = []
    dice = random.Random(7)
    for day in range(days):
        at = NOW - (days - day) * DAY_S
        made += [
            Seen(at, "modal", "serverless", "L4", None, 0.80 if day < 20 else 0.76),
            Seen(at, "aws", "spot", "L4", "us-east-1", round(0.33 + 0.05 * dice.random(), 4)),
            Seen(at, "aws", "spot", "L4", "eu-west-1", 0.5),
            Seen(at, "vast", "interruptible", "L4", "Sweden, SE", round(0.17 + 0.04 * dice.random(), 3)),
            Seen(at, "vast", "interruptible", "H100", "Iceland, IS", round(1.2 + 0.3 * dice.random(), 3)),
        ]
    return tuple(made)


GPUS = ("T4", "L4", "A10G", "RTX4090", "RTX5090", "L40S", "A40", "RTXA6000", "A100_40GB", "A100_80GB", "H100",
        "RTXPRO6000", "H200", "B200", "B300", "MI300X")  # fmt: skip
PROVIDERS = {
    "modal": (OfferKind.SERVERLESS,),
    "runpod": (OfferKind.SERVERLESS, OfferKind.DEDICATED),
    "baseten": (OfferKind.SERVERLESS,),
    "cloudrun": (OfferKind.SERVERLESS,),
    "aws": (OfferKind.SPOT, OfferKind.ON_DEMAND),
    "gcp": (OfferKind.SPOT, OfferKind.ON_DEMAND),
    "azure": (OfferKind.SPOT, OfferKind.ON_DEMAND),
    "vast": (OfferKind.INTERRUPTIBLE, OfferKind.DEDICATED),
}
_SHARE = {"serverless": 1.4, "on-demand": 1.2, "spot": 0.45, "dedicated": 0.6, "interruptible": 0.35}


def many(count: int) -> PriceList:
    """`count` offers of 16 GPUs at 8 providers, the same ones every time."""
    dice = random.Random(3)
    places = [(g, p, k) for g in GPUS for p, kinds in PROVIDERS.items() for k in kinds]
    made = []
    for number in range(count):
        gpu, provider, kind = places[number % len(places)]
        price = gpus.find(gpu).vram_gb ** 1.15 * 0.022 * _SHARE[kind] * dice.uniform(0.8, 1.3)
        region = f"{dice.choice(('us', 'eu', 'ap'))}-{dice.choice(('east', 'west', 'north'))}-{dice.randint(1, 4)}"
        made.append(
            offer(
                provider, kind, gpu, None if number % 41 == 40 else round(price, 4), region,
                zone=f"{region}{dice.choice('abc')}", note="no spot quote" if number % 41 == 40 else "",
                observed_at=NOW - dice.choice((600, 7200, 3 * DAY_S, 40 * DAY_S)),
                gpu_count=dice.choice((1, 1, 1, 8)), lines=Lines(0.04, 0.004, dice.choice((0.1, None))),
            )
        )  # fmt: skip
    made_list = price_list(*made)
    rows = tuple(
        replace(r, saves_on_demand=round(dice.uniform(-0.2, 0.8), 3) if r.all_in else None) for r in made_list.rows
    )
    return replace(made_list, rows=rows)
