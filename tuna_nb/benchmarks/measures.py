"""From rows to figures. Pure: the same rows give the same figures, wherever and whenever.

How each figure is defined, where tools differ:

- TTFT counts from the scheduled time, so that requests which a stalled server kept from being sent count, too.
- TPOT is per token, within a request: from the first token to the last byte, over the tokens after the first, as
  the engine counts them. An inter-chunk gap is per event with text, of all requests together. Other tools call
  either of them ITL; they differ wherever an engine puts several tokens into one event.
- Latencies are of requests that came whole; the others are counted beside them. Warm-up is in no figure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tuna_nb.benchmarks.order import Distribution, clustered, distribution, value
from tuna_nb.benchmarks.rows import Row

STOPPED: Final = "stopped"
NOBODY: Final = "nobody"
"""Whoever should have answered a request that no backend answered."""
_MOST_BUCKETS: Final = 60
_IN_A_BUCKET: Final = 20
"""Requests that a bucket should hold, so that its p95 is one."""
_WIDTHS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep, in milliseconds; None: not asked for."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Goodput:
    """kept: requests that came whole and kept every limit. unjudged: those of which it can't be told, because the
    engine told no tokens or the run ended before them."""

    slo: Slo
    kept: int
    judged: int
    unjudged: int
    per_s: float | None

    @property
    def share(self) -> float | None:
        return self.kept / self.judged if self.judged else None


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """kind: one of rows.ERRORS, with its status where it has one. example: the first one's own words."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """A span of the run by the scheduled time. at_s: its begin, from the first measured request.

    Latencies are milliseconds of the requests that came whole, None without any; p95 only where there are 20.
    tokens_per_s: of the answers that ended in it. backends: requests by who answered.
    """

    at_s: float
    width_s: float
    sent: int
    whole: int
    failed: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    tokens_per_s: float
    backends: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a run's rows say. Times are milliseconds, rates per second.

    requests: measured, however they ended; stopped: the run ended before them; failed: all others that did not come
    whole. seconds: from the first one's scheduled time to the last one's end. offered_per_s: what the schedule
    wanted; sent_per_s: what left; achieved_per_s: what came whole. ttft_ms, chunk_gap_ms, tpot_ms are without
    samples where the answers were not streamed. user_tokens_per_s: output tokens of a request over its latency.
    retried: tried at more than one backend; told_attempts: of how many requests that is known.
    """

    requests: int
    whole: int
    failed: int
    stopped: int
    warmup: int
    seconds: float
    began_s: float
    offered_per_s: float | None
    sent_per_s: float | None
    achieved_per_s: float | None
    input_tokens: int
    output_tokens: int
    untold_tokens: int
    tokens_per_s: float | None
    ttft_ms: Distribution
    chunk_gap_ms: Distribution
    tpot_ms: Distribution
    latency_ms: Distribution
    user_tokens_per_s: Distribution
    tokens_per_chunk: float | None
    errors: tuple[ErrorKind, ...]
    retried: int
    told_attempts: int
    backends: tuple[tuple[str, int], ...]
    goodput: Goodput | None
    buckets: tuple[Bucket, ...]

    @property
    def error_share(self) -> float | None:
        ended = self.whole + self.failed
        return self.failed / ended if ended else None


def measure(
    rows: Iterable[Row], *, streamed: bool = True, schedule_s: float | None = None, slo: Slo | None = None
) -> Figures:
    """schedule_s: how long requests were scheduled for, where that was told; else the rows' own span."""
    every = sorted(rows, key=lambda row: row.number)
    measured = [row for row in every if not row.warmup]
    whole = [row for row in measured if row.error is None]
    stopped = sum(row.error == STOPPED for row in measured)
    began = min((row.scheduled_s for row in measured), default=0.0)
    seconds = max((row.ended_s for row in measured), default=0.0) - began
    timed = whole if streamed else []
    told = [row for row in whole if row.output_tokens is not None]
    output = sum(row.output_tokens or 0 for row in measured)
    chunks = sum(row.chunks for row in timed if row.output_tokens is not None)
    return Figures(
        requests=len(measured),
        whole=len(whole),
        failed=len(measured) - len(whole) - stopped,
        stopped=stopped,
        warmup=len(every) - len(measured),
        seconds=seconds,
        began_s=began,
        offered_per_s=_rate([row.scheduled_s for row in measured], schedule_s),
        sent_per_s=_rate([row.sent_s for row in measured if row.sent_s is not None], schedule_s),
        achieved_per_s=len(whole) / seconds if seconds > 0 else None,
        input_tokens=sum(row.input_tokens or 0 for row in measured),
        output_tokens=output,
        untold_tokens=len(whole) - len(told),
        tokens_per_s=output / seconds if seconds > 0 and told else None,
        ttft_ms=distribution(1000 * row.ttft_s for row in timed if row.ttft_s is not None),
        chunk_gap_ms=clustered([row.gaps_ms for row in timed]),
        tpot_ms=distribution(1000 * row.tpot_s for row in timed if row.tpot_s is not None),
        latency_ms=distribution(1000 * row.latency_s for row in whole),
        user_tokens_per_s=distribution(
            (row.output_tokens or 0) / row.latency_s for row in told if row.latency_s > 0 and row.output_tokens
        ),
        tokens_per_chunk=sum(row.output_tokens or 0 for row in timed) / chunks if chunks else None,
        errors=_errors(measured),
        retried=sum((row.attempts or 0) > 1 for row in measured),
        told_attempts=sum(row.attempts is not None for row in measured),
        backends=_shares(measured),
        goodput=None if slo is None else _goodput(measured, slo, streamed, seconds),
        buckets=_buckets(measured, streamed, began),
    )


