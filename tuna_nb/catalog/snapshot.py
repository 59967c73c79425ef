"""The dated prices that ship with Tuna: what is shown where nothing newer is known.

`snapshot.csv`, a row an offer. Prices in USD: of one GPU an hour, of a vCPU and a GiB an hour (0: in the machine's
price; blank: billed, and not known), of a GB of disk for a month of 30 days. How time is billed, `rules` says.
`observed_on`: when the source said so; of a source without a date the earliest day that it can be, so that no price
passes for newer than it is.
`python -m tuna_nb.commands.refresh` compares it with the live sources.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from datetime import UTC, date, datetime
from importlib import resources
from typing import Final

from tuna_nb.catalog.offers import Lines, Offer, OfferKind
from tuna_nb.catalog.rules import rule

COLUMNS: Final = (
    "provider", "kind", "gpu", "gpu_count", "most_gpus", "machine", "region", "zone", "price_per_hour_usd", "vcpus",
    "memory_gib", "vcpu_usd", "memory_gib_usd", "disk_gb_month_usd", "observed_on", "source", "note",
)  # fmt: skip
FILE: Final = "snapshot.csv"


@functools.cache
def offers() -> tuple[Offer, ...]:
    """The whole table."""
    text = resources.files("tuna_nb.catalog").joinpath(FILE).read_text("utf-8")
    return tuple(read(text.splitlines()))


def of(provider: str, kind: OfferKind = OfferKind.SERVERLESS) -> tuple[Offer, ...]:
    """A provider's own rows."""
    return tuple(o for o in offers() if (o.provider, o.kind) == (provider, kind))


def rates(provider: str) -> dict[str, Offer]:
    """GPU to a provider's serverless offer with one of it; the first, where regions have one each."""
    found: dict[str, Offer] = {}
    for offer in of(provider):
        if offer.gpu_count == 1:
            found.setdefault(offer.gpu, offer)
    return found


def read(lines: Iterable[str]) -> list[Offer]:
    """Raises ValueError or KeyError for what is no such table."""
    return [_offer(row) for row in csv.DictReader(lines)]


def write(table: Iterable[Offer]) -> list[list[str]]:
    """The rows of the file, its head first."""
    return [list(COLUMNS), *(_row(offer) for offer in table)]


def _offer(row: dict[str, str]) -> Offer:
    return Offer(
        provider=row["provider"],
        kind=OfferKind(row["kind"]),
        gpu=row["gpu"],
        price_per_hour_usd=_number(row["price_per_hour_usd"]),
        region=row["region"] or None,
        observed_at=datetime.combine(date.fromisoformat(row["observed_on"]), datetime.min.time(), UTC).timestamp(),
        source=row["source"],
        gpu_count=int(row["gpu_count"]),
        zone=row["zone"] or None,
        machine=row["machine"] or None,
        vcpus=_number(row["vcpus"]),
        memory_gib=_number(row["memory_gib"]),
        lines=Lines(_number(row["vcpu_usd"]), _number(row["memory_gib_usd"]), _number(row["disk_gb_month_usd"])),
        billing=rule(row["provider"], row["kind"]).billing,
        note=row["note"],
        snapshot=True,
        most_gpus=int(row["most_gpus"]) if row["most_gpus"] else None,
    )


def _row(o: Offer) -> list[str]:
    return [
        o.provider, o.kind.value, o.gpu, str(o.gpu_count), _text(o.most_gpus), o.machine or "",
        o.region or "", o.zone or "",
        _text(o.price_per_hour_usd), _text(o.vcpus), _text(o.memory_gib), _text(o.lines.vcpu),
        _text(o.lines.memory_gib), _text(o.lines.disk_gb_month),
        datetime.fromtimestamp(o.observed_at, UTC).date().isoformat(), o.source, o.note,
    ]  # fmt: skip


def _number(text: str) -> float | None:
    return float(text) if text else None


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:.6f}".rstrip("0").rstrip(".")
