"""What spot machines cost, from SkyPilot's catalog: tables per cloud that SkyPilot fetches and keeps.

The catalog has blanks, and spot prices at or above the on-demand price: those are no quotes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuna_nb.catalog.gpus import SPELLINGS
from tuna_nb.catalog.offers import believable
from tuna_nb.errors import RequestError, did_you_mean

ACCELERATORS: Final[Mapping[str, str]] = SPELLINGS["skypilot"]
"""Our GPU to SkyPilot's accelerator."""
SOURCE: Final = "SkyPilot's catalog"
CONTROLLER_USD: Final = 0.2
"""Per hour: 4 CPUs and 16 GB on demand (m6i.xlarge was 0.192 in 2025), where the catalog does not tell."""


@dataclass(frozen=True, slots=True)
class Quote:
    """One machine with `count` GPUs in one region, USD per hour. spot: None where there is no believable quote."""

    gpu: str
    count: int
    machine: str
    region: str
    on_demand: float | None
    spot: float | None


@dataclass(frozen=True, slots=True)
class Price:
    """Of a replica, USD per hour: the cheapest spot quote where it may run, and the dearest that it may come to."""

    cheapest: float | None
    dearest: float | None
    region: str | None


def quotes(sky: Any, cloud: str, gpu: str | None = None) -> list[Quote]:
    """Every machine with one of our GPUs at a cloud. To be called in a thread: it reads files, or fetches them."""
    ours = {name: known for known, name in ACCELERATORS.items()}
    # Not by its `name_filter`: of a name that a cloud does not have SkyPilot 0.14 makes an empty table, and with
    # pandas 3 and pyarrow fails at it.
    listed = sky.catalog.list_accelerators(
        gpus_only=True, name_filter=None, clouds=cloud, all_regions=True, require_price=True
    )
    return [
        Quote(
            gpu=ours[name],
            count=int(item.accelerator_count),
            machine=str(item.instance_type),
            region=str(item.region),
            on_demand=_price(item.price),
            spot=believable(_price(item.spot_price), _price(item.price))[0],
        )
        for name, items in listed.items()
        if name in ours and gpu in (None, ours[name])
        for item in items
    ]


def replica(found: Iterable[Quote], gpu: str, count: int, regions: Iterable[str], *, on_demand: bool) -> Price:
    """regions: where it may run, all where none is named. on_demand: whether it may be one that is not spot.

    Raises RequestError where the cloud has no such machine at all.
    """
    listed = list(found)
    asked = {region.partition("/")[0] for region in regions}
    fit = [q for q in listed if (q.gpu, q.count) == (gpu, count)]
    if not fit:
        counts = sorted({q.count for q in listed if q.gpu == gpu})
        if counts:
            raise RequestError(
                f"skyserve: no machine there has {count} {gpu}", "it has " + ", ".join(f"{c}" for c in counts)
            )
        raise RequestError(
            f"skyserve: SkyPilot's catalog has no {gpu} there", did_you_mean(gpu, {q.gpu for q in listed})
        )
    there = [q for q in fit if not asked or q.region in asked]
    if not there:
        known = sorted({q.region for q in fit})
        missing = sorted(asked)
        raise RequestError(f"skyserve: no {count} {gpu} in {', '.join(missing)}", did_you_mean(missing[0], known))
    spot = [q for q in there if q.spot is not None]
    dearest = [q.spot for q in spot if q.spot is not None]
    # Zones of a region differ threefold, and the catalog's quote is one zone's: on-demand bounds the machine that
    # SkyPilot takes first.
    among = there if on_demand else spot
    for region in {q.region for q in among}:
        dearest.append(min((q.on_demand for q in among if q.region == region and q.on_demand), default=0.0))
    cheapest = min(spot, key=lambda q: q.spot or math.inf, default=None)
    return Price(
        cheapest.spot if cheapest else None, max(dearest, default=None), cheapest.region if cheapest else None
    )


def controller(sky: Any, cloud: str) -> float | None:
    """USD per hour of SkyServe's controller VM, as SkyPilot chooses it; None where the catalog does not tell."""
    machine = sky.catalog.get_default_instance_type(cpus="4+", memory="8+", clouds=cloud)
    if machine is None:
        return None
    return _price(sky.catalog.get_hourly_cost(machine, use_spot=False, region=None, zone=None, clouds=cloud))


def _price(told: Any) -> float | None:
    """None for a blank, which the catalog reads as not a number."""
    if told is None or math.isnan(value := float(told)) or value <= 0:
        return None
    return value
