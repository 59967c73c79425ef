"""What a container costs at Modal: its GPUs, and beside them the CPU cores and the memory, each by the second.

Modal tells its rates to who has a token, under keys and in units that its SDK does not write down. A key is taken
for a GPU's where the GPU's id stands in it as whole words, and the unit for the one that comes near the published
price; what can't be told so is not guessed: the published price, with its date, stands in for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

GPUS: Final[Mapping[str, str]] = {
    "T4": "T4",
    "L4": "L4",
    "A10": "A10",
    "A10G": "A10",
    "L40S": "L40S",
    "A100_40GB": "A100-40GB",
    "A100_80GB": "A100-80GB",
    "H100": "H100",
    "H200": "H200",
    "B200": "B200",
}
"""Our GPU to Modal's id."""
MOST: Final[Mapping[str, int]] = {"A10": 4, "A10G": 4}
"""GPUs of a container, where it is not eight (https://modal.com/docs/guide/gpu)."""

CORE: Final = "cpu core"
GIB: Final = "GiB of memory"
SNAPSHOT: Final[Mapping[str, float]] = {
    "T4": 0.59,
    "L4": 0.80,
    "A10": 1.10,
    "A10G": 1.10,
    "L40S": 1.95,
    "A100_40GB": 2.10,
    "A100_80GB": 2.50,
    "H100": 3.95,
    "H200": 4.54,
    "B200": 6.25,
    CORE: 0.04716,
    GIB: 0.007992,
}
"""USD per hour: of one GPU, of one physical core (0.0000131/s), of one GiB (0.00000222/s)."""
SNAPSHOT_AT: Final = datetime(2026, 5, 8, tzinfo=UTC).timestamp()
SNAPSHOT_SOURCE: Final = "modal.com/pricing, 2026-05-08"

_BROAD: Final = 1.5
_NARROW: Final = 1.75
_SPECIAL: Final = frozenset({"region", "nonpreemptible", "sandbox", "notebook", "reserved", "volume"})
_PER_HOUR: Final = (1, 60, 3600)
_NEAR: Final = 3.0


def region_factor(region: str) -> float:
    """What choosing a region multiplies the price by (https://modal.com/docs/guide/region-selection)."""
    return _NARROW if "-" in region else _BROAD


def container(
    rates: Mapping[str, float], gpu: str, *, count: int, cores: int, gib: int, region: str | None
) -> float | None:
    """USD per hour of one container. None where Modal's price of the GPU is not known."""
    if gpu not in rates:
        return None
    base = rates[gpu] * count + rates[CORE] * cores + rates[GIB] * gib
    return round(base * (1.0 if region is None else region_factor(region)), 6)


def live(told: Mapping[str, Decimal]) -> tuple[dict[str, float], frozenset[str]]:
    """The snapshot with what Modal tells put in its place, and the names of what it told."""
    rates, known = dict(SNAPSHOT), set()
    words = {**GPUS, CORE: "cpu", GIB: "memory"}
    for name, published in SNAPSHOT.items():
        found = [
            usd
            for key, value in told.items()
            if _names(key, words[name]) and (usd := _hourly(float(value), published)) is not None
        ]
        if found:
            rates[name] = max(found)
            known.add(name)
    return rates, frozenset(known)


def _names(key: str, what: str) -> bool:
    in_key, asked = (re.findall(r"[a-z0-9]+", text.lower()) for text in (key, what))
    return set(asked) <= set(in_key) and not _SPECIAL & set(in_key)


def _hourly(value: float, published: float) -> float | None:
    """USD per hour of a rate whose unit is not told; None where no unit brings it near the published one."""
    for factor in _PER_HOUR:
        if published / _NEAR < value * factor < published * _NEAR:
            return round(value * factor, 6)
    return None
