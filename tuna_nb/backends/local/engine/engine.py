"""The engine: drives the scheduler in time and hands each new token to whoever waits for it.

One timer at a time: the end of the current step. There is no task per request; a token goes from the step
straight to the connection, which keeps a token near ten microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tuna_nb.backends.local.engine.checks import Prompt
from tuna_nb.backends.local.engine.detokenizer import Detokenizer
from tuna_nb.backends.local.engine.language import Language, Prefix
from tuna_nb.backends.local.engine.metrics import Metrics
from tuna_nb.backends.local.engine.sampler import Sampler
from tuna_nb.backends.local.engine.scheduler import QueueFullError, Scheduler, Slot, Step
from tuna_nb.backends.local.engine.vocabulary import TURN_END


class Handle(Protocol):
    """A call in the future that can be taken back."""

    def cancel(self) -> None: ...


class Timer(Protocol):
    """The part of an event loop that the engine needs."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[Step], None], step: Step, /) -> Handle: ...


class Listener(Protocol):
    """Whoever waits for the tokens of a request."""

    def on_token(self, answer: Answer, token_id: int) -> None:
        """A token came; `answer.finish_reason` is set with the last one."""

    def on_death(self) -> None:
        """The engine is gone; no token will come."""


class Answer(Slot):
    """One sequence being generated. `index` is its place among the choices of its request.

    seed_offset: added to the request's seed, so that the choices for one prompt differ.
    """

    __slots__ = (
        "arrived_at",
        "detokenizer",
        "finish_reason",
        "first_token_at",
        "index",
        "last_token_at",
        "listener",
        "params",
        "prefix",
        "prompt",
        "sampler",
        "scheduled_at",
        "seed_offset",
        "stop_reason",
    )

    prefix: Prefix
    sampler: Sampler
    detokenizer: Detokenizer
    """These three are made when the answer is queued."""

    def __init__(self, index: int, prompt: Prompt, listener: Listener, *, seed_offset: int = 0) -> None:
        super().__init__(prompt_tokens=len(prompt.ids))
        self.index = index
        self.prompt = prompt
        self.params = prompt.params
        self.listener = listener
        self.seed_offset = seed_offset
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.arrived_at = self.scheduled_at = self.first_token_at = self.last_token_at = 0.0


