"""What a load test is asked to do: plain data, the same in the notebook and in the generator's own process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ArrivalKind = Literal["constant", "poisson", "gamma", "day", "spike", "gaps", "trace", "closed"]
PromptKind = Literal["synthetic", "file", "sharegpt", "trace"]


@dataclass(frozen=True, slots=True)
class Target:
    """base_url: with `/v1`. models: asked in turn, by the seed. headers: what opens it; never shown, never in
    argv.

    api: `chat` or `completions`. extra: more fields of each request's body.
    """

    base_url: str
    models: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    api: Literal["chat", "completions"] = "chat"
    stream: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests leave. Rates are requests per second, times are seconds.

    kind: `constant`; `poisson`; `gamma` with a coefficient of variation `cv` of its gaps (1: Poisson, above:
    bursty); `day`: the rate goes from `low_rate` to `rate` and back once in `period_s`, as a sine; `spike`:
    `low_rate`, and `rate` from `spike_at_s` for `spike_s`; `gaps`: `rate` for `on_s`, then nothing for `off_s`,
    and again; `trace`: `trace` replayed, `speed` times as fast; `closed`: `concurrency` requests at a time, the
    next one as one ends. day, spike and gaps are Poisson at their rate of the moment.
    """

    kind: ArrivalKind = "poisson"
    rate: float = 1.0
    low_rate: float = 0.0
    cv: float = 1.0
    period_s: float = 86400.0
    spike_at_s: float = 0.0
    spike_s: float = 0.0
    on_s: float = 0.0
    off_s: float = 0.0
    trace: str | None = None
    speed: float = 1.0
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts: a lognormal with this mean and coefficient of variation, cut to least..most. cv 0: all the
    same."""

    mean: float
    cv: float = 0.0
    least: int = 1
    most: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is asked. kind: `synthetic` by `input_tokens`; `file`: one prompt a line (JSONL with `prompt` or
    `messages`, and perhaps `max_tokens`; else plain text); `sharegpt`: its JSON; `trace`: lengths of the
    trace's rows.

    output_tokens: the `max_tokens` of each, where the file has none of its own. shared_prefix_tokens: so many
    tokens of each prompt are the same, in one of `prefixes` ways. ignore_eos: ask vLLM for just so many tokens.
    """

    kind: PromptKind = "synthetic"
    path: str | None = None
    input_tokens: Lengths = Lengths(256)
    output_tokens: Lengths = Lengths(128)
    shared_prefix_tokens: int = 0
    prefixes: int = 1
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One load test. It ends after `duration_s` of the schedule or after `requests`: one of them is given, and of a
    trace perhaps neither.

    warmup_requests: sent before, in no figure. seed: the same seed is the same schedule and the same
    prompts, byte for byte. request_timeout_s: a request that is not over by then is a timeout. grace_s: how
    long what is under way may go on after the schedule's end, before it is stopped.
    """

    target: Target
    arrivals: Arrivals = Arrivals()
    prompts: Prompts = Prompts()
    duration_s: float | None = None
    requests: int | None = None
    warmup_requests: int = 0
    seed: int = 0
    request_timeout_s: float = 600.0
    grace_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Lag:
    """How late the generator itself was. Seconds.

    late_p99: from the scheduled time to when it takes the request up. loop_p99, loop_max: its event loop's own
    delay, by a probe every ten milliseconds. uvloop: whether it ran on uvloop. cpu: share of one core that it
    used.
    """

    late_p50: float
    late_p99: float
    loop_p99: float
    loop_max: float
    uvloop: bool
    cpu: float
