"""The figures of one moment, for `/router/events`: rates and quantiles of the last ten seconds."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tuna_router.books.series import LATENCY_S, TOKEN_S, Histogram

if TYPE_CHECKING:
    from tuna_router.core import Core

_WINDOW_S: Final = 10.0


class _Seen(NamedTuple):
    at: float
    started: int
    answered: dict[str, int]
    ttft: list[int]
    inter_token: list[int]


class Snapshots:
    """Takes snapshots of a router, and remembers those of the last seconds to tell rates from."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seen: deque[_Seen] = deque()

    def take(self) -> dict[str, Any]:
        """Seconds, dollars and counts; None for what is not known."""
        core = self._core
        meter, now = core.meter, core.meter.clock()
        seen = self._look(now)
        while len(self._seen) > 1 and self._seen[1].at <= now - _WINDOW_S:
            self._seen.popleft()
        before = self._seen[0] if self._seen else seen
        self._seen.append(seen)
        passed = seen.at - before.at
        dollars = core.ledger.per_hour_usd(core.settings.backends)
        return {
            "time": meter.wall(),
            "requests_per_s": round((seen.started - before.started) / passed, 3) if passed else 0.0,
            "split": {name: n - before.answered.get(name, 0) for name, n in seen.answered.items()},
            "in_flight": core.admission.in_flight,
            "waiting": core.admission.waiting,
            "ttft_s": _quantiles(LATENCY_S, seen.ttft, before.ttft),
            "inter_token_s": _quantiles(TOKEN_S, seen.inter_token, before.inter_token),
            "usd_per_hour": None if dollars is None else round(dollars, 6),
            "states": {backend.settings.name: backend.state_name for backend in core.fleet},
        }

    def _look(self, now: float) -> _Seen:
        core = self._core
        inter_token = [0] * (len(TOKEN_S) + 1)
        for histogram in core.counts.inter_token.values():
            inter_token = [a + b for a, b in zip(inter_token, histogram.counts, strict=True)]
        meter = core.meter
        answered = {name: tally.finished for name, tally in meter.backends.items()}
        return _Seen(now, meter.requests.started, answered, list(meter.requests.ttft.counts), inter_token)


def _quantiles(bounds: tuple[float, ...], counts: list[int], before: list[int]) -> dict[str, float | None]:
    histogram = Histogram(bounds)
    histogram.counts = counts
    return {f"p{q}": _rounded(histogram.quantile(q / 100, before)) for q in (50, 95)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
