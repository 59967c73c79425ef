"""What a GPU costs: one record for every provider and kind, with all that is really billed beside the GPU.

Unknown is None, never 0; a 0 means that it is included. All prices are USD.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Final

DAY_S: Final = 86400.0
MONTH_HOURS: Final = 720
"""A month of 30 days, by which disks are priced."""


class OfferKind(enum.StrEnum):
    """How a GPU is sold."""

    SERVERLESS = "serverless"
    """By the second while a container is up, none while there is no traffic."""
    SPOT = "spot"
    """A cloud's spare machine, taken away at short notice."""
    ON_DEMAND = "on-demand"
    """A cloud's machine that stays."""
    INTERRUPTIBLE = "interruptible"
    """A marketplace's machine, ours while nobody bids more; the price is the least bid, not what clears."""
    DEDICATED = "dedicated"
    """A marketplace's machine that stays."""


SHELF_LIFE_S: Final = {
    OfferKind.SERVERLESS: 30 * DAY_S,
    OfferKind.SPOT: DAY_S,
    OfferKind.ON_DEMAND: 30 * DAY_S,
    OfferKind.INTERRUPTIBLE: 900.0,
    OfferKind.DEDICATED: 900.0,
}
"""How long a price of that kind may be believed, seconds: list prices change a few times a year, spot ones daily, a
marketplace's offers within the hour."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What is billed beside the GPUs. 0: included in their price. None: billed or not, the price is not known.

    vcpu, memory_gib: USD per hour for each. disk_gb_month: USD per GB and month of 30 days, as providers count it.
    """

    vcpu: float | None = 0.0
    memory_gib: float | None = 0.0
    disk_gb_month: float | None = None


INCLUDED: Final = Lines()
"""Its vCPUs and memory come with it, as of a cloud's machine; what a disk costs is not told."""


@dataclass(frozen=True, slots=True)
class Billing:
    """granularity_s: time is rounded up to a multiple of it. minimum_s: at least so much is billed for a start.
    boot, idle: whether the time while the engine starts, and the idle time before a container stops, are billed;
    None where it is not known.

    free_start: what happens first and costs nothing, in words, for no provider tells its seconds; the clock of
    `billed_s` starts after it. taken_free_s: what the provider takes away so soon after its start costs nothing.
    """

    granularity_s: float = 1.0
    minimum_s: float = 0.0
    boot: bool | None = None
    idle: bool | None = None
    free_start: str = ""
    taken_free_s: float = 0.0

    def billed_s(self, up_s: float, *, taken: bool = False) -> float:
        """Seconds that are paid for so many seconds up. taken: the provider ended it, not its user."""
        if taken and up_s < self.taken_free_s:
            return 0.0
        # A float's last bit must not cost another step.
        steps = math.ceil(round(max(0.0, up_s) / self.granularity_s, 6))
        return max(self.minimum_s, steps * self.granularity_s)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is to be paid for. disk_gb: 0 for none."""

    gpus: int = 1
    vcpus: float = 8
    memory_gib: float = 32
    disk_gb: float = 0


@dataclass(frozen=True, slots=True)
class AllIn:
    """usd_per_hour: of all lines that are known. lacks: lines that are billed too, of unknown price, so that the
    sum is the least that it can be. Source of each line: the offer's."""

    usd_per_hour: float
    lacks: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.lacks


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing that can be rented.

    provider: who sells it, e.g. `modal`, `aws`, `vast`. gpu: canonical name. price_per_hour_usd: of one GPU, None
    where there is no believable quote (`note` says why). gpu_count: GPUs of the machine or container. most_gpus:
    the most it can have, where their number can be chosen. vcpus, memory_gib: what comes with the whole machine,
    None where it can be chosen. machine: the provider's own name of it. stock: the provider's own word. confidence:
    0..1, how likely it is to be had. observed_at: Unix seconds. source: where it was read. snapshot: from the table
    that ships with Tuna.
    """

    provider: str
    kind: OfferKind
    gpu: str
    price_per_hour_usd: float | None
    region: str | None
    observed_at: float
    source: str
    gpu_count: int = 1
    zone: str | None = None
    machine: str | None = None
    vcpus: float | None = None
    memory_gib: float | None = None
    lines: Lines = INCLUDED
    billing: Billing = field(default_factory=Billing)
    stock: str | None = None
    confidence: float | None = None
    note: str = ""
    snapshot: bool = False
    most_gpus: int | None = None

    def holds(self, gpus: int) -> bool:
        """Whether one machine can have so many GPUs, which then can work on one model together."""
        return gpus <= (self.most_gpus or self.gpu_count)

    def age_s(self, now: float) -> float:
        return max(0.0, now - self.observed_at)

    def is_stale(self, now: float) -> bool:
        """Older than prices of its kind may be believed."""
        return self.age_s(now) > SHELF_LIFE_S[self.kind]

    def all_in(self, shape: Shape | None = None) -> AllIn | None:
        """USD per hour with everything that is billed; None where the GPU has no price.

        shape: what is wanted; by default the machine's own size, else 8 vCPUs and 32 GiB for each GPU. A machine is
        rented whole: of a shape that needs fewer GPUs than it has, all are paid.
        """
        total, lacks = self.sum(shape)
        return None if total is None else AllIn(total, lacks)

    def sum(self, shape: Shape | None = None) -> tuple[float | None, tuple[str, ...]]:
        """`all_in` as a plain number and what it lacks, for sorting thousands."""
        price, lines, count = self.price_per_hour_usd, self.lines, self.gpu_count
        if price is None:
            return None, ()
        if shape is None:
            vcpus = 8.0 * count if self.vcpus is None else self.vcpus
            memory = 32.0 * count if self.memory_gib is None else self.memory_gib
            disk, machines = 0.0, 1
        else:
            vcpus, memory, disk = shape.vcpus, shape.memory_gib, shape.disk_gb
            machines = -(-shape.gpus // count) or 1
        total, lacks = price * count * machines, list[str]()
        if lines.vcpu is None:
            lacks.append("vCPUs")
        else:
            total += lines.vcpu * vcpus
        if lines.memory_gib is None:
            lacks.append("memory")
        else:
            total += lines.memory_gib * memory
        if disk:
            if lines.disk_gb_month is None:
                lacks.append("disk")
            else:
                total += lines.disk_gb_month / MONTH_HOURS * disk
        return round(total, 6), tuple(lacks)

    @property
    def own_shape(self) -> Shape:
        count = self.gpu_count
        return Shape(
            count,
            8 * count if self.vcpus is None else self.vcpus,
            32 * count if self.memory_gib is None else self.memory_gib,
        )


def believable(spot: float | None, on_demand: float | None) -> tuple[float | None, str]:
    """A spot price, or None and why it is none: blank, not below the on-demand price, or not above zero."""
    if spot is None or not math.isfinite(spot) or spot <= 0:
        return None, "no spot quote"
    if on_demand is not None and math.isfinite(on_demand) and spot >= on_demand:
        how = "equal to" if spot == on_demand else "above"
        return None, f"no spot quote: it is {how} the on-demand price"
    return spot, ""
