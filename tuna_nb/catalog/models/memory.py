"""The memory that one GPU needs to serve a model, line by line, against what the engine may use of it.

Weights and cache are reckoned; what the engine needs while it works is estimated, and said to be. Each line
says how it was got.

Sources: vLLM 0.32's defaults (share of the memory, tokens and requests of a batch by kind of GPU) and published
start-up logs (activations, graphs, what is outside of PyTorch): vllm-project/vllm issues 10511, 10517, 14452.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tuna_nb.catalog.gpus import Gpu
from tuna_nb.catalog.models import kv_cache, quantization, weights
from tuna_nb.catalog.models.architecture import Architecture, Attention, Experts, FeedForward, Latent
from tuna_nb.catalog.models.kv_cache import KvCache
from tuna_nb.catalog.models.quantization import Quantization
from tuna_nb.catalog.models.weights import Files
from tuna_nb.errors import RequestError

GIB: Final = 2**30
UTILIZATION: Final = 0.92
"""vLLM 0.32's own default; it was 0.9 before."""
MARGIN: Final = 0.02
HYBRID_MARGIN: Final = 0.10
"""How far the cache's formulas were off published logs, for models of one kind of layer and of several."""
WEIGHTS_MARGIN: Final = 0.01
ESTIMATE_MARGIN: Final = 0.25
KV_DTYPES: Final = ("auto", "fp8")

_SEEN_GIB: Final = {
    "T4": 14.56, "L4": 22.03, "A10": 22.06, "A10G": 22.06, "V100": 15.77, "V100_32GB": 31.73, "RTX3090": 23.56,
    "RTX4090": 23.52, "RTX5090": 31.36, "RTXA5000": 23.56, "RTXA6000": 47.37, "A40": 44.34, "L40": 44.39,
    "L40S": 44.39, "RTX6000ADA": 47.37, "RTXPRO6000": 94.97, "A100_40GB": 39.39, "A100_80GB": 79.14, "H100": 79.10,
    "H100_NVL": 93.02, "GH200": 94.50, "H200": 139.72, "B200": 178.35,
}  # fmt: skip
"""What programs see of a GPU's memory, from published logs: error correction and the driver take their part."""
_SEEN: Final = 0.93
"""Of a GPU that is not in the table: the least share of any there is 0.91, of the newer ones 0.98."""

_GRAPHS_PER_LAYER: Final = 16 << 20
_OUTSIDE: Final = int(0.4 * GIB)
_OUTSIDE_PARALLEL: Final = int(1.0 * GIB)
_SAMPLER_BYTES: Final = 16
"""Of each word of the vocabulary and request, while the engine tries out its largest batch: four copies in 32
bits."""


