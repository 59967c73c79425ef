"""Cold starts in figures: from asking to the first token, split where the provider shows the parts.

A cold start is a line of time with marks on it. The first and the last are our own: when we asked and when the
first token came. Those between are the provider's, as far as it shows them. A phase is what lies between two marks
that stand next to each other, so phases always sum to the whole; where a mark is missing the phases around it are
one, with both names: nothing is invented. All of it is in whole milliseconds, so that the sum is exact.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final, TypeVar

from tuna_nb.backends.base import LogLine

T = TypeVar("T")

CREATED, PLACED, ENGINE, WEIGHTS, READY, FIRST_TOKEN = (
    "created", "placed", "engine begun", "weights loaded", "ready", "first token",
)  # fmt: skip
"""The marks, in their order: the provider's create call returned; a container has begun; its engine has said a
first word; the weights are in memory; the engine serves; the client has its first token."""
PHASES: Final[Mapping[str, str]] = {
    CREATED: "create",
    PLACED: "queue",
    ENGINE: "image",
    WEIGHTS: "weights",
    READY: "engine",
    FIRST_TOKEN: "first token",
}
"""Which phase ends at each mark."""
UNDIVIDED: Final = "undivided"
KIND: Final = "cold-start"
"""Of a kept run."""
FRESH, WARM = "fresh", "warm-cold"
"""Kinds of cycle: a new deployment; one that was scaled to zero."""

_WEIGHTS: Final = re.compile(r"Loading weights took [\d.]+ s|Model loading took [\d.]+ ?Gi?B")
_VLLM: Final = re.compile(r"vLLM API server version|\[(api_server|core|gpu_model_runner)\.py:\d+\]")
"""vLLM's own lines, as of 0.6 to 0.32."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a cold start. at_ms: since the asking. error_ms: it may have been so much earlier, since it was
    seen by looking; 0 where its time was told. source: who says so."""

    name: str
    at_ms: int
    error_ms: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """error_ms: how far off its length may be, since its ends were seen by looking."""

    name: str
    ms: int
    error_ms: int = 0


@dataclass(frozen=True, slots=True)
class Zero:
    """How it was known that nothing ran. waited_s: since the last answer. said: the provider's words."""

    waited_s: float
    said: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cold start. began_at: Unix seconds. zero: None of a fresh deployment, where nothing was before.

    asked: how many requests it took, where a provider answers with an error while it starts.
    """

    kind: str
    number: int
    began_at: float
    total_ms: int
    phases: tuple[Phase, ...]
    zero: Zero | None = None
    asked: int = 1
    notes: tuple[str, ...] = ()

    @property
    def ttft_s(self) -> float:
        """Seconds from asking to the first token."""
        return self.total_ms / 1000


@dataclass(frozen=True, slots=True)
class Summary:
    """Of `n` cycles of one kind; seconds. No percentile: the few samples that there are have none."""

    kind: str
    n: int
    median_s: float
    least_s: float
    most_s: float


@dataclass(frozen=True, slots=True)
class ProviderStarts:
    """What one provider did. usd: what it has cost by the records; None: unknown. error: why there is no more.

    poll_s: how often it was looked at. kept: the deployment is still there, because that was asked for, or since
    it could not be removed (`left`).
    """

    provider: str
    service_name: str
    worst_case_usd_per_hour: float | None
    cycles: tuple[Cycle, ...]
    poll_s: float
    usd: float | None = None
    error: str | None = None
    kept: bool = False
    left: str | None = None

    @property
    def summaries(self) -> tuple[Summary, ...]:
        made = (summary(kind, [c.ttft_s for c in self.cycles if c.kind == kind]) for kind in (FRESH, WARM))
        return tuple(one for one in made if one is not None)


@dataclass(frozen=True, slots=True)
class ColdStartReport:
    """Cold starts of one model at several providers. at: Unix seconds. expected_usd: as it was stated before.

    name: under which it is kept."""

    model: str
    gpu: str
    at: float
    took_s: float
    providers: tuple[ProviderStarts, ...]
    expected_usd: float | None
    budget_usd: float | None = None
    name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def phase_names(self) -> tuple[str, ...]:
        """Of all cycles, in the order in which phases happen."""
        order = list(PHASES.values())
        names = {p.name for one in self.providers for c in one.cycles for p in c.phases}
        return tuple(
            sorted(names, key=lambda n: (order.index(n.split(" + ")[0]) if n != UNDIVIDED else -1, len(n)))
        )


def from_json(told: Mapping[str, Any]) -> ColdStartReport:
    """A report as it was kept. Raises KeyError or TypeError for what is none."""
    return _made(
        ColdStartReport,
        told,
        providers=tuple(
            _made(ProviderStarts, one, cycles=tuple(_cycle(c) for c in one["cycles"])) for one in told["providers"]
        ),
        notes=tuple(told["notes"]),
    )


def _cycle(told: Mapping[str, Any]) -> Cycle:
    return _made(
        Cycle,
        told,
        phases=tuple(_made(Phase, p) for p in told["phases"]),
        zero=None if told["zero"] is None else _made(Zero, told["zero"]),
        notes=tuple(told["notes"]),
    )


def _made(kind: type[T], told: Mapping[str, Any], **parts: Any) -> T:
    """A newer Tuna may have written more."""
    known = {f.name: told[f.name] for f in fields(kind) if f.name in told}  # type: ignore[arg-type]
    return kind(**known | parts)


def summary(kind: str, seconds: Sequence[float]) -> Summary | None:
    """None of nothing."""
    if not seconds:
        return None
    return Summary(kind, len(seconds), statistics.median(seconds), min(seconds), max(seconds))


def phases(marks: Iterable[Mark], total_ms: int, fresh: bool) -> tuple[tuple[Phase, ...], tuple[str, ...]]:
    """Phases that sum to `total_ms`, in their order, and notes on the marks that could not be true.

    A mark outside the span is another clock's and is left out. Of two in the wrong order the less exact is.
    """
    order = [name for name in PHASES if fresh or name != CREATED]
    notes = []
    known: dict[str, Mark] = {}
    for mark in marks:
        if mark.name not in order or mark.name == FIRST_TOKEN:
            continue
        if 0 <= mark.at_ms <= total_ms:
            known[mark.name] = mark
        elif mark.error_ms == 0:
            notes.append(
                f"'{mark.name}' is told to be at {mark.at_ms / 1000:+.1f} s, outside of the start: left out"
            )
    kept = _in_order([known[name] for name in order if name in known])
    kept.append(Mark(FIRST_TOKEN, total_ms))
    made, begun = [], Mark("", 0)
    left = list(order)
    for mark in kept:
        end = left.index(mark.name) + 1
        name = " + ".join(PHASES[n] for n in left[:end])
        made.append(Phase(name, mark.at_ms - begun.at_ms, max(begun.error_ms, mark.error_ms)))
        left, begun = left[end:], mark
    if len(made) == 1:
        made = [Phase(UNDIVIDED, total_ms)]
    return tuple(made), tuple(notes)


def _in_order(marks: list[Mark]) -> list[Mark]:
    """Without those that make time run backwards. Our own call's return goes first: some return when all is
    ready."""
    kept = list(marks)
    while True:
        wrong = next((pair for pair in pairwise(kept) if pair[0].at_ms > pair[1].at_ms), None)
        if wrong is None:
            return kept
        kept.remove(max(wrong, key=lambda m: math.inf if m.name == CREATED else m.error_ms))


def engine_marks(
    lines: Iterable[LogLine], began_at: float, ended_at: float, replicas: frozenset[str]
) -> tuple[Mark, ...]:
    """What an engine's log tells: its first word, and when the weights were in. Times of lines are Unix seconds.

    replicas: the containers that were started. Some providers call a container another name in its log: there a
    line is an engine's where it is one of vLLM's.
    """
    found: dict[str, Mark] = {}
    for line in lines:
        of_engine = line.source in replicas or _VLLM.search(line.text) or _WEIGHTS.search(line.text)
        if not of_engine or not began_at <= line.at <= ended_at:
            continue
        at = round((line.at - began_at) * 1000)
        found.setdefault(ENGINE, Mark(ENGINE, at, 0, "log"))
        if _WEIGHTS.search(line.text):
            found[WEIGHTS] = Mark(WEIGHTS, at, 0, "log")
    return tuple(found.values())
