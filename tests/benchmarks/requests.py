"""Rows of requests, as a load test would have kept them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tuna_nb.benchmarks.rows import Row


def row(number: int, *, ttft_s: float = 0.1, gap_ms: float = 20.0, tokens: int = 5, **change: Any) -> Row:
    """Scheduled at its number in seconds, sent a millisecond later, whole."""
    at = change.pop("scheduled_s", float(number))
    gaps = (gap_ms,) * (tokens - 1)
    known: dict[str, Any] = {
        "number": number, "model": "m", "warmup": False, "scheduled_s": at, "sent_s": at + 0.001,
        "first_token_s": at + ttft_s, "ended_s": at + ttft_s + sum(gaps) / 1000, "status": 200, "input_tokens": 7,
        "output_tokens": tokens, "chunks": tokens, "gaps_ms": gaps, "finish_reason": "length", "backend": "spot",
        "attempts": 1,
    }  # fmt: skip
    return Row(**known | change)


def failed(number: int, error: str = "status", **change: Any) -> Row:
    known: dict[str, Any] = {
        "error": error, "status": 503 if error == "status" else None, "detail": f"{error} {number}", "chunks": 0,
        "first_token_s": None, "output_tokens": None, "gaps_ms": (), "finish_reason": None, "backend": None,
    }  # fmt: skip
    return row(number, **known | change)


def many(count: int, ttft_s: Callable[[random.Random], float], seed: int = 0, **change: Any) -> list[Row]:
    """`count` requests, twenty a second, each with a TTFT of its own."""
    rng = random.Random(seed)
    return [row(n, scheduled_s=n / 20, ttft_s=ttft_s(rng), **change) for n in range(count)]
