"""What a container costs at Modal: its GPUs, and beside them the CPU cores and the memory, each by the second.

Modal tells its rates to who has a token, under keys and in units that its SDK does not write down. A key is taken
for a GPU's where the GPU's id stands in it as whole words, and the unit for the one that comes near the published
price; what can't be told so is not guessed: the published price, with its date, stands in for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from tuna_nb.catalog import snapshot
from tuna_nb.catalog.gpus import SPELLINGS

GPUS: Final[Mapping[str, str]] = SPELLINGS["modal"]
"""Our GPU to Modal's id."""
MOST: Final[Mapping[str, int]] = {"A10": 4, "A10G": 4}
"""GPUs of a container, where it is not eight (https://modal.com/docs/guide/gpu)."""

CORE: Final = "cpu core"
GIB: Final = "GiB of memory"
_BROAD: Final = 1.5
_NARROW: Final = 1.75
_SPECIAL: Final = frozenset({"region", "nonpreemptible", "sandbox", "notebook", "reserved", "volume"})
_PER_HOUR: Final = (1, 60, 3600)
_NEAR: Final = 3.0


def shipped() -> dict[str, float]:
    """USD per hour as it was published: of one GPU, of one physical core, of one GiB."""
    offers = snapshot.rates("modal")
    rates = {gpu: usd for gpu, o in offers.items() if (usd := o.price_per_hour_usd) is not None}
    lines = next(iter(offers.values())).lines
    return rates | {CORE: lines.vcpu or 0.0, GIB: lines.memory_gib or 0.0}


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
    rates, known = shipped(), set()
    words = {**GPUS, CORE: "cpu", GIB: "memory"}
    for name, published in shipped().items():
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
