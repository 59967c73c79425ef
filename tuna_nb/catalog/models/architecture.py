"""What a model is made of: what each of its layers remembers of a request, and how many parameters it has.

A layer is a mixer (how a token sees those before it) and a feed-forward part. Everything about memory is told
by them: `weights` counts their parameters, `kv_cache` what they keep of each token. `reading` makes it of a
config.json.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tuna_nb.catalog.models.quantization import Quantization


class LayerKind(enum.StrEnum):
    """How much of a request a layer keeps."""

    FULL = "full attention"
    """Keys and values of every token."""
    SLIDING = "sliding window"
    """Keys and values of the last tokens."""
    LATENT = "latent attention"
    """One compressed vector of every token, the same for all heads."""
    STATE = "recurrent state"
    """The same amount whatever the length."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Multi-head, grouped or multi-query attention.

    window: how many tokens it sees back, None for all. gated: a gate as wide as the queries comes with them.
    extra: parameters of its own norms, biases and sinks, which are never quantized.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    gated: bool = False
    extra: int = 0

    @property
    def kind(self) -> LayerKind:
        return LayerKind.FULL if self.window is None else LayerKind.SLIDING


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention as in DeepSeek-V2 and later.

    q_rank: None where queries are not compressed. index_heads, index_dim: of the indexer that picks tokens in
    DeepSeek-V3.2 and GLM-5; 0 without one.
    """

    heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    kv_rank: int
    q_rank: int | None
    index_heads: int = 0
    index_dim: int = 0
    kind: LayerKind = LayerKind.LATENT


@dataclass(frozen=True, slots=True)
class State:
    """Mamba 2 or gated delta net: a state instead of a cache.

    heads: how many ways it can be split. conv_values: numbers of the convolution's own memory. state_values:
    numbers of the recurrent state. state_bytes: of one of these, None for the model's own type. linear:
    parameters of its projections. extra: of the rest, never quantized.
    """

    heads: int
    conv_values: int
    state_values: int
    state_bytes: int | None
    linear: int
    extra: int
    kind: LayerKind = LayerKind.STATE


@dataclass(frozen=True, slots=True)
class FeedForward:
    """matrices: 3 with a gate, 2 without one."""

    width: int
    matrices: int = 3


@dataclass(frozen=True, slots=True)
class Experts:
    """count experts of `width`, of which each token goes through `per_token`; shared_width: of the part that all
    tokens go through, 0 for none. extra: parameters of each expert's biases."""

    count: int
    per_token: int
    width: int
    shared_width: int = 0
    matrices: int = 3
    extra: int = 0
    router_extra: int = 0


Mixer = Attention | Latent | State


@dataclass(frozen=True, slots=True)
class Layer:
    """mixer, feed: None where the layer has none. norms: parameters of its norms."""

    mixer: Mixer | None
    feed: FeedForward | Experts | None
    norms: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder. context: the most tokens that it takes. vision: parameters of what reads images and sound.
    value_bytes: of one unquantized number. kv_fp8: the checkpoint has scales for an 8-bit KV cache, which the
    engine then uses. quantization: of the checkpoint, None for none."""

    model_type: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    tied: bool
    context: int
    vision: int = 0
    value_bytes: int = 2
    kv_fp8: bool = False
    quantization: Quantization | None = None

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        return tuple(layer.mixer for layer in self.layers if layer.mixer is not None)

    @property
    def hybrid(self) -> bool:
        """Whether its layers keep different amounts, so that the engine's memory manager pads."""
        return len({m.kind for m in self.mixers}) > 1

    @property
    def heads(self) -> tuple[int, ...]:
        """What a tensor-parallel size must divide."""
        return tuple(sorted({m.heads for m in self.mixers}))

    def kinds(self) -> dict[LayerKind, int]:
        """How many layers of each kind."""
        counts: dict[LayerKind, int] = {}
        for mixer in self.mixers:
            counts[mixer.kind] = counts.get(mixer.kind, 0) + 1
        return counts
