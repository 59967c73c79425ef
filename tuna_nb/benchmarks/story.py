"""What a demonstration showed: every request, what happened when, and what it cost."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from tuna_nb.benchmarks.rows import Row
from tuna_nb.costs.bill import Bill


@dataclass(frozen=True, slots=True)
class Story:
    """began_at: Unix seconds of the first request. events: (Unix seconds, text). providers_bill_usd: what the local
    cloud itself charges for the same. continued: streams that broke with the GPU and went on elsewhere.
    """

    began_at: float
    rows: tuple[Row, ...]
    events: tuple[tuple[float, str], ...]
    continued: int
    bill: Bill
    providers_bill_usd: float
    seconds: float

    @property
    def failed(self) -> int:
        return sum(row.error is not None for row in self.rows)

    @property
    def median_ttft_s(self) -> float | None:
        known = [row.ttft_s for row in self.rows if row.ttft_s is not None]
        return statistics.median(known) if known else None

    @property
    def ribbon(self) -> str:
        """One character a request in order of sending: who answered it. x: nobody."""
        return "".join(
            "x" if row.error is not None else "█" if (row.backend or "").startswith("spot") else "░"
            for row in self.rows
        )
