"""The dollars of one router: by backend, by model, by key. `spend` has the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tuna_router.books.series import Labelled
from tuna_router.books.spend import BackendCost, Running
from tuna_router.keys.live import LiveKey
from tuna_router.settings import BackendSettings, Kind

_MOST_MODELS: Final = 200


class Ledger:
    """The cost of every backend that there is or was, by name.

    `clock` is the one of every `now` here, `wall` is unix time.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self.backends: dict[str, BackendCost] = {}
        self.models = Labelled(_MOST_MODELS)
        self._kept: dict[str, Mapping[str, Any]] = {}

    def configure(self, backends: tuple[BackendSettings, ...], now: float) -> None:
        """Take new prices over. What a backend that is gone has cost stays counted."""
        for item in backends:
            cost = self.backends.get(item.name)
            if cost is None:
                cost = self.backends[item.name] = BackendCost(item.price_per_hour_usd, now)
                self._remember(item.name, cost)
            else:
                cost.set_price(item.price_per_hour_usd, now)
        for name in self.backends.keys() - {item.name for item in backends}:
            self.backends[name].set_billed(False, now)

    def begin(self, backend: str, now: float) -> Running:
        """A request begins on a backend."""
        return self.backends[backend].begin(now)

    def close(self, running: Running, now: float, key: LiveKey | None, model: str = "") -> float:
        """It ended, with `now` on the router's clock: its dollars, charged to its key and model."""
        usd, unpriced_s = running.close(now)
        if key is not None:
            key.spent.unpriced_s += unpriced_s
            if usd:
                key.spent.add(usd, self._wall())
        if usd and model:
            self.models.add((model,), usd)
        return usd

    def billed(self, backend: str, billed: bool, now: float) -> None:
        """A spot backend came up, or is gone: from now on it costs, or not, while nobody runs on it."""
        cost = self.backends.get(backend)
        if cost is not None and cost.billed is not billed:
            cost.set_billed(billed, now)

    def per_hour_usd(self, backends: tuple[BackendSettings, ...]) -> float | None:
        """What all of these cost now, an hour; None while a price in use is unknown."""
        total = 0.0
        for item in backends:
            each = self.backends[item.name].per_hour_usd()
            if each is None:
                return None
            total += each
        return total

    def advance(self) -> None:
        """Count every backend's time up to now."""
        now = self._clock()
        for cost in self.backends.values():
            cost.advance(now)

    def counted(self) -> tuple[float, float]:
        """What all backends cost in this life of the router, up to now: dollars, and seconds of unknown price."""
        self.advance()
        costs = self.backends.values()
        return sum(cost.counted_usd for cost in costs), sum(cost.counted_unpriced_s for cost in costs)

    def learned(self) -> dict[str, Any]:
        """What survives a restart."""
        self.advance()
        return {
            "backends": {**self._kept, **{name: cost.learned() for name, cost in self.backends.items()}},
            "models": {labels[0]: usd for labels, usd in self.models},
        }

    def recall(self, data: Mapping[str, Any]) -> None:
        """The inverse of `learned`. Raises KeyError, TypeError or ValueError for what is none of it."""
        self._kept = {str(name): value for name, value in data["backends"].items() if isinstance(value, dict)}
        for name, cost in self.backends.items():
            self._remember(name, cost)
        for model, usd in data["models"].items():
            self.models.add((str(model),), float(usd))

    def _remember(self, name: str, cost: BackendCost) -> None:
        data = self._kept.pop(name, None)
        if data is not None:
            cost.recall(data)


def is_billed(kind: Kind, state: str) -> bool:
    """True for a spot backend that is up: it costs whether it is used or not; serverless costs in use only."""
    return kind is Kind.SPOT and state in ("READY", "DRAINING")
