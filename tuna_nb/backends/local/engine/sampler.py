"""Sampling parameters, and what they make of the model's choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tuna_nb.backends.local.engine.language import Language, Prefix, scramble
from tuna_nb.backends.local.engine.vocabulary import SIZE, TURN_END

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy (vLLM's _SAMPLING_EPS)."""
_FORCING_BIAS = 20.0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one answer is to be drawn; the fields are vLLM's. max_tokens is already clamped to the context."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    seed: int | None = None
    n: int = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1


class Sampler:
    """Draws the tokens of one answer.

    Greedy drawing depends on the prefix alone. Otherwise the draw depends on the prefix, the seed and the
    *place in this request*: the random stream starts anew with every request, so a sampled answer that is
    continued elsewhere goes on differently, as with vLLM.

    A bias of 20 or more forces a token (the highest wins) and one of -20 or less forbids it; the model has no
    probabilities that weaker ones could shift.
    """

    __slots__ = ("_allowed", "_banned", "_forced", "_language", "_late", "_min_tokens", "_place", "_seed")

    def __init__(self, language: Language, params: SamplingParams, seed: int) -> None:
        self._language = language
        self._place = 0
        self._seed = None if params.greedy else scramble(seed * 2 + 1) | 1
        biases = params.logit_bias
        self._forced = sorted((i for i, b in biases.items() if b >= _FORCING_BIAS), key=lambda i: (-biases[i], i))
        self._banned = frozenset(i for i, b in biases.items() if b <= -_FORCING_BIAS)
        self._allowed = params.allowed_token_ids
        # An answer may not end before min_tokens: what would end it is forbidden until then.
        self._min_tokens = params.min_tokens
        self._late = params.stop_token_ids | {TURN_END} if params.min_tokens else frozenset()

    def next_id(self, prefix: Prefix) -> int:
        """The next token of the answer after `prefix`."""
        noise = 0 if self._seed is None else scramble(self._seed + self._place * 0x9E3779B97F4A7C15)
        banned = self._banned
        if self._place < self._min_tokens:
            banned = banned | self._late
        self._place += 1
        if not (self._forced or banned or self._allowed):
            return self._language.next_id(prefix, noise)
        for token_id in self._forced:
            if token_id not in banned:
                return token_id
        if self._allowed:
            candidates = [i for i in self._allowed if i not in banned] or list(self._allowed)
            return candidates[scramble(prefix.hash ^ noise) % len(candidates)]
        for attempt in range(64):
            token_id = self._language.next_id(prefix, noise + attempt * 0xD1B54A32D192ED03)
            if token_id not in banned:
                return token_id
        return next((i for i in range(SIZE) if i not in banned), 0)
