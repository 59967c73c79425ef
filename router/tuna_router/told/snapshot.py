"""The figures of one moment, for `/router/events`: rates and quantiles of the last ten seconds, and totals."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tuna_router.books.series import LATENCY_S, TOKEN_S, Histogram

if TYPE_CHECKING:
    from tuna_router.core import Core

_WINDOW_S: Final = 10.0
_NOT_RESUMED: Final = (("refused",), ("failed",))


class _Backend(NamedTuple):
    """What was counted of one backend."""

    finished: int = 0
    ttft: tuple[int, ...] = (0,) * (len(LATENCY_S) + 1)
    inter_token: tuple[int, ...] = (0,) * (len(TOKEN_S) + 1)


_NOTHING: Final = _Backend()


class _Seen(NamedTuple):
    at: float
    started: int
    ttft: list[int]
    tokens: int
    backends: dict[str, _Backend]


class Snapshots:
    """Takes snapshots of a router, and remembers those of the last seconds to tell rates from."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seen: deque[_Seen] = deque()

    def take(self) -> dict[str, Any]:
        """Seconds, dollars and counts; None for what is not known. `totals` are of this life of the router.

        `tokens_per_s` goes out: of streams that could be continued each piece is a token, when it comes; of other
        answers the completion tokens are, at their end.
        """
        core = self._core
        meter, now = core.meter, core.meter.clock()
        seen = self._look(now)
        while len(self._seen) > 1 and self._seen[1].at <= now - _WINDOW_S:
            self._seen.popleft()
        before = self._seen[0] if self._seen else seen
        self._seen.append(seen)
        passed = seen.at - before.at
        per_s = 1 / passed if passed else 0.0
        dollars = core.ledger.per_hour_usd(core.settings.backends)
        split = {
            name: one.finished - before.backends.get(name, _NOTHING).finished for name, one in seen.backends.items()
        }
        return {
            "time": meter.wall(),
            "requests_per_s": round((seen.started - before.started) * per_s, 3),
            "tokens_per_s": round((seen.tokens - before.tokens) * per_s, 3),
            "split": split,
            "in_flight": core.admission.in_flight,
            "waiting": core.admission.waiting,
            "ttft_s": _quantiles(LATENCY_S, seen.ttft, before.ttft),
            "inter_token_s": _quantiles(TOKEN_S, _sum(seen.backends), _sum(before.backends)),
            "usd_per_hour": None if dollars is None else round(dollars, 6),
            "states": {backend.settings.name: backend.state_name for backend in core.fleet},
            "serverless_use": core.serverless_use.value,
            "totals": self._totals(),
            "backends": self._backends(seen, before, split),
        }

    def _totals(self) -> dict[str, int]:
        meter, counts = self._core.meter, self._core.counts
        requests = meter.requests
        return {
            "started": requests.started,
            "finished": requests.finished,
            "failed": requests.failed,
            "cancelled": requests.cancelled,
            "resumed": int(sum(count for outcome, count in counts.resumes if outcome not in _NOT_RESUMED)),
            "retries": meter.failovers,
        }

    def _backends(self, seen: _Seen, before: _Seen, split: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Each that is configured. `share` is of all requests that finished in the window; `replicas` are those
        that a balancer has, which are backends too."""
        fleet, finished = self._core.fleet, sum(split.values())
        shown: dict[str, dict[str, Any]] = {}
        for backend in fleet:
            name, settings = backend.settings.name, backend.settings
            one, then = seen.backends.get(name, _NOTHING), before.backends.get(name, _NOTHING)
            shown[name] = {
                "kind": settings.kind.value,
                "state": backend.state_name,
                "running": backend.in_flight,
                "finished": one.finished,
                "share": round(split.get(name, 0) / finished, 4) if finished else None,
                "ttft_s": _quantiles(LATENCY_S, one.ttft, then.ttft),
                "inter_token_s": _quantiles(TOKEN_S, one.inter_token, then.inter_token),
                "balancer": settings.balancer,
                "replicas": {},
            }
        for name, one_shown in shown.items():
            if one_shown["balancer"] in shown:
                shown[one_shown["balancer"]]["replicas"][name] = one_shown["state"]
        return shown

    def _look(self, now: float) -> _Seen:
        meter, inter_token = self._core.meter, self._core.counts.inter_token
        backends = {
            name: _Backend(
                tally.finished,
                tuple(tally.ttft.counts),
                tuple(inter_token[name].counts) if name in inter_token else _NOTHING.inter_token,
            )
            for name, tally in meter.backends.items()
        }
        requests = meter.requests
        tokens = self._core.counts.tokens + sum([stream.progress for stream in self._core.streams])
        return _Seen(now, requests.started, list(requests.ttft.counts), tokens, backends)


def _sum(backends: dict[str, _Backend]) -> list[int]:
    every = [_NOTHING.inter_token, *(one.inter_token for one in backends.values())]
    return [sum(counts) for counts in zip(*every, strict=True)]


def _quantiles(
    bounds: tuple[float, ...], counts: list[int] | tuple[int, ...], before: list[int] | tuple[int, ...]
) -> dict[str, float | None]:
    histogram = Histogram(bounds)
    histogram.counts = list(counts)
    return {f"p{q}": _rounded(histogram.quantile(q / 100, list(before))) for q in (50, 95)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