class Engine:
    """Generates answers in steps.

    kv_cache_tokens: tokens that fill the cache, for its gauge only. seed: of requests that bring none; like
    vLLM's, it makes a server's answers repeat in the order of their arrival.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        language: Language,
        metrics: Metrics,
        timer: Timer,
        *,
        seed: int = 0,
        leak: bool = True,
        kv_cache_tokens: int = 500_000,
    ) -> None:
        self.scheduler = scheduler
        self.metrics = metrics
        self.dead = False
        self._language = language
        self._timer = timer
        self._seed = seed
        self._arrivals = 0
        self._leak = leak
        self._kv_cache_tokens = kv_cache_tokens
        self._step_ends: Handle | None = None
        self._step_began = 0.0

    def check_admission(self, count: int) -> None:
        """Raise QueueFullError unless `count` more answers are admitted."""
        try:
            self.scheduler.check_admission(count)
        except QueueFullError:
            self.metrics.rejected["max_num_queued_reqs"] += 1
            raise

    def add(self, answer: Answer) -> None:
        """Queue an answer; its listener hears of its tokens."""
        params = answer.params
        self._arrivals += 1
        seed = self._seed * 1_000_003 + self._arrivals if params.seed is None else params.seed + answer.seed_offset
        answer.prefix = Prefix(answer.prompt.ids)
        answer.sampler = Sampler(self._language, params, seed)
        answer.detokenizer = Detokenizer(
            answer.prompt.ids,
            stop=params.stop,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            skip_special=params.skip_special_tokens,
            leak=self._leak,
        )
        answer.arrived_at = self._timer.time()
        self.scheduler.add(answer)
        if self._step_ends is None:
            self._begin(answer.arrived_at)

    def abort(self, answer: Answer) -> None:
        """Stop an answer whose client has gone. Not counted as a finished request, as in vLLM."""
        self.scheduler.remove(answer)

    def freeze(self) -> None:
        """End at once and tell nobody: answers in progress get no more tokens."""
        self.dead = True
        if self._step_ends is not None:
            self._step_ends.cancel()
            self._step_ends = None

    def die(self) -> None:
        """End at once: every answer in progress is lost, and its listener told."""
        self.freeze()
        lost = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler.running.clear()
        self.scheduler.waiting.clear()
        listeners = {id(a.listener): a.listener for a in lost if isinstance(a, Answer)}
        for listener in listeners.values():
            listener.on_death()

    def render_metrics(self) -> str:
        """The text of /metrics."""
        scheduler = self.scheduler
        return self.metrics.render(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_cache_usage=min(1.0, scheduler.tokens_held / self._kv_cache_tokens),
        )

    def _begin(self, now: float) -> None:
        for slot in self.scheduler.admit():
            if isinstance(slot, Answer):
                slot.scheduled_at = now
        step = self.scheduler.next_step()
        if step is None:
            self._step_ends = None
            return
        self._step_began = now
        self._step_ends = self._timer.call_at(now + step.duration_s, self._complete, step)

    def _complete(self, step: Step) -> None:
        now = self._timer.time()
        metrics = self.metrics
        yielding = self.scheduler.complete(step)
        for slot in yielding:
            if isinstance(slot, Answer):
                self._generate(slot, now)
        metrics.counters["generation_tokens"] += len(yielding)
        metrics.counters["prompt_tokens"] += step.prefilled
        metrics.observe("iteration_tokens_total", step.prefilled + len(yielding))
        if not self.dead:
            # A late timer must not slow the engine down: the next step begins when this one was due to end,
            # unless that is long ago.
            due = self._step_began + step.duration_s
            self._begin(due if now - due < 0.05 else now)

    def _generate(self, answer: Answer, now: float) -> None:
        params = answer.params
        token_id = answer.sampler.next_id(answer.prefix)
        answer.prefix.push(token_id)
        if answer.generated == 1:
            answer.first_token_at = now
            self.metrics.observe("time_to_first_token_seconds", now - answer.arrived_at)
            self.metrics.counters["prefix_cache_queries"] += answer.prompt_tokens
        else:
            self.metrics.observe("inter_token_latency_seconds", now - answer.last_token_at)
        answer.last_token_at = now
        late_enough = answer.generated >= params.min_tokens
        if token_id == TURN_END and not params.ignore_eos and late_enough:
            answer.finish_reason = "stop"
        elif token_id in params.stop_token_ids and late_enough:
            answer.finish_reason, answer.stop_reason = "stop", token_id
        ended = answer.finish_reason is not None
        stop_string = answer.detokenizer.push(token_id, silent=ended and not params.include_stop_str_in_output)
        if stop_string is not None and not ended:
            answer.finish_reason, answer.stop_reason = "stop", stop_string
        elif not ended and answer.generated >= params.max_tokens:
            answer.finish_reason = "length"
        if answer.finish_reason is not None:
            self._finish(answer, now)
        answer.listener.on_token(answer, token_id)

    def _finish(self, answer: Answer, now: float) -> None:
        self.scheduler.remove(answer)
        metrics = self.metrics
        metrics.finished[answer.finish_reason or "stop"] += 1
        metrics.observe("e2e_request_latency_seconds", now - answer.arrived_at)
        metrics.observe("request_queue_time_seconds", answer.scheduled_at - answer.arrived_at)
        metrics.observe("request_prefill_time_seconds", answer.first_token_at - answer.scheduled_at)
        metrics.observe("request_decode_time_seconds", now - answer.first_token_at)
        metrics.observe("request_inference_time_seconds", now - answer.scheduled_at)
        metrics.observe("request_prompt_tokens", answer.prompt_tokens)
        metrics.observe("request_generation_tokens", answer.generated)
        metrics.observe("request_params_max_tokens", answer.params.max_tokens)
        if answer.generated > 1:
            per_token = (now - answer.first_token_at) / (answer.generated - 1)
            metrics.observe("request_time_per_output_token_seconds", per_token)
