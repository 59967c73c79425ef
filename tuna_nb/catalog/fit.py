"""Which GPUs hold a model, how many of them it takes, and what they cost."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tuna_nb.catalog.gpus import GPUS, Gpu
from tuna_nb.catalog.models import kv_cache
from tuna_nb.catalog.models.memory import (
    GIB,
    MemoryNeed,
    Model,
    Wanted,
    check_length,
    chosen_quantization,
    memory_need,
)
from tuna_nb.catalog.offers import Offer, OfferKind, Shape
from tuna_nb.errors import RequestError

SIZES: Final = (1, 2, 4, 8)
"""Tensor-parallel sizes that fit into one machine."""
_OLD: Final = ("Kepler", "Pascal")
"""vLLM starts at compute capability 7.0."""
_AMPERE_OR_NEWER: Final = ("mxfp4",)
_TURING: Final = ("Turing", "Volta")
NOWHERE: Final = "no GPU that Tuna knows holds it in one machine"
COMMON: Final = ("T4", "L4", "A10G", "L40S", "RTXPRO6000", "A100_40GB", "A100_80GB", "H100", "H200", "B200")
"""What is worth proposing where no price is known: several providers sell it."""
_LENGTHS: Final = (131072, 65536, 32768, 16384, 8192, 4096, 2048)


class Holds(enum.StrEnum):
    """Whether a model fits, as surely as that can be reckoned."""

    YES = "yes"
    TIGHT = "tight"
    """By less than what the reckoning may be off."""
    FEWER = "fewer at once"
    """It starts, and holds fewer requests of that length at once than were asked for."""
    NO = "no"
    """It would not start."""


@dataclass(frozen=True, slots=True)
class Price:
    """The cheapest of its kind for all GPUs that it takes. usd_per_hour: all in; whole: False where a line that is
    billed too is not known, so that it is the least. region: None where it does not matter."""

    kind: OfferKind
    provider: str
    usd_per_hour: float
    whole: bool
    region: str | None
    observed_at: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A model on `tp_size` GPUs of one kind. why: it does not fit, empty where it does."""

    gpu: str
    tp_size: int
    vram_gb: int
    holds: Holds
    need: MemoryNeed
    why: str = ""
    prices: tuple[Price, ...] = ()

    def price(self, kind: OfferKind) -> Price | None:
        return next((p for p in self.prices if p.kind is kind), None)


@dataclass(frozen=True, slots=True)
class About:
    """The model. source: where its description was read. layers: how many of each kind. cache_bytes_per_token: on a
    single GPU, for each further token until a window is full. quantization: as vLLM calls it, None for none."""

    name: str
    source: str
    parameters: int
    layers: Mapping[str, int]
    context: int
    cache_bytes_per_token: int
    quantization: str | None


@dataclass(frozen=True, slots=True)
class FitList:
    """fits: the cheapest first where prices are known, else the smallest. passed_over: (GPU, why) of those that
    can't hold it in any number. asked: one GPU was, so that all its sizes are listed."""

    model: About
    wanted: Wanted
    fits: tuple[Fit, ...]
    passed_over: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    asked: bool = False


def fit(model: Model, gpu: Gpu, tp_size: int, wanted: Wanted) -> Fit:
    """Raises RequestError as `memory_need`."""
    need = memory_need(model, gpu, tp_size, wanted)
    holds, why = _verdict(need, wanted)
    return Fit(gpu.name, tp_size, gpu.vram_gb, holds, need, why)


def _verdict(need: MemoryNeed, wanted: Wanted) -> tuple[Holds, str]:
    budget = need.budget_bytes
    if need.least_bytes - need.least_doubt_bytes > budget:
        return Holds.NO, f"needs {need.least_bytes / GIB:,.1f} GiB, and {budget / GIB:,.1f} GiB may be used"
    if need.bytes + need.doubt_bytes <= budget:
        return Holds.YES, ""
    if need.bytes <= budget:
        return Holds.TIGHT, "by less than what the reckoning may be off"
    at_once = math.floor(need.requests)
    if at_once < 1:
        return Holds.FEWER, "whether one request fits is within what the reckoning may be off"
    return Holds.FEWER, f"{at_once:,} of {wanted.concurrency:,} requests at once"


def can_run(model: Model, gpu: Gpu, wanted: Wanted) -> str | None:
    """Why the engine can't serve that model there, whatever the memory; None where it can."""
    if gpu.vendor != "NVIDIA":
        return f"the engine's image is for NVIDIA, and it is {gpu.vendor}'s"
    if gpu.architecture in _OLD:
        return f"{gpu.architecture} is too old for vLLM"
    chosen = chosen_quantization(model, wanted)
    if chosen is not None and gpu.architecture in _TURING:
        volta = gpu.architecture == "Volta" and chosen.method in ("awq", "fp8")
        if volta or chosen.method in _AMPERE_OR_NEWER:
            return f"{gpu.architecture} has no {chosen.method}"
    return None


def sizes(model: Model, most: int = SIZES[-1]) -> list[int]:
    """Tensor-parallel sizes that divide its heads."""
    return kv_cache.possible_sizes(model.architecture, most)


