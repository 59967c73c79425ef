"""What a backend taught us by answering: running averages, small enough to be kept across a restart.

Exponentially weighted: the newest sample counts `share`, all older ones together the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp2
from typing import Final

RECENT: Final = 0.2
USUAL: Final = 0.05
FEW: Final = 4
"""With at most this many requests in flight an engine makes nobody wait (vLLM batches hundreds)."""

_ERROR_SHARE: Final = 0.1
_ERROR_HALF_LIFE_S: Final = 30.0
_KEPT: Final = ("ttft_s", "usual_ttft_s", "cold_ttft_s", "service_s")


@dataclass(slots=True, eq=False)
class Learned:
    """Averages of one backend; None until there is a sample. Seconds, on a monotonic clock.

    `ttft_s`: time to first token lately, of a serverless backend while it is warm; `usual_ttft_s`: the same
    with few requests in flight; `cold_ttft_s`: with a cold start before it; `service_s`: a whole request, less
    what it waited in a queue.
    """

    ttft_s: float | None = None
    usual_ttft_s: float | None = None
    cold_ttft_s: float | None = None
    service_s: float | None = None
    error_share: float = 0.0
    error_at: float = 0.0

    def first_byte(self, ttft_s: float, in_flight: int) -> None:
        """A request's first byte came, `in_flight` requests being there."""
        self.ttft_s = _mixed(self.ttft_s, ttft_s, RECENT)
        if in_flight <= FEW:
            self.usual_ttft_s = _mixed(self.usual_ttft_s, ttft_s, USUAL)

    def cold_start(self, ttft_s: float) -> None:
        """A first byte came that waited for a cold start."""
        self.cold_ttft_s = _mixed(self.cold_ttft_s, ttft_s, RECENT)

    def served(self, service_s: float) -> None:
        """A request took this long, from its attempt's begin to its end, its wait in a queue included."""
        if self.ttft_s is not None and self.usual_ttft_s is not None:
            service_s -= max(self.ttft_s - self.usual_ttft_s, 0.0)
        service_s = max(service_s, 0.0)
        before = self.service_s
        self.service_s = service_s if before is None else before + RECENT * (service_s - before)
        if self.error_share:
            self.error_share *= 1 - _ERROR_SHARE

    def failed(self, now: float) -> None:
        """A request failed."""
        self.error_share = self.errors(now) * (1 - _ERROR_SHARE) + _ERROR_SHARE
        self.error_at = now

    def errors(self, now: float) -> float:
        """The share of requests that failed lately, 0 to 1: halved by every 30 s without a failure,
        since a backend that is given nothing has no other way to recover."""
        if not self.error_share:
            return 0.0
        return self.error_share * exp2(-max(now - self.error_at, 0.0) / _ERROR_HALF_LIFE_S)

    @property
    def excess_ttft_s(self) -> float:
        """By how much the first token lately comes later than twice its usual time; 0 while not known.

        Twice: prompts differ in length, and a long one is no queue.
        """
        if self.ttft_s is None or self.usual_ttft_s is None:
            return 0.0
        return max(self.ttft_s - 2 * self.usual_ttft_s, 0.0)

    def to_json(self) -> dict[str, float]:
        """What is worth keeping: the averages that are known. Errors are not: a restart begins in good faith."""
        return {key: round(value, 6) for key in _KEPT if (value := getattr(self, key)) is not None}

    def recall(self, kept: Mapping[str, object]) -> None:
        """Take over what `to_json` gave once; what makes no sense is passed over."""
        for key in _KEPT:
            value = kept.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6:
                setattr(self, key, float(value))


def _mixed(old: float | None, new: float, share: float) -> float:
    return new if old is None else old + share * (new - old)
