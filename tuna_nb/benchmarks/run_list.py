"""What `benchmark list` and `benchmark show --rows` answer."""

from __future__ import annotations

from dataclasses import dataclass

from tuna_nb.benchmarks.kept import KeptRun
from tuna_nb.benchmarks.rows import Row


@dataclass(frozen=True, slots=True)
class RunList:
    """The newest first."""

    runs: tuple[KeptRun, ...]


@dataclass(frozen=True, slots=True)
class RowList:
    """A run's requests, each with the level of its step of a sweep, else None."""

    name: str
    rows: tuple[tuple[float | None, Row], ...]
