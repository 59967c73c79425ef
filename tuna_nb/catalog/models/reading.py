"""A config.json read into a description of the model.

A kind of model or layer that is not known here is refused: a guessed formula is wrong by a factor of four for
linear attention, and of 25 for latent attention.

Source of the fields: Hugging Face transformers 5.19's configuration classes, and what vLLM 0.32 reads of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuna_nb.catalog.models.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    Latent,
    Layer,
    Mixer,
    State,
)
from tuna_nb.catalog.models.quantization import of_checkpoint
from tuna_nb.errors import RequestError

Config = Mapping[str, Any]

ANYWAY: Final = "`vllm serve` says itself what it needs when it starts; or choose another model"


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a config.json does not say of a family, since its code has it.

    qk_norm: "head" for one norm over a head's queries and one over its keys, "all" over all heads at once.
    qkv_bias: None for what `attention_bias` says. norms: of a layer, in hidden sizes.
    """

    qk_norm: str | None = None
    qkv_bias: bool | None = None
    norms: int = 2


_TRAITS: Final[Mapping[str, _Traits]] = {
    "llama": _Traits(),
    "mistral": _Traits(),
    "ministral": _Traits(),
    "ministral3": _Traits(),
    "mixtral": _Traits(),
    "phi3": _Traits(),
    "granite": _Traits(),
    "smollm3": _Traits(),
    "llama4_text": _Traits(),
    "qwen2": _Traits(qkv_bias=True),
    "qwen2_moe": _Traits(qkv_bias=True),
    "qwen3": _Traits(qk_norm="head"),
    "qwen3_moe": _Traits(qk_norm="head"),
    "qwen3_vl_text": _Traits(qk_norm="head"),
    "qwen3_vl_moe_text": _Traits(qk_norm="head"),
    "qwen3_next": _Traits(qk_norm="head"),
    "qwen3_5_text": _Traits(qk_norm="head"),
    "qwen3_5_moe_text": _Traits(qk_norm="head"),
    "gemma2": _Traits(norms=4),
    "gemma3_text": _Traits(qk_norm="head", norms=4),
    "gpt_oss": _Traits(),
    "glm4_moe": _Traits(),
    "minimax_m2": _Traits(qk_norm="all"),
    "olmo2": _Traits(qk_norm="all"),
    "deepseek_v2": _Traits(),
    "deepseek_v3": _Traits(),
    "deepseek_v32": _Traits(),
    "kimi_k2": _Traits(),
    "glm4_moe_lite": _Traits(),
    "glm_moe_dsa": _Traits(),
    "nemotron_h": _Traits(norms=1),
}
_WRAPPERS: Final = ("gemma3", "mistral3", "llama4", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Models that also read images: the decoder is described under `text_config`."""
_GATED_ATTENTION: Final = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
_TIED_BY_DEFAULT: Final = ("gemma2", "gemma3_text")
_DEFAULTS: Final[Mapping[str, Mapping[str, int]]] = {
    # A config.json of theirs leaves out what equals the class's own defaults.
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208},
    "gemma2": {"head_dim": 256, "sliding_window": 4096},
    "mistral": {"vocab_size": 32000},
}
_SIZES: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def read(config: Config, name: str) -> Architecture:
    """A config.json's content as a description. name: of the model, for errors.

    Raises RequestError where a field is missing or no positive number, and "not supported" for a kind of model or
    layer that has no formula here.
    """
    top = config
    text: Config = config.get("text_config") or config
    if text is not config and str(config.get("model_type")) not in _WRAPPERS:
        raise _unsupported(name, f"model type {config.get('model_type')!r}")
    kind = str(text.get("model_type", ""))
    if kind in ("gemma3", "mistral3", "llama4"):
        raise RequestError(f"{name}: its config.json has no text_config", "give the whole file as it was published")
    if kind not in _TRAITS:
        raise _unsupported(name, f"model type {kind!r}")
    if text.get("is_encoder_decoder"):
        raise _unsupported(name, "an encoder-decoder")
    fields = _Fields({**_DEFAULTS.get(kind, {}), **text}, name)
    for size in _SIZES:
        fields.size(size)
    layers = _nemotron_layers(fields) if kind == "nemotron_h" else _decoder_layers(fields, kind)
    tied = text.get("tie_word_embeddings", top.get("tie_word_embeddings"))
    quantized = top.get("quantization_config") or text.get("quantization_config")
    return Architecture(
        model_type=kind,
        hidden=fields.size("hidden_size"),
        vocab=fields.size("vocab_size"),
        layers=layers,
        tied=kind in _TIED_BY_DEFAULT if tied is None else bool(tied),
        context=_context(fields),
        vision=_vision(top.get("vision_config"), fields.size("hidden_size"), name),
        kv_fp8=bool(quantized and quantized.get("kv_cache_scheme")),
        quantization=of_checkpoint(quantized, len(layers), name) if quantized else None,
    )


class _Fields:
    """A config.json's numbers, each read with an error that names it."""

    def __init__(self, values: Config, name: str) -> None:
        self.values = values
        self.name = name

    def size(self, *keys: str, default: int | None = None) -> int:
        """The first of `keys` that is given. Raises RequestError where it is no whole number above 0."""
        value = next((self.values[k] for k in keys if self.values.get(k) is not None), default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            what = "is missing" if value is None else f"is {value!r}"
            raise RequestError(
                f"{self.name}: {keys[0]} {what} in its config.json", "give the whole file as it was published"
            )
        return value

    def count(self, *keys: str) -> int:
        """As `size`, 0 where it is missing, null or 0."""
        return self.size(*keys) if any(self.values.get(k) for k in keys) else 0

    def flag(self, key: str) -> bool:
        return bool(self.values.get(key))


def _unsupported(name: str, what: str) -> RequestError:
    return RequestError(f"{name}: {what} is not supported: its memory can't be told", ANYWAY)


def _context(fields: _Fields) -> int:
    """As vLLM derives it: the trained length, stretched where the config says so."""
    own = fields.size("max_position_embeddings")
    scaling = fields.values.get("rope_scaling") or fields.values.get("rope_parameters") or {}
    original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
    kind = scaling.get("rope_type", scaling.get("type"))
    return max(own, int(original * factor)) if kind == "yarn" and original and factor else own


def _decoder_layers(fields: _Fields, kind: str) -> tuple[Layer, ...]:
    number = fields.size("num_hidden_layers")
    hidden = fields.size("hidden_size")
    types = _layer_types(fields, kind, number)
    norms = _TRAITS[kind].norms * hidden
    return tuple(Layer(_mixer(fields, kind, types[i]), _feed(fields, kind, i), norms) for i in range(number))


_FULL, _SLIDING, _CHUNKED, _LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"


def _layer_types(fields: _Fields, kind: str, number: int) -> list[str]:
    """One of the four words above for each layer."""
    given = fields.values.get("layer_types")
    if given is not None:
        unknown = next((t for t in given if t not in (_FULL, _SLIDING, _CHUNKED, _LINEAR)), None)
        if unknown is not None:
            raise _unsupported(fields.name, f"layer type {unknown!r}")
        if len(given) != number:
            raise RequestError(
                f"{fields.name}: its config.json has {len(given)} layer_types for {number} layers",
                "give the whole file as it was published",
            )
        return list(given)
    if kind in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        every = fields.size("full_attention_interval", default=4)
        return [_FULL if (i + 1) % every == 0 else _LINEAR for i in range(number)]
    if kind == "gemma2":
        return [_SLIDING if i % 2 == 0 else _FULL for i in range(number)]
    if kind == "gemma3_text":
        every = fields.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
        return [_FULL if (i + 1) % every == 0 else _SLIDING for i in range(number)]
    if kind == "gpt_oss":
        return [_SLIDING if i % 2 == 0 else _FULL for i in range(number)]
    if kind == "llama4_text":
        every = fields.size("no_rope_layer_interval", default=4)
        chunked = fields.count("attention_chunk_size")
        return [_FULL if (i + 1) % every == 0 or not chunked else _CHUNKED for i in range(number)]
    # Qwen names a window that it does not use.
    unused = "use_sliding_window" in fields.values and not fields.flag("use_sliding_window")
    return [_SLIDING if fields.values.get("sliding_window") and not unused else _FULL] * number


def _mixer(fields: _Fields, kind: str, layer_type: str) -> Mixer:
    if layer_type == _LINEAR:
        return _gated_delta_net(fields)
    if fields.values.get("kv_lora_rank"):
        return _latent(fields)
    heads = fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", default=heads)
    dim = fields.size("head_dim", default=fields.size("hidden_size") // heads)
    window = {
        _SLIDING: lambda: fields.size("sliding_window"),
        # Of a chunk, the tokens up to its end: at most as many as a window of its length.
        _CHUNKED: lambda: fields.size("attention_chunk_size"),
    }.get(layer_type, lambda: None)()
    traits, extra = _TRAITS[kind], 0
    biased = fields.flag("attention_bias") if traits.qkv_bias is None else traits.qkv_bias
    if biased:
        extra += (heads + 2 * kv_heads) * dim
    if kind == "gpt_oss":
        extra += fields.size("hidden_size") + heads
    norm = "head" if kind == "glm4_moe" and fields.flag("use_qk_norm") else traits.qk_norm
    extra += {"head": 2 * dim, "all": (heads + kv_heads) * dim}.get(norm or "", 0)
    return Attention(heads, kv_heads, dim, window, kind in _GATED_ATTENTION, extra)


def _latent(fields: _Fields) -> Latent:
    return Latent(
        heads=fields.size("num_attention_heads"),
        nope_dim=fields.size("qk_nope_head_dim"),
        rope_dim=fields.size("qk_rope_head_dim"),
        value_dim=fields.size("v_head_dim"),
        kv_rank=fields.size("kv_lora_rank"),
        q_rank=fields.count("q_lora_rank") or None,
        index_heads=fields.count("index_n_heads"),
        index_dim=fields.count("index_head_dim"),
    )


def _gated_delta_net(fields: _Fields) -> State:
    """Source: vLLM's `gated_delta_net_state_shape`."""
    hidden, kernel = fields.size("hidden_size"), fields.size("linear_conv_kernel_dim", default=4)
    key_heads, key_dim = fields.size("linear_num_key_heads"), fields.size("linear_key_head_dim")
    value_heads, value_dim = fields.size("linear_num_value_heads"), fields.size("linear_value_head_dim")
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    return State(
        heads=key_heads,
        conv_values=(kernel - 1) * channels,
        state_values=value_heads * value_dim * key_dim,
        state_bytes=_state_bytes(fields, "mamba_ssm_dtype"),
        linear=hidden * (2 * keys + 2 * values + 2 * value_heads) + values * hidden,
        extra=kernel * channels + 2 * value_heads + value_dim,
    )


def _mamba2(fields: _Fields) -> State:
    """Source: vLLM's `mamba2_state_shape`; Nemotron-H keeps its state in 32 bits unless its config says
    otherwise."""
    hidden, kernel = fields.size("hidden_size"), fields.size("conv_kernel", default=4)
    heads, dim = fields.size("mamba_num_heads"), fields.size("mamba_head_dim")
    groups, state = fields.size("n_groups"), fields.size("ssm_state_size")
    inner = heads * dim
    channels = inner + 2 * groups * state
    return State(
        heads=heads,
        conv_values=(kernel - 1) * channels,
        state_values=heads * dim * state,
        state_bytes=_state_bytes(fields, "mamba_ssm_cache_dtype") or 4,
        linear=hidden * (inner + channels + heads) + inner * hidden,
        extra=(kernel + 1) * channels + 3 * heads + inner,
    )


def _state_bytes(fields: _Fields, key: str) -> int | None:
    value = fields.values.get(key)
    known = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": None, None: None}
    if value not in known:
        raise _unsupported(fields.name, f"{key} {value!r}")
    return known[value]


def _feed(fields: _Fields, kind: str, index: int) -> FeedForward | Experts:
    width = fields.count("intermediate_size")
    count = fields.count("num_local_experts", "num_experts", "n_routed_experts")
    if not count or not _has_experts(fields, kind, index):
        # Experts' width and that of a layer without any have names of their own in Llama 4.
        return FeedForward(fields.size("intermediate_size_mlp", default=width or None))
    expert = fields.size("moe_intermediate_size", default=width or None)
    if kind == "llama4_text":
        shared = width
    elif kind == "glm4_moe" or fields.values.get("kv_lora_rank"):
        shared = expert * fields.count("n_shared_experts")
    else:
        shared = fields.count("shared_expert_intermediate_size", "shared_intermediate_size")
    hidden, router_extra = fields.size("hidden_size"), 0
    if kind in ("qwen2_moe", "qwen3_next", "qwen3_5_moe_text"):
        router_extra = hidden  # the gate of the shared expert
    elif kind in ("gpt_oss", "glm4_moe", "minimax_m2") or fields.values.get("topk_method") == "noaux_tc":
        router_extra = count
    return Experts(
        count=count,
        per_token=fields.size("num_experts_per_tok", "experts_per_token"),
        width=expert,
        shared_width=shared,
        extra=2 * expert + hidden if kind == "gpt_oss" else 0,
        router_extra=router_extra,
    )


def _has_experts(fields: _Fields, kind: str, index: int) -> bool:
    if index in (fields.values.get("mlp_only_layers") or ()):
        return False
    if kind == "llama4_text":
        return (index + 1) % fields.size("interleave_moe_layer_step", default=1) == 0
    every = fields.size("decoder_sparse_step", default=1)
    return index >= fields.count("first_k_dense_replace") and (index + 1) % every == 0


def _nemotron_layers(fields: _Fields) -> tuple[Layer, ...]:
    """Each of its layers is one thing only: M Mamba 2, * attention, - feed-forward, E experts."""
    pattern, hidden = str(fields.values.get("hybrid_override_pattern", "")), fields.size("hidden_size")
    if fields.values.get("moe_latent_size"):
        raise _unsupported(fields.name, "a mixture of latent experts")
    if len(pattern) != fields.size("num_hidden_layers"):
        raise RequestError(
            f"{fields.name}: hybrid_override_pattern has {len(pattern)} letters in its config.json",
            "one is needed for each layer",
        )
    made: dict[str, Layer] = {}
    for letter in set(pattern):
        if letter == "M":
            made[letter] = Layer(_mamba2(fields), None, hidden)
        elif letter == "*":
            made[letter] = Layer(_mixer(fields, "nemotron_h", _FULL), None, hidden)
        elif letter == "-":
            made[letter] = Layer(None, FeedForward(fields.size("intermediate_size"), matrices=2), hidden)
        elif letter == "E":
            count = fields.size("n_routed_experts")
            shared = fields.count("moe_shared_expert_intermediate_size") * fields.count("n_shared_experts")
            width, per_token = fields.size("moe_intermediate_size"), fields.size("num_experts_per_tok")
            experts = Experts(count, per_token, width, shared, matrices=2, router_extra=count)
            made[letter] = Layer(None, experts, hidden)
        else:
            raise _unsupported(fields.name, f"layer {letter!r}")
    return tuple(made[letter] for letter in pattern)


def _vision(config: Config | None, hidden: int, name: str) -> int:
    """Parameters of an image encoder, by a plain vision transformer's formula: within a few percent of itself, and
    well within one of the whole model."""
    if not config:
        return 0
    fields = _Fields(config, f"{name} (vision_config)")
    width, depth = fields.size("hidden_size"), fields.size("num_hidden_layers", "depth")
    inner, patch = fields.size("intermediate_size"), fields.size("patch_size", default=14)
    matrices = 3 if config.get("model_type") == "pixtral" else 2
    block = 4 * width * width + matrices * width * inner + 9 * width + inner
    merged = fields.size("spatial_merge_size", default=1) ** 2 * width
    # Qwen3-VL hands pictures to several layers of its decoder, each through a projection of its own.
    projections = 1 + len(config.get("deepstack_visual_indexes") or ())
    return depth * block + 3 * patch * patch * width + projections * merged * (merged + hidden)
