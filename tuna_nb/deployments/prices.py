"""Every source of prices that a user has: the market's own, and each installed provider's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Final

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, PriceAccess
from tuna_nb.catalog.market import Market
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.catalog.sources.base import Source
from tuna_nb.catalog.sources.known import market_sources
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import TunaError
from tuna_nb.records import PriceRecord

PRICES: Final = "prices"
"""The folder below the data folder."""
_markets: dict[Path, Market] = {}


class ProviderPrices(Source):
    """What a deployable provider says itself, by its adapter."""

    fresh_s: ClassVar[float] = 3600.0
    timeout_s: ClassVar[float] = 20.0

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.name = name
        self.sellers = frozenset({name})
        self._workspace = workspace

    def lacks(self) -> str | None:
        try:
            backend = self._workspace.backend(self.name)
            open_to_us = backend.price_access is PriceAccess.ANYONE or backend.configured()
        except TunaError as e:
            return e.hint or e.message
        return None if open_to_us else f"tuna check --provider {self.name}"

    async def fetch(self) -> list[Offer]:
        return await self._workspace.backend(self.name).prices()


def sources(
    workspace: Workspace, *, live: bool, kinds: frozenset[OfferKind] = frozenset(OfferKind)
) -> list[Source]:
    """Those of providers first, as far as they can be asked. kinds: those that tell of none of them are left out.

    live: whether they will be asked. To look up what they said no adapter need be imported.
    """
    if not live:
        providers: list[Source] = [ProviderPrices(workspace, name) for name in registry.names()]
        return [s for s in [*providers, *market_sources()] if s.kinds & kinds]
    found: list[Source] = []
    for name in registry.names():
        try:
            backend: Backend | None = workspace.backend(name)
        except TunaError:
            backend = None  # its own line says why it can't be asked
        if backend is None or backend.price_access is not PriceAccess.NOBODY:
            found.append(ProviderPrices(workspace, name))
    return [s for s in [*found, *market_sources()] if s.kinds & kinds]


def market(workspace: Workspace) -> Market:
    """One for each data folder in this process, so that a notebook's cells share what was asked."""
    folder = workspace.settings.data_dir / PRICES
    return _markets.setdefault(folder, Market(folder))


def cheapest_seen(offers: Iterable[Offer]) -> list[PriceRecord]:
    """What history keeps of offers: for each provider's kind of sale, GPU and region the cheapest."""
    best: dict[tuple[str, str, str, str], PriceRecord] = {}
    for o in offers:
        if o.price_per_hour_usd is None or o.snapshot:
            continue
        key = (o.provider, o.kind.value, o.gpu, o.region or "")
        if key not in best or o.price_per_hour_usd < best[key].price_per_hour_usd:
            best[key] = PriceRecord(*key, o.observed_at, o.price_per_hour_usd)
    return list(best.values())
