"""The answer to "can I deploy there?"."""

from __future__ import annotations

from dataclasses import dataclass

from tuna_nb.backends.base import Check


@dataclass(frozen=True, slots=True)
class ProviderChecks:
    """rows: (provider, check)."""

    rows: tuple[tuple[str, Check], ...]

    @property
    def passed(self) -> bool:
        return all(c.passed for _, c in self.rows)
