"""What a model keeps of the requests under way, as vLLM lays it out in pages.

A page holds `block_tokens` tokens of one layer. Layers that keep the same are put in groups of equal size, one
block of the pool is one page for each layer of a group, and every group of a request has blocks of its own. So
a model of one kind needs one block for every 16 tokens; one with windows or states needs what is reckoned here.

Sources: vLLM 0.32, `v1/kv_cache_interface.py` and `v1/core/kv_cache_utils.py` (pages, groups, the blocks that a
request at its longest can hold), `platforms/interface.py` (how the pages of states and attention are made
equal).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tuna_nb.catalog.models.architecture import Architecture, Attention, Latent, LayerKind, Mixer, State
from tuna_nb.errors import RequestError

BLOCK_TOKENS: Final = 16
LATENT_BLOCK_TOKENS: Final = 64
"""Of the latent attention kernels."""
_SPARSE_FP8: Final = 656
"""Bytes of a token in DeepSeek-V3.2's 8-bit layout: 512 values, their four 32-bit scales, 64 positions in 16
bits."""
_SCALE_EVERY: Final = 128
STATES_KEPT: Final = 2
"""Of each request, with prefix caching, which is on by default: the one at work and the last whole one."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose blocks are handed out together. window: tokens that they look back, None for all."""

    kind: LayerKind
    window: int | None = None