def kept(row: Row, slo: Slo, streamed: bool = True) -> bool | None:
    """Whether a request kept every limit; None where it can't be told."""
    judged: list[bool | None] = [_within(1000 * row.latency_s, slo.latency_ms)]
    if row.error == STOPPED:
        # It had not ended: what it had broken by then stays broken.
        late = row.ttft_s if row.ttft_s is not None else row.latency_s
        broken = False in (judged[0], _within(1000 * late, slo.ttft_ms if streamed else None))
        return False if broken else None
    if row.error is not None:
        return False
    if streamed and slo.ttft_ms is not None:
        judged.append(None if row.ttft_s is None else row.ttft_s * 1000 <= slo.ttft_ms)
    if streamed and slo.tpot_ms is not None and row.output_tokens != 1:
        judged.append(None if row.tpot_s is None else row.tpot_s * 1000 <= slo.tpot_ms)
    if False in judged:
        return False
    return None if None in judged else True


def _within(ms: float, limit: float | None) -> bool:
    return limit is None or ms <= limit


def _goodput(measured: Sequence[Row], slo: Slo, streamed: bool, seconds: float) -> Goodput:
    judged = Counter(kept(row, slo, streamed) for row in measured)
    per_s = judged[True] / seconds if seconds > 0 else None
    return Goodput(slo, judged[True], judged[True] + judged[False], judged[None], per_s)


def _rate(times: Sequence[float], schedule_s: float | None) -> float | None:
    """Per second: over the schedule where its length is told, else between the first and the last."""
    if schedule_s:
        return len(times) / schedule_s
    span = max(times, default=0.0) - min(times, default=0.0)
    return (len(times) - 1) / span if span > 0 else None


def _errors(measured: Sequence[Row]) -> tuple[ErrorKind, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row in measured:
        if row.error is None:
            continue
        kind = f"{row.error} {row.status}" if row.error == "status" and row.status is not None else row.error
        counts[kind] += 1
        examples.setdefault(kind, row.detail)
    return tuple(ErrorKind(kind, count, examples[kind]) for kind, count in counts.most_common())


def _shares(rows: Iterable[Row]) -> tuple[tuple[str, int], ...]:
    """Empty where nobody says who answered."""
    counts = Counter(row.backend or NOBODY for row in rows if row.error != STOPPED)
    return tuple(sorted(counts.items())) if set(counts) - {NOBODY} else ()


def _buckets(measured: Sequence[Row], streamed: bool, began: float) -> tuple[Bucket, ...]:
    if not measured:
        return ()
    span = max(row.scheduled_s for row in measured) - began
    wanted = max(span / _MOST_BUCKETS, _IN_A_BUCKET * span / len(measured))
    width = next((w for w in _WIDTHS if w >= wanted), _WIDTHS[-1])
    grouped: dict[int, list[Row]] = {}
    tokens: Counter[int] = Counter()
    for row in measured:
        grouped.setdefault(math.floor((row.scheduled_s - began) / width), []).append(row)
        tokens[math.floor((row.ended_s - began) / width)] += row.output_tokens or 0
    known = bool(_shares(measured))
    return tuple(
        _bucket((number, width), grouped.get(number, []), tokens[number], streamed, known)
        for number in range(max(grouped) + 1)
    )


def _bucket(place: tuple[int, float], rows: Sequence[Row], tokens: int, streamed: bool, known: bool) -> Bucket:
    number, width = place
    whole = [row for row in rows if row.error is None]
    first = sorted(1000 * row.ttft_s for row in whole if streamed and row.ttft_s is not None)
    last = sorted(1000 * row.latency_s for row in whole)
    return Bucket(
        at_s=round(number * width, 6),
        width_s=width,
        sent=sum(row.sent_s is not None for row in rows),
        whole=len(whole),
        failed=sum(row.error not in (None, STOPPED) for row in rows),
        ttft_p50_ms=value(first, 0.5) if first else None,
        ttft_p95_ms=value(first, 0.95) if len(first) >= _IN_A_BUCKET else None,
        latency_p50_ms=value(last, 0.5) if last else None,
        latency_p95_ms=value(last, 0.95) if len(last) >= _IN_A_BUCKET else None,
        tokens_per_s=tokens / width,
        backends=_shares(rows) if known else (),
    )
