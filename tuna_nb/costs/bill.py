"""What a deployment has cost and costs now: the answer of `tuna cost`, as data.

Money is counted from the time that a replica was up, boot and idle included, because that is what is billed.
Counting request seconds instead is off by up to seven times. Amounts are US dollars, times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuna_nb.costs.unserving import Unserving


@dataclass(frozen=True, slots=True)
class Side:
    """One backend's part of the bill. replicas: how many there were; running: of these now.

    hours: billed. error_usd: so much it may be off, either way. unknown_hours: billed hours without a known price,
    which are not in `usd`. boot_usd, idle_usd: of `usd`, what went by before a replica could serve, and what it
    cost while no request ran; None where nobody tells. basis: where its figures come from: measured,
    provider-reported or estimated. charged_usd: what the provider's own account says, up to charged_until; None
    where it has none. requests: answered by it; None where no router counts them.
    """

    role: str
    provider: str
    replicas: int
    running: int
    hours: float
    usd: float
    rate_usd_per_hour: float | None
    requests: int | None = None
    error_usd: float = 0.0
    unknown_hours: float = 0.0
    boot_usd: float | None = None
    idle_usd: float | None = None
    basis: str = "measured"
    charged_usd: float | None = None
    charged_until: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A part of the bill by day, GPU, model or key. shared: its part of what also others used, by their time."""

    name: str
    usd: float
    requests: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Versus:
    """What another policy would have cost for the same traffic. policy: `serverless only`, `on-demand only` or
    `spot only`. usd None: it can't be told, and note says why. unserved: requests that would have found no machine
    ready."""

    policy: str
    usd: float | None
    note: str = ""
    unserved: int = 0

    def saving(self, actual_usd: float) -> float | None:
        """Share of its cost that was saved; None where it is unknown, or would have been cheaper."""
        return None if not self.usd or self.usd < actual_usd else 1 - actual_usd / self.usd

    def cheaper(self, actual_usd: float) -> float | None:
        """Share of what was paid that it would have saved; None where it is unknown, or would have been dearer."""
        return None if self.usd is None or self.usd >= actual_usd else 1 - self.usd / actual_usd


@dataclass(frozen=True, slots=True)
class Forecast:
    """What it will have cost at the end of the user's own day and month, if it goes on as `method` says."""

    day_usd: float | None
    month_usd: float | None
    method: str


@dataclass(frozen=True, slots=True)
class Bill:
    """since, until: the span that is told of. gaps: spans in which nobody counted. notes: for the reader.

    rate_usd_per_hour: now; None where a price in use is unknown. prompt_tokens, completion_tokens: as the engines
    told; None where no router counts. versus: other policies over versus_since..until with what was really paid in
    it, versus_usd. unserving: (deployment, what bills there now and does not serve).
    """

    name: str
    sides: tuple[Side, ...]
    usd: float
    rate_usd_per_hour: float | None
    requests: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    since: float = 0.0
    until: float = 0.0
    error_usd: float = 0.0
    by: str = "backend"
    groups: tuple[Group, ...] = ()
    forecast: Forecast | None = None
    versus: tuple[Versus, ...] = ()
    versus_since: float = 0.0
    versus_usd: float = 0.0
    gaps: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()
    unserving: tuple[tuple[str, Unserving], ...] = ()

    @property
    def tokens(self) -> int | None:
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens

    @property
    def shows_error(self) -> bool:
        """Whether it is worth a reader's while: a thousandth of the sum, and not below what is shown of it."""
        return self.error_usd >= max(0.0001, self.usd / 1000)

    @property
    def unknown_hours(self) -> float:
        return sum(side.unknown_hours for side in self.sides)

    @property
    def usd_per_1000_requests(self) -> float | None:
        return None if not self.requests else self.usd / self.requests * 1000

    @property
    def usd_per_million_tokens(self) -> float | None:
        return None if not self.tokens else self.usd / self.tokens * 1e6
