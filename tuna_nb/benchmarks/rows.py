"""One row a request: what a load test keeps, and what every figure of it is computed from.

Times are seconds since the run's begin, by a clock that never jumps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SCHEMA: Final = {
    "number": "order in the schedule, from 0",
    "model": "the model that was asked for",
    "warmup": "sent before the measured part; in no figure",
    "scheduled_s": "when the schedule wanted it to leave (closed loop: when its place was free)",
    "sent_s": "when its first byte was handed to the kernel; null: it never left",
    "first_token_s": "when the first event with text came; unstreamed: the answer's first byte; null: none",
    "ended_s": "when its last byte came, or it failed",
    "status": "HTTP status; null: no answer",
    "error": "null when the answer came whole, else one of ERRORS",
    "detail": "the error in words; no key, no address",
    "input_tokens": "as the engine told (usage.prompt_tokens); null: it did not",
    "output_tokens": "as the engine told (usage.completion_tokens); null: it did not",
    "chunks": "events with text; an engine may put several tokens into one",
    "gaps_ms": "milliseconds between one event with text and the next",
    "finish_reason": "as the engine told; null: none",
    "backend": "x-tuna-backend: who answered; null: it says nothing",
    "attempts": "x-tuna-attempts: how many backends were tried; null: it says nothing",
}

ERRORS: Final = (
    "refused",  # no connection, its TLS failed, or its name is unknown
    "status",  # another status than 200
    "cut",  # the stream or body ended before its end, or the connection was lost
    "error event",  # the stream told an error
    "not a stream",  # asked for a stream and got something else
    "malformed",  # no HTTP, no JSON, or no OpenAI answer
    "timeout",  # not over in the time that a request has
    "stopped",  # the run ended before it
)


@dataclass(frozen=True, slots=True)
class Row:
    """One request, as `SCHEMA` says."""

    number: int
    model: str
    warmup: bool
    scheduled_s: float
    sent_s: float | None
    first_token_s: float | None
    ended_s: float
    status: int | None = None
    error: str | None = None
    detail: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    chunks: int = 0
    gaps_ms: tuple[float, ...] = ()
    finish_reason: str | None = None
    backend: str | None = None
    attempts: int | None = None

    @property
    def ttft_s(self) -> float | None:
        """From the scheduled time: a server that stalls can't hide behind requests that were never sent."""
        return None if self.first_token_s is None else self.first_token_s - self.scheduled_s

    @property
    def latency_s(self) -> float:
        """From the scheduled time to the last byte."""
        return self.ended_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: a mean within the request. None below two tokens."""
        if self.first_token_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.ended_s - self.first_token_s) / (self.output_tokens - 1)
