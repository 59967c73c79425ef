"""Continuous batching: which sequences run, what one engine step does, and how long it takes.

Nothing here waits or reads a clock. `next_step` decides what the engine does next and says how long that takes;
whoever drives it lets the time pass and then calls `complete`. So a test can run an hour of load in a moment.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the engine is.

    prefill_tokens_per_s: prompt tokens read per second. decode_tokens_per_s: tokens per second of one stream
    alone. batch_cost: by how much each further stream in a batch lengthens a step, as a share of the step of one
    (0.03: with 32 streams each gets half the speed, and all together 16 times that of one). 0 for a rate: no
    time passes.
    """

    prefill_tokens_per_s: float = 8000.0
    decode_tokens_per_s: float = 80.0
    batch_cost: float = 0.03

    def step_s(self, prefill_tokens: int, yielding: int) -> float:
        """Seconds of a step that reads so many prompt tokens and yields a token for so many sequences."""
        duration = 0.0
        if prefill_tokens and self.prefill_tokens_per_s > 0:
            duration += prefill_tokens / self.prefill_tokens_per_s
        if yielding and self.decode_tokens_per_s > 0:
            duration += (1 + self.batch_cost * (yielding - 1)) / self.decode_tokens_per_s
        return duration


@dataclass(frozen=True, slots=True)
class Limits:
    """max_num_seqs: sequences that run at once. max_num_queued_reqs: running and waiting ones that are admitted,
    None for no limit. max_num_batched_tokens: prompt tokens read in one step (a longer prompt takes several).
    """

    max_num_seqs: int = 128
    max_num_queued_reqs: int | None = None
    max_num_batched_tokens: int = 2048


@dataclass(eq=False, slots=True)
class Slot:
    """A sequence's place in the scheduler."""

    prompt_tokens: int
    prefilled: int = 0
    generated: int = 0
    stalled: bool = False
    """Ordered fault: it keeps its place and gets no more steps."""


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step. `yielding` get one token each when it ends; `prefilled` are prompt tokens read in it."""

    duration_s: float
    prefilled: int
    yielding: tuple[Slot, ...]
    reading: tuple[tuple[Slot, int], ...] = field(default=())


class QueueFullError(Exception):
    """The engine admits no more requests (vLLM's QueueOverflowError)."""


class Scheduler:
    """First come, first served; running sequences keep their place until they are removed."""

    def __init__(self, limits: Limits, speed: Speed) -> None:
        self.limits = limits
        self.speed = speed
        self.waiting: deque[Slot] = deque()
        self.running: list[Slot] = []

    def __repr__(self) -> str:
        return f"Scheduler(running={len(self.running)}, waiting={len(self.waiting)})"

    @property
    def unfinished(self) -> int:
        """Sequences that run or wait."""
        return len(self.running) + len(self.waiting)

    @property
    def tokens_held(self) -> int:
        """Tokens of running sequences: what fills the KV cache."""
        return sum(slot.prefilled + slot.generated for slot in self.running)

    def check_admission(self, count: int) -> None:
        """Raise QueueFullError unless `count` more sequences may be added."""
        limit = self.limits.max_num_queued_reqs
        if limit is not None and self.unfinished + count > limit:
            raise QueueFullError

    def add(self, slot: Slot) -> None:
        """Queue a sequence."""
        self.waiting.append(slot)

    def remove(self, slot: Slot) -> bool:
        """Take out a sequence that has finished or was aborted; False if it is not there."""
        for place in (self.running, self.waiting):
            if slot in place:
                place.remove(slot)
                return True
        return False

    def admit(self) -> list[Slot]:
        """Move waiting sequences to running ones while there is room, and return them."""
        admitted = []
        while self.waiting and len(self.running) < self.limits.max_num_seqs:
            slot = self.waiting.popleft()
            self.running.append(slot)
            admitted.append(slot)
        return admitted

    def next_step(self) -> Step | None:
        """What the engine does next, None when there is nothing to do. Call `admit` first."""
        budget = self.limits.max_num_batched_tokens
        reading: list[tuple[Slot, int]] = []
        yielding: list[Slot] = []
        for slot in self.running:
            if slot.stalled:
                continue
            missing = slot.prompt_tokens - slot.prefilled
            if missing <= 0:
                yielding.append(slot)
            elif budget > 0:
                chunk = min(missing, budget)
                budget -= chunk
                reading.append((slot, chunk))
                if chunk == missing:
                    yielding.append(slot)
        if not reading and not yielding:
            return None
        prefilled = sum(chunk for _, chunk in reading)
        return Step(self.speed.step_s(prefilled, len(yielding)), prefilled, tuple(yielding), tuple(reading))

    def complete(self, step: Step) -> list[Slot]:
        """Record that a step has ended; returns the sequences that now get a token, without those removed."""
        for slot, chunk in step.reading:
            slot.prefilled += chunk
        still = set(map(id, self.running))
        yielding = [slot for slot in step.yielding if id(slot) in still and not slot.stalled]
        for slot in yielding:
            slot.generated += 1
        return yielding
