"""How a load test goes, while it goes: counts, and percentiles of what came so far."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable
from typing import Final

from tuna_nb.benchmarks.load.spec import LoadSpec
from tuna_nb.benchmarks.order import value
from tuna_nb.benchmarks.rows import Row

WINDOW_S: Final = 10.0
"""Over which tokens per second are told."""
_LEAST: Final = 20
"""Samples below which no p95 is told."""


class Live:
    """Takes rows as they come. elapsed_s, everywhere: since the run's begin."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._ttft_ms: list[float] = []
        self._latency_ms: list[float] = []
        self._recent: deque[tuple[float, int]] = deque()
        self._warmed = self._done = self._failed = 0

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row.warmup:
                self._warmed += 1
                continue
            self._done += 1
            self._recent.append((row.ended_s, row.output_tokens or 0))
            if row.error is not None:
                self._failed += 1
                continue
            insort(self._latency_ms, 1000 * row.latency_s)
            if self._spec.target.stream and row.ttft_s is not None:
                insort(self._ttft_ms, 1000 * row.ttft_s)

    def fraction(self, elapsed_s: float) -> float:
        """How much of it is done, 0..1; a trace's length is not known here."""
        if self._spec.requests:
            return min(1.0, self._done / self._spec.requests)
        return min(1.0, elapsed_s / self._spec.duration_s) if self._spec.duration_s else 0.0

    def said(self, elapsed_s: float) -> str:
        """In a line: `142 of 600 done, failed = 2 · TTFT p50 52 ms, p95 80 ms · 1,240 tokens/s`."""
        if not self._done:
            return (
                f"warming up: {self._warmed} of {self._spec.warmup_requests}" if self._waits else "nothing came yet"
            )
        of = f" of {self._spec.requests:,}" if self._spec.requests else ""
        name, samples = ("TTFT", self._ttft_ms) if self._spec.target.stream else ("latency", self._latency_ms)
        parts = [f"{self._done:,}{of} done, failed = {self._failed:,}"]
        if samples:
            p95 = f", p95 {value(samples, 0.95):,.0f} ms" if len(samples) >= _LEAST else ""
            parts.append(f"{name} p50 {value(samples, 0.5):,.0f} ms{p95}")
        if tokens := self._tokens_per_s():
            parts.append(f"{tokens:,.0f} tokens/s")
        return " · ".join(parts)

    @property
    def _waits(self) -> bool:
        return self._warmed < self._spec.warmup_requests

    def _tokens_per_s(self) -> float:
        """By the rows' own clock: rows come in bunches."""
        last = max(at for at, _ in self._recent)
        while self._recent and self._recent[0][0] < last - WINDOW_S:
            self._recent.popleft()
        return sum(tokens for _, tokens in self._recent) / max(1.0, min(last, WINDOW_S))