@dataclass(frozen=True, slots=True)
class KvCache:
    """On one GPU. block_bytes: of one block of the pool. bytes_per_token: that each further token takes as long as
    no window is full. flat_block_bytes: of a block if all layers kept every token, as where the engine's hybrid
    memory manager is off."""

    block_tokens: int
    block_bytes: int
    groups: tuple[Group, ...]
    bytes_per_token: int
    flat_block_bytes: int

    def blocks(self, tokens: int, requests: int = 1, in_flight: int = 0) -> int:
        """The most that so many requests of `tokens` each hold together. in_flight: tokens that may be at work at
        once in all of them, whose places in a window are not free yet."""
        settled, busiest = self._of_one(tokens, 0), self._of_one(tokens, in_flight)
        return min(requests * busiest, requests * settled + self._at_work(in_flight))

    def request_bytes(self, tokens: int) -> int:
        return self.blocks(tokens) * self.block_bytes

    def most_request_bytes(self, tokens: int) -> int:
        """If every layer with a window kept the whole request."""
        states = sum(STATES_KEPT for group in self.groups if group.kind is LayerKind.STATE) * self.block_bytes
        return math.ceil(tokens / self.block_tokens) * self.flat_block_bytes + states

    def requests(self, pool_bytes: float, tokens: int, in_flight: int = 0) -> float:
        """How many requests of `tokens` a pool holds at once; 0 where not even one."""
        blocks = int(pool_bytes // self.block_bytes)
        settled, busiest = self._of_one(tokens, 0), self._of_one(tokens, in_flight)
        return max(0.0, blocks / busiest, (blocks - self._at_work(in_flight)) / settled)

    def longest(self, pool_bytes: float, requests: int, most: int, in_flight: int = 0) -> int:
        """The most tokens of each of so many requests at once, at most `most`; 0 where none fit."""
        blocks, low, high = int(pool_bytes // self.block_bytes), 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks(middle, requests, in_flight) <= blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def _at_work(self, in_flight: int) -> int:
        windows = sum(group.window is not None for group in self.groups)
        return windows * math.ceil(in_flight / self.block_tokens)

    def _of_one(self, tokens: int, in_flight: int) -> int:
        return sum(self._of_group(group, tokens, in_flight) for group in self.groups)

    def _of_group(self, group: Group, tokens: int, in_flight: int) -> int:
        if group.kind is LayerKind.STATE:
            return STATES_KEPT
        if group.window is not None:
            held = min(group.window - 1 + in_flight, tokens)
            # One more, since a window seldom begins where a block does.
            return math.ceil(held / self.block_tokens) + 1
        return math.ceil(tokens / self.block_tokens)


def value_bytes(model: Architecture, kv_cache_dtype: str) -> int:
    """Of one number of the cache: `fp8` 1; `auto` the model's own, or 1 where the checkpoint brings scales for
    it."""
    return 1 if kv_cache_dtype == "fp8" or model.kv_fp8 else model.value_bytes


def token_bytes(mixer: Attention | Latent, tp_size: int, bytes_each: int) -> int:
    """That one layer keeps of one token on one of `tp_size` GPUs. Keys and values of one head at least are on each
    GPU; a latent vector is on all of them."""
    match mixer:
        case Attention():
            return 2 * max(1, mixer.kv_heads // tp_size) * mixer.head_dim * bytes_each
        case Latent():
            if not mixer.index_heads:
                return (mixer.kv_rank + mixer.rope_dim) * bytes_each
            latent = _SPARSE_FP8 if bytes_each == 1 else (mixer.kv_rank + mixer.rope_dim) * bytes_each
            # The indexer's own keys: 8 bits, and a 32-bit scale for every 128 of them.
            return latent + mixer.index_dim + mixer.index_dim // _SCALE_EVERY * 4


def state_bytes(mixer: State, tp_size: int, own: int) -> int:
    """Of one layer, for each request, whatever its length. own: bytes of the model's own type."""
    return mixer.conv_values * own // tp_size + mixer.state_values * (mixer.state_bytes or own) // tp_size


def lay_out(model: Architecture, tp_size: int = 1, kv_cache_dtype: str = "auto") -> KvCache:
    """Raises RequestError where `tp_size` does not divide the heads."""
    check_heads(model, tp_size)
    own = value_bytes(model, kv_cache_dtype)
    layers: dict[Group, list[Mixer]] = {}
    for mixer in model.mixers:
        window = mixer.window if isinstance(mixer, Attention) else None
        layers.setdefault(Group(mixer.kind, window), []).append(mixer)
    per_token = [token_bytes(m, tp_size, own) for m in model.mixers if not isinstance(m, State)]
    states = [state_bytes(m, tp_size, model.value_bytes) for m in model.mixers if isinstance(m, State)]
    latent = any(isinstance(m, Latent) for m in model.mixers)
    block = LATENT_BLOCK_TOKENS if latent else BLOCK_TOKENS
    if len(layers) == 1 and per_token:
        total = sum(per_token)
        return KvCache(block, total * block, tuple(layers), total, total * block)
    if not per_token or len(set(per_token)) > 1:
        raise RequestError(
            "layers that keep different amounts of each token are not supported: their memory can't be told",
            "`vllm serve` says itself what it needs when it starts",
        )
    if states:
        # A page of attention must hold a whole state.
        least = 128 if latent else block
        block = max(block, least * math.ceil(max(states) / (least * per_token[0])))
    sizes = [len(same) for same in layers.values()]
    together = max(sizes) if max(sizes) < 1.5 * min(sizes) else min(sizes)
    groups = tuple(kind for kind, same in layers.items() for _ in range(math.ceil(len(same) / together)))
    page = block * per_token[0]
    return KvCache(block, page * together, groups, sum(per_token), page * len(per_token))


def check_heads(model: Architecture, tp_size: int) -> None:
    """Raises RequestError where the heads can't be dealt out evenly."""
    if tp_size < 1:
        raise RequestError(f"a tensor-parallel size of {tp_size} is not possible", "it must be at least 1")
    for mixer in model.mixers:
        cut = [mixer.heads]
        if isinstance(mixer, Attention):
            # Beyond their number keys and values are copied, which must come out even too.
            more = max(mixer.kv_heads, tp_size) % min(mixer.kv_heads, tp_size)
            if more:
                cut.append(mixer.kv_heads)
        bad = next((heads for heads in cut if heads % tp_size), None)
        if bad is not None:
            raise RequestError(
                f"a tensor-parallel size of {tp_size} does not divide the {bad} heads",
                f"possible are {', '.join(map(str, possible_sizes(model)))}",
            )


def possible_sizes(model: Architecture, most: int = 8) -> list[int]:
    """The powers of two up to `most` that divide the heads."""
    found = []
    for tp_size in (2**n for n in range(most.bit_length())):
        even = all(
            mixer.heads % tp_size == 0
            and (
                not isinstance(mixer, Attention) or max(mixer.kv_heads, tp_size) % min(mixer.kv_heads, tp_size) == 0
            )
            for mixer in model.mixers
        )
        if even and tp_size <= most:
            found.append(tp_size)
    return found