@dataclass(frozen=True, slots=True)
class Model:
    """source: where its description was read. files: what its weights' headers say, None where they are not
    known."""

    name: str
    architecture: Architecture
    source: str
    files: Files | None = None

    @property
    def parameters(self) -> int:
        return weights.parameters(self.architecture)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be served.

    max_model_len: tokens of one request. concurrency: requests of that length at once. kv_cache_dtype: `auto`
    or `fp8`. utilization: share of a GPU's memory that the engine may use. graphs: whether it records CUDA
    graphs, which a fast start leaves out. Raises RequestError for what can never be.
    """

    max_model_len: int = 4096
    concurrency: int = 32
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    utilization: float = UTILIZATION
    graphs: bool = True

    def __post_init__(self) -> None:
        for flag, value in (("--max-model-len", self.max_model_len), ("--concurrency", self.concurrency)):
            if value < 1:
                raise RequestError(f"{flag} is {value}", "it must be at least 1")
        if not (math.isfinite(self.utilization) and 0 < self.utilization <= 1):
            raise RequestError(f"--gpu-memory-utilization is {self.utilization:g}", "it is a share, from 0.1 to 1")
        if self.kv_cache_dtype not in KV_DTYPES:
            raise RequestError(f"unknown KV cache type {self.kv_cache_dtype!r}", f"known: {', '.join(KV_DTYPES)}")
        if self.quantization is not None:
            quantization.named(self.quantization)


@dataclass(frozen=True, slots=True)
class Line:
    """bytes: on one GPU. how: it was got. margin: the share by which it may be off."""

    name: str
    bytes: int
    how: str
    margin: float


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """On each of `tp_size` GPUs.

    lines: weights, cache at the wanted concurrency, and what the engine needs besides. pool_bytes: what is left
    for the cache of what the engine may use; below 0 where the rest alone does not fit. single_bytes: of the
    cache, for one request that is being read, alone. request_bytes: for each further one. most_request_bytes: if
    no layer forgot anything, as without the engine's hybrid memory manager. requests: how many the pool holds at
    once. longest: tokens of each, at the wanted concurrency.
    """

    gpu: str
    tp_size: int
    lines: tuple[Line, ...]
    budget_bytes: int
    pool_bytes: int
    single_bytes: int
    request_bytes: int
    most_request_bytes: int
    requests: float
    longest: int

    @property
    def bytes(self) -> int:
        """At the wanted concurrency."""
        return sum(line.bytes for line in self.lines)

    @property
    def doubt_bytes(self) -> float:
        """By how much `bytes` may be off."""
        return sum(line.bytes * line.margin for line in self.lines)

    @property
    def least_bytes(self) -> int:
        """With a single request, without which the engine does not start."""
        return self.budget_bytes - self.pool_bytes + self.single_bytes

    @property
    def least_doubt_bytes(self) -> float:
        """By how much `least_bytes` may be off."""
        cache = self.lines[1]
        return self.doubt_bytes - (cache.bytes - self.single_bytes) * cache.margin


def seen_bytes(gpu: Gpu) -> int:
    """What programs see of its memory."""
    return int(_SEEN_GIB.get(gpu.name, gpu.vram_gb * _SEEN) * GIB)


def batch(gpu: Gpu) -> tuple[int, int]:
    """Tokens and requests of the engine's largest batch there. Source: vLLM 0.32,
    `EngineArgs.get_batch_defaults`."""
    seen = seen_bytes(gpu)
    if seen >= 160 * GIB:
        return 16384, 1024
    if seen >= 70 * GIB and not gpu.name.startswith("A100"):
        return 8192, 1024
    return 2048, 256


def check_length(model: Model, tokens: int) -> None:
    """Raises RequestError for more tokens than the model takes, which the engine refuses."""
    if tokens > model.architecture.context:
        raise RequestError(
            f"{model.name} takes {model.architecture.context:,} tokens at most, and --max-model-len is {tokens:,}",
            f"--max-model-len {model.architecture.context}, or less",
        )


def memory_need(model: Model, gpu: Gpu, tp_size: int, wanted: Wanted) -> MemoryNeed:
    """Raises RequestError where `tp_size` does not divide the heads, or the checkpoint has another quantization."""
    check_length(model, wanted.max_model_len)
    architecture = model.architecture
    cache = kv_cache.lay_out(architecture, tp_size, wanted.kv_cache_dtype)
    tokens, requests = batch(gpu)
    # Two batches may be under way at once.
    in_flight = 2 * tokens
    budget = int(seen_bytes(gpu) * wanted.utilization)
    fixed = [
        _weights(model, tp_size, wanted),
        Line(
            "activations",
            activation_bytes(architecture, tp_size, tokens, min(requests, tokens)),
            f"estimate for a batch of {tokens:,} tokens or {requests:,} requests",
            ESTIMATE_MARGIN,
        ),
        _estimate("outside of PyTorch", _OUTSIDE + (_OUTSIDE_PARALLEL if tp_size > 1 else 0)),
    ]
    if wanted.graphs:
        fixed.append(_estimate("CUDA graphs", _GRAPHS_PER_LAYER * len(architecture.layers)))
    pool = budget - sum(line.bytes for line in fixed)
    length = wanted.max_model_len
    return MemoryNeed(
        gpu=gpu.name,
        tp_size=tp_size,
        lines=(fixed[0], _cache_line(cache, wanted, in_flight, architecture.hybrid), *fixed[1:]),
        budget_bytes=budget,
        pool_bytes=pool,
        single_bytes=cache.blocks(length, 1, in_flight) * cache.block_bytes,
        request_bytes=cache.request_bytes(length),
        most_request_bytes=max(cache.request_bytes(length), cache.most_request_bytes(length)),
        requests=cache.requests(pool, length, in_flight),
        longest=cache.longest(pool, wanted.concurrency, architecture.context, in_flight),
    )


def chosen_quantization(model: Model, wanted: Wanted) -> Quantization | None:
    return quantization.chosen(model.architecture.quantization, wanted.quantization, model.name)


def weight_bytes(model: Model, tp_size: int = 1, chosen: Quantization | None = None) -> int:
    """On one GPU. From the headers where there are any: their total, dealt out as the formula does."""
    formula = sum(weights.size(model.architecture, tp_size, chosen).values())
    if model.files is None:
        return int(formula)
    own = model.architecture.quantization
    return int(formula * model.files.bytes / sum(weights.size(model.architecture, 1, own).values()))


def _weights(model: Model, tp_size: int, wanted: Wanted) -> Line:
    chosen = chosen_quantization(model, wanted)
    kind = f"{8 * model.architecture.value_bytes} bits each" if chosen is None else chosen.method
    how = f"{billions(model.parameters)} billion parameters, {kind}"
    if model.files is None:
        how += ", by formula"
    elif chosen is model.architecture.quantization:
        how = f"{model.files.bytes / GIB:,.2f} GiB by the headers of its files"
    else:
        how += ", from the headers of its files"
    if tp_size > 1:
        how += f"; 1/{tp_size} of what can be cut"
    return Line("weights", weight_bytes(model, tp_size, chosen), how, WEIGHTS_MARGIN)


def billions(parameters: int) -> str:
    """For reading: `0.6`, `32.8`, `1,026`."""
    number = parameters / 1e9
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"


def _estimate(name: str, amount: int) -> Line:
    return Line(name, amount, "estimate, from logs", ESTIMATE_MARGIN)


def _cache_line(cache: KvCache, wanted: Wanted, in_flight: int, hybrid: bool) -> Line:
    length, requests = wanted.max_model_len, wanted.concurrency
    blocks = cache.blocks(length, requests, in_flight)
    extra = blocks - requests * cache.blocks(length)
    how = f"{requests:,} requests of {length:,} tokens, {cache.request_bytes(length) / 2**20:,.0f} MiB each"
    if extra > 0:
        how += f", and {extra * cache.block_bytes / 2**20:,.0f} MiB for windows at work"
    return Line("KV cache", blocks * cache.block_bytes, how, HYBRID_MARGIN if hybrid else MARGIN)


def activation_bytes(model: Architecture, tp_size: int, tokens: int, requests: int) -> int:
    """The most that is held besides while one layer is at work, or while words are drawn. An estimate: within 15 %
    of the logs for Llama 3.1 8B at 20,000 and 29,000 tokens, where layers decide."""
    return max(tokens * model.value_bytes * _widest(model, tp_size), requests * model.vocab * _SAMPLER_BYTES)


def _widest(model: Architecture, tp_size: int) -> int:
    """Numbers held of each token: the residual, its norm and the layer's input, and what the widest part makes."""
    widest = 0
    for layer in set(model.layers):
        parts = []
        match layer.mixer:
            case Attention(heads=heads, kv_heads=kv_heads, head_dim=dim):
                parts.append((2 * heads + 2 * kv_heads) * dim // tp_size)
            case Latent(heads=heads, nope_dim=nope, rope_dim=rope, value_dim=value):
                parts.append(heads * (2 * (nope + rope) + 2 * value) // tp_size)
            case _:
                parts.append(0)
        match layer.feed:
            case FeedForward(width=width, matrices=matrices):
                parts.append(matrices * width // tp_size)
            case Experts(per_token=per_token, width=width, matrices=matrices, shared_width=shared):
                each = matrices * width // tp_size + model.hidden
                parts.append(per_token * each + matrices * shared // tp_size)
            case _:
                parts.append(0)
        widest = max(widest, *parts)
    return 3 * model.hidden + widest
