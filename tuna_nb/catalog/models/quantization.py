"""How many bits a weight takes, and which weights keep theirs.

Sources: vLLM 0.32's quantization methods; each format's own layout of scales and zero points.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tuna_nb.errors import RequestError, did_you_mean


class Part(enum.StrEnum):
    """What a model is made of, as far as quantization tells it apart."""

    EMBEDDINGS = "embeddings"
    HEAD = "output head"
    ATTENTION = "attention"
    STATE = "recurrent layers"
    DENSE = "feed-forward"
    EXPERTS = "experts"
    SHARED = "shared experts"
    ROUTER = "routers"
    NORMS = "norms and biases"
    VISION = "image encoder"


_LINEAR: Final = frozenset({Part.ATTENTION, Part.STATE, Part.DENSE, Part.EXPERTS, Part.SHARED})


@dataclass(frozen=True, slots=True)
class Quantization:
    """method: vLLM's word. bits: of one weight, with its share of scales and zero points. covers: parts that
    have it; the others stay as they are. in_flight: the engine can do it itself while it loads a plain
    checkpoint. gone: the pinned engine has it no more."""

    method: str
    bits: float
    covers: frozenset[Part] = _LINEAR
    in_flight: bool = False
    gone: bool = False


FP8_BLOCK: Final = 8 + 32 / (128 * 128)
"""DeepSeek's blocks: a 32-bit scale for 128 by 128 weights."""

METHODS: Final[Mapping[str, Quantization]] = {
    # A 16-bit scale and a 4-bit zero point for every 128 weights.
    "awq": Quantization("awq", 4 + (16 + 4) / 128),
    "gptq": Quantization("gptq", 4 + (16 + 4) / 128),
    "fp8": Quantization("fp8", 8, in_flight=True),
    "int8": Quantization("int8", 8, in_flight=True),
    # A 32-bit scale for every 64 weights. vLLM 0.32 lists it no more.
    "bitsandbytes": Quantization("bitsandbytes", 4 + 32 / 64, in_flight=True, gone=True),
    "mxfp4": Quantization("mxfp4", 4 + 8 / 32, frozenset({Part.EXPERTS})),
}
"""As a user names them, at each method's usual settings."""
_SAME: Final = {
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "fp8_per_tensor": "fp8",
    "fp8_per_channel": "fp8",
    "fp8_per_block": "fp8",
    "int8_per_channel_weight_only": "int8",
}
"""vLLM's own names of variants that take the same memory."""


def named(method: str) -> Quantization:
    """Of the user's `--quantization`. Raises RequestError for one that is not known."""
    known = METHODS.get(_SAME.get(method, method))
    if known is None:
        raise RequestError(f"unknown quantization {method!r}", did_you_mean(method, METHODS))
    return known


def chosen(own: Quantization | None, method: str | None, name: str) -> Quantization | None:
    """What a model runs with: own, of its checkpoint, and method, the user's, None for none.

    Raises RequestError where they differ: the engine refuses that.
    """
    if method is None:
        return own
    asked = named(method)
    if own is not None and own.method != asked.method:
        raise RequestError(
            f"{name} is quantized with {own.method} already, and can't be with {method}",
            f"leave out --quantization, or choose a {asked.method} checkpoint of the model",
        )
    return own or asked


def of_checkpoint(config: Mapping[str, Any], layers: int, name: str) -> Quantization:
    """A config.json's `quantization_config`; layers: how many the model has.

    Raises RequestError for a method that has no formula here."""
    method = str(config.get("quant_method", "")).lower()
    covers = _LINEAR - _skipped(config, layers)
    try:
        if method == "fp8":
            return Quantization("fp8", FP8_BLOCK if config.get("weight_block_size") else 8, covers)
        if method in ("awq", "gptq"):
            bits, group = int(config["bits"]), int(config.get("group_size", 128))
            return Quantization(method, bits + ((16 + bits) / group if group > 0 else 0), covers)
        if method == "bitsandbytes":
            double = 8 / 64 + 32 / (64 * 256) if config.get("bnb_4bit_use_double_quant") else 32 / 64
            return Quantization(method, 4 + double if config.get("load_in_4bit") else 8, covers)
        if method == "mxfp4":
            return Quantization(method, 4 + 8 / 32, frozenset({Part.EXPERTS}))
        if method == "compressed-tensors":
            return Quantization(method, _compressed(config), covers)
        if method == "modelopt" and (bits_of := _MODELOPT.get(str(config.get("quant_algo", "")).upper())):
            return Quantization(method, bits_of, covers)
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise RequestError(
        f"{name}: quantization {method or 'of its config.json'!r} is not supported: its size can't be told",
        "give a folder with the weights, or the unquantized model with --quantization",
    )


_MODELOPT: Final = {"FP8": 8.0, "NVFP4": 4 + 8 / 16}


def _compressed(config: Mapping[str, Any]) -> float:
    """The dearest of its groups."""
    found = []
    for group in config["config_groups"].values():
        weights = group["weights"]
        bits, size = int(weights["num_bits"]), weights.get("group_size")
        scale = 8 if bits == 4 and weights.get("type") == "float" else 16
        found.append(bits + (scale / int(size) if size else 0))
    return max(found)


_LAYER: Final = re.compile(r"layers\\?\.(\d+)\\?\.")
_NAMES: Final = (
    (Part.ATTENTION, re.compile(r"self_attn|attention")),
    (Part.STATE, re.compile(r"linear_attn|mamba|mixer\.(in|out)_proj")),
    (Part.SHARED, re.compile(r"shared_expert")),
    (Part.DENSE, re.compile(r"mlp\\?\.\(?(gate_|up_|down_|gate\|)")),
)


def _skipped(config: Mapping[str, Any], layers: int) -> frozenset[Part]:
    """Parts whose modules the checkpoint names as left alone: in general, or in most of its layers one by one."""
    names: Sequence[str] = config.get("modules_to_not_convert") or config.get("ignore") or ()
    skipped = set()
    for part, pattern in _NAMES:
        matching = [n for n in names if pattern.search(n)]
        single = {found[1] for n in matching if (found := _LAYER.search(n))}
        if len(single) > layers / 2 or any(not _LAYER.search(n) for n in matching):
            skipped.add(part)
    return frozenset(skipped)
