"""The answer to "can I deploy there?"."""

from __future__ import annotations

from dataclasses import dataclass

from tuna_nb.backends.base import Check


@dataclass(frozen=True, slots=True)
class ProviderChecks:
    """rows: (provider, check). unused: providers that are not set up here and that nobody named: what they lack is
    told, and is no failure."""

    rows: tuple[tuple[str, Check], ...]
    unused: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(c.passed or provider in self.unused for provider, c in self.rows)
