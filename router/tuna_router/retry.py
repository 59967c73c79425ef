"""How many retries a router may add to the load that its clients bring.

When backends fail because they have too much to do, a router that tries everything again everywhere keeps
them down. Each request earns a part of a retry, up to a burst that covers the loss of a backend under
full load; an attempt that reached nobody put no load on anybody, and is free.
"""

from __future__ import annotations


class RetryBudget:
    """`take` is told the count of requests so far, so that a request that needs no retry pays nothing."""

    def __init__(self, ratio: float, burst: int) -> None:
        self.ratio = ratio
        """Retries earned by each request."""
        self.burst = burst
        """The most that can be saved up, and what there is at the start."""
        self.refused = 0
        self._left = float(burst)
        self._requests = 0

    def __repr__(self) -> str:
        return f"<RetryBudget {self._left:.1f} of {self.burst}>"

    def take(self, requests: int) -> bool:
        """One retry; False when there is none left. `requests` never goes down."""
        earned = self.ratio * (requests - self._requests)
        self._requests = requests
        self._left = min(self._left + earned, float(self.burst))
        if self._left < 1.0:
            self.refused += 1
            return False
        self._left -= 1.0
        return True
