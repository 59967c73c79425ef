"""What a demonstration showed: every request, what happened when, and what it cost."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from tuna_nb.benchmarks.traffic import Outcome
from tuna_nb.costs.bill import Bill


@dataclass(frozen=True, slots=True)
class Story:
    """events: (Unix seconds, text). providers_bill_usd: what the local cloud itself charges for the same.

    continued: streams that broke with the GPU and went on elsewhere.
    """

    outcomes: tuple[Outcome, ...]
    events: tuple[tuple[float, str], ...]
    continued: int
    bill: Bill
    providers_bill_usd: float
    seconds: float

    @property
    def failed(self) -> int:
        return sum(o.error is not None for o in self.outcomes)

    @property
    def median_ttft_s(self) -> float | None:
        known = [o.ttft_s for o in self.outcomes if o.ttft_s is not None]
        return statistics.median(known) if known else None

    @property
    def ribbon(self) -> str:
        """One character a request in order of sending: who answered it. x: nobody."""
        return "".join(
            "x" if o.error is not None else "█" if (o.backend or "").startswith("spot") else "░"
            for o in self.outcomes
        )