def fits(
    model: Model,
    gpus: Sequence[Gpu],
    wanted: Wanted,
    tp_size: int | None = None,
    offers: Iterable[Offer] = (),
) -> FitList:
    """Of each GPU the fewest that hold the model as wanted, or else the most that start at all; of a single GPU
    every number.

    Raises RequestError for more tokens than the model takes, a tensor-parallel size that does not divide its
    heads, another quantization than its checkpoint's.
    """
    check_length(model, wanted.max_model_len)
    chosen_quantization(model, wanted)
    if tp_size is not None:
        kv_cache.check_heads(model.architecture, tp_size)
    asked, offers = len(gpus) == 1, list(offers)
    rows: list[Fit] = []
    passed_over: list[tuple[str, str]] = []
    for gpu in gpus:
        if why := can_run(model, gpu, wanted):
            passed_over.append((gpu.name, why))
            continue
        of_gpu = [fit(model, gpu, size, wanted) for size in ([tp_size] if tp_size else sizes(model))]
        held = [f for f in of_gpu if f.holds in (Holds.YES, Holds.TIGHT)]
        started = [f for f in of_gpu if f.holds is not Holds.NO]
        if asked:
            rows += of_gpu
        elif held or started:
            rows.append(held[0] if held else started[-1])
        else:
            passed_over.append((gpu.name, f"{of_gpu[-1].tp_size}x: {of_gpu[-1].why}"))
    rows = [replace(row, prices=cheapest(offers, row.gpu, row.tp_size)) for row in rows]
    if not asked:
        rows.sort(key=_order)
    notes = _notes(model, wanted)
    if asked and rows and all(row.holds is Holds.NO for row in rows):
        notes += (_what_would(model, gpus[0], rows[-1].tp_size, wanted) or NOWHERE,)
    return FitList(_about(model, wanted), wanted, tuple(rows), tuple(passed_over), notes, asked)


def _about(model: Model, wanted: Wanted) -> About:
    described, chosen = model.architecture, chosen_quantization(model, wanted)
    return About(
        name=model.name,
        source=model.source,
        parameters=model.parameters,
        layers={str(kind): count for kind, count in described.kinds().items()},
        context=described.context,
        cache_bytes_per_token=kv_cache.lay_out(described, 1, wanted.kv_cache_dtype).bytes_per_token,
        quantization=None if chosen is None else chosen.method,
    )


def cheapest(offers: Iterable[Offer], gpu: str, count: int) -> tuple[Price, ...]:
    """The cheapest offer of each kind for `count` GPUs that can talk to each other, all in.

    One machine must have that many, and is paid whole.
    """
    best: dict[OfferKind, Price] = {}
    for offer in offers:
        if offer.gpu != gpu or not offer.holds(count):
            continue
        gpus = max(count, offer.gpu_count)
        all_in = offer.all_in(Shape(gpus, offer.vcpus or 8 * gpus, offer.memory_gib or 32 * gpus))
        if all_in is None:
            continue
        known = best.get(offer.kind)
        if known is None or all_in.usd_per_hour < known.usd_per_hour:
            best[offer.kind] = Price(
                offer.kind, offer.provider, all_in.usd_per_hour, all_in.whole, offer.region, offer.observed_at
            )
    return tuple(best[kind] for kind in OfferKind if kind in best)


def refusal(model: Model, gpu: Gpu, tp_size: int, wanted: Wanted) -> RequestError | None:
    """Why a plan can't work, with what would; None where it may. Only what would not even start is refused.

    wanted: its concurrency does not matter, since requests can wait for each other.
    """
    try:
        tried = fit(model, gpu, tp_size, wanted)
    except RequestError as e:
        return e
    if tried.holds is not Holds.NO:
        return None
    return RequestError(
        f"{model.name} does not fit {tp_size}x {gpu.name}: each GPU {tried.why}",
        _what_would(model, gpu, tp_size, wanted) or NOWHERE,
    )


def _what_would(model: Model, gpu: Gpu, tp_size: int, wanted: Wanted) -> str:
    """Each change alone that makes it start, the smallest of its kind."""

    def starts(gpu: Gpu, size: int, wanted: Wanted) -> bool:
        return can_run(model, gpu, wanted) is None and fit(model, gpu, size, wanted).holds is not Holds.NO

    found = []
    more = next((s for s in sizes(model) if s > tp_size and starts(gpu, s, wanted)), None)
    if more is not None:
        found.append(f"--tp-size {more} --gpu-count {more}")
    larger = sorted((g for g in GPUS if g.vram_gb > gpu.vram_gb and g.name in COMMON), key=lambda g: g.vram_gb)
    other = next((g for g in larger if starts(g, tp_size, wanted)), None)
    if other is not None:
        found.append(f"--gpu {other.name}")
    if model.architecture.quantization is None and wanted.quantization is None:
        for method in ("fp8", "awq"):
            if starts(gpu, tp_size, replace(wanted, quantization=method)):
                note = "" if method == "fp8" else " with an AWQ checkpoint"
                found.append(f"--quantization {method}{note}")
                break
    shorter = next(
        (
            n
            for n in _LENGTHS
            if n < wanted.max_model_len and starts(gpu, tp_size, replace(wanted, max_model_len=n))
        ),
        None,
    )
    if shorter is not None:
        found.append(f"--max-model-len {shorter}")
    return f"what would fit: {', or '.join(found)}" if found else ""


def _order(row: Fit) -> tuple[float, ...]:
    known = [p.usd_per_hour for p in row.prices]
    rank = {Holds.YES: 0, Holds.TIGHT: 0, Holds.FEWER: 1, Holds.NO: 2}[row.holds]
    return rank, min(known, default=math.inf), row.tp_size * row.vram_gb, row.tp_size


def _notes(model: Model, wanted: Wanted) -> tuple[str, ...]:
    found = []
    chosen = chosen_quantization(model, wanted)
    if chosen is not None and model.architecture.quantization is None and not chosen.in_flight:
        found.append(f"{chosen.method} needs a checkpoint of the model that was quantized so")
    if chosen is not None and chosen.gone:
        found.append(f"vLLM 0.32 has no {chosen.method} any more: it needs an older --image")
    if model.architecture.vision:
        found.append("what reading images takes while it works is not counted")
    return tuple(found)
