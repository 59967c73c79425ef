"""GPU names: the canonical one, its memory, and the spellings people use for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuna_nb.errors import RequestError, did_you_mean


@dataclass(frozen=True, slots=True)
class Gpu:
    """name: canonical. vram_gb: memory of one GPU. architecture: NVIDIA's name of the generation."""

    name: str
    vram_gb: int
    architecture: str
    aliases: tuple[str, ...] = ()


GPUS = (
    Gpu("T4", 16, "Turing", ("Tesla-T4",)),
    Gpu("L4", 24, "Ada"),
    Gpu("A10", 24, "Ampere"),
    Gpu("A10G", 24, "Ampere"),
    Gpu("RTX4090", 24, "Ada", ("RTX_4090", "4090")),
    Gpu("RTX5090", 32, "Blackwell", ("RTX_5090", "5090")),
    Gpu("L40", 48, "Ada"),
    Gpu("L40S", 48, "Ada"),
    Gpu("A40", 48, "Ampere"),
    Gpu("RTXA6000", 48, "Ampere", ("A6000", "RTX_A6000")),
    Gpu("V100", 16, "Volta", ("V100-16GB",)),
    Gpu("A100_40GB", 40, "Ampere", ("A100-40GB", "A100-SXM4-40GB")),
    Gpu("A100_80GB", 80, "Ampere", ("A100", "A100-80GB", "A100-SXM4-80GB")),
    Gpu("H100", 80, "Hopper", ("H100-80GB", "H100-SXM", "H100_80GB")),
    Gpu("H200", 141, "Hopper", ("H200-SXM",)),
    Gpu("B200", 180, "Blackwell"),
)
"""Memory as NVIDIA's data sheets give it. "A100" alone means the 80 GB one, as at most serverless providers."""


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


_BY_KEY = {_key(n): gpu for gpu in GPUS for n in (gpu.name, *gpu.aliases)}


def find(name: str) -> Gpu:
    """The GPU of that name; case, blanks, dashes and underscores don't matter.

    Raises RequestError with the nearest known name.
    """
    gpu = _BY_KEY.get(_key(name))
    if gpu is None:
        raise RequestError(f"unknown GPU {name!r}", did_you_mean(name, [g.name for g in GPUS]))
    return gpu
