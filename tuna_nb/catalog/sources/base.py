"""What a source of prices is: one place that can be asked for offers, live or from files."""

from __future__ import annotations

import abc
from typing import ClassVar, Final

from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.errors import BackendError

MACHINES: Final = frozenset(OfferKind) - {OfferKind.SERVERLESS}
"""What clouds and marketplaces sell: machines by the hour."""


class Source(abc.ABC):
    """One place to ask. It keeps no cache and tries nothing twice: `catalog.market` does that for all of them."""

    name: str
    """Stable and unique, also a file's name: `vast`, `gpuhunt-aws`."""
    fresh_s: ClassVar[float] = 3600.0
    """How long an answer need not be asked for again."""
    timeout_s: ClassVar[float] = 10.0
    """An answer that takes longer is given up."""
    sellers: frozenset[str] = frozenset()
    """Whose offers it has; none: of many."""
    kinds: ClassVar[frozenset[OfferKind]] = frozenset(OfferKind)
    """How what it tells of is sold."""
    local: ClassVar[bool] = False
    """Reads this machine's files only: asked without `--live`, and never cached."""

    def lacks(self) -> str | None:
        """What must be set before it can be asked, as a step to take (`export VAST_API_KEY=...`); None for nothing.
        Seen without asking anyone."""
        return None

    @abc.abstractmethod
    async def fetch(self) -> list[Offer]:
        """Everything it sells now. Raises BackendError; an error is never read as "nothing for sale"."""


def changed(source: str, what: str) -> BackendError:
    """For an answer that is not of the shape that was agreed."""
    return BackendError(
        f"{source}: its answer has changed: {what}", "the others are shown; an update of tuna-nb may help"
    )
