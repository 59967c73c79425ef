"""GPU names: the canonical one, what it is, and the spellings that people and providers use for it.

Memory and generation are as the makers' data sheets give them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tuna_nb.errors import RequestError, did_you_mean


@dataclass(frozen=True, slots=True)
class Gpu:
    """name: canonical. vram_gb: memory of one GPU. architecture: the maker's name of the generation."""

    name: str
    vram_gb: int
    architecture: str
    aliases: tuple[str, ...] = ()
    vendor: str = "NVIDIA"


GPUS: Final = (
    Gpu("K80", 12, "Kepler"),
    Gpu("P4", 8, "Pascal"),
    Gpu("P40", 24, "Pascal"),
    Gpu("P100", 16, "Pascal"),
    Gpu("V100", 16, "Volta"),
    Gpu("V100_32GB", 32, "Volta"),
    Gpu("RTX2080TI", 11, "Turing", ("2080 Ti",)),
    Gpu("RTX6000", 24, "Turing", ("Quadro RTX 6000", "Q RTX 6000")),
    Gpu("RTX8000", 48, "Turing", ("Quadro RTX 8000", "Q RTX 8000")),
    Gpu("T4", 16, "Turing", ("TURING_T4",)),
    Gpu("RTX3060", 12, "Ampere", ("3060",)),
    Gpu("RTX3070", 8, "Ampere", ("3070",)),
    Gpu("RTX3080", 10, "Ampere", ("3080",)),
    Gpu("RTX3080TI", 12, "Ampere", ("3080 Ti",)),
    Gpu("RTX3090", 24, "Ampere", ("3090",)),
    Gpu("RTX3090TI", 24, "Ampere", ("3090 Ti",)),
    Gpu("A2", 16, "Ampere"),
    Gpu("A10", 24, "Ampere", ("AMPERE_A10",)),
    Gpu("A10G", 24, "Ampere"),
    Gpu("A16", 16, "Ampere"),
    Gpu("A30", 24, "Ampere"),
    Gpu("A40", 48, "Ampere"),
    Gpu("RTXA4000", 16, "Ampere", ("A4000",)),
    Gpu("RTXA4500", 20, "Ampere", ("A4500",)),
    Gpu("RTXA5000", 24, "Ampere", ("A5000",)),
    Gpu("RTXA6000", 48, "Ampere", ("A6000",)),
    Gpu("A100_40GB", 40, "Ampere", ("A100-SXM4-40GB", "AMPERE_A100_40GB", "A100X 40GB")),
    Gpu("A100_80GB", 80, "Ampere", ("A100", "A100-SXM4-80GB", "AMPERE_A100_80GB", "A100X")),
    Gpu("L4", 24, "Ada", ("ADA_L4",)),
    Gpu("L40", 48, "Ada"),
    Gpu("L40S", 48, "Ada", ("ADA_L40",)),
    Gpu("RTX4060TI", 16, "Ada", ("4060 Ti",)),
    Gpu("RTX4070TI", 12, "Ada", ("4070 Ti",)),
    Gpu("RTX4080", 16, "Ada", ("4080",)),
    Gpu("RTX4090", 24, "Ada", ("4090",)),
    Gpu("RTX2000ADA", 16, "Ada", ("RTX2000-Ada",)),
    Gpu("RTX4000ADA", 20, "Ada", ("RTX 4000 SFF Ada", "RTX4000-Ada")),
    Gpu("RTX5000ADA", 32, "Ada", ("RTX5000-Ada",)),
    Gpu("RTX6000ADA", 48, "Ada", ("RTX6000-Ada",)),
    Gpu("H100", 80, "Hopper", ("HOPPER_H100", "H100-MEGA", "H100 HBM3")),
    Gpu("H100_NVL", 94, "Hopper"),
    Gpu("H100_40GB", 40, "Hopper", ("H100MIG",)),
    Gpu("H200", 141, "Hopper", ("HOPPER_H200", "H200-NVL")),
    Gpu("GH200", 96, "Hopper"),
    Gpu("RTX5070TI", 16, "Blackwell", ("5070 Ti",)),
    Gpu("RTX5080", 16, "Blackwell", ("5080",)),
    Gpu("RTX5090", 32, "Blackwell", ("5090",)),
    Gpu("RTXPRO4500", 32, "Blackwell"),
    Gpu("RTXPRO5000", 48, "Blackwell"),
    Gpu(
        "RTXPRO6000", 96, "Blackwell",
        ("RTX PRO 6000 WS", "RTX PRO 6000 S", "RTX PRO 6000 Blackwell Server Edition", "RTXPRO6000-MaxQ",
         "RTX PRO 6000 Blackwell Workstation Edition"),
    ),
    Gpu("B200", 180, "Blackwell", ("BLACKWELL_B200",)),
    Gpu("GB200", 186, "Blackwell"),
    Gpu("B300", 270, "Blackwell", ("B300 PC",)),
    Gpu("GB300", 279, "Blackwell"),
    Gpu("MI210", 64, "CDNA 2", vendor="AMD"),
    Gpu("MI250X", 128, "CDNA 2", ("MI250",), vendor="AMD"),
    Gpu("MI300X", 192, "CDNA 3", vendor="AMD"),
    Gpu("MI325X", 256, "CDNA 3", vendor="AMD"),
    Gpu("MI355X", 288, "CDNA 4", vendor="AMD"),
    Gpu("GAUDI2", 96, "Gaudi 2", vendor="Intel"),
    Gpu("GAUDI3", 128, "Gaudi 3", ("HL-325",), vendor="Intel"),
)  # fmt: skip
"""By generation, then memory. "A100" alone means the 80 GB one, as at most serverless providers; Cerebrium's
"ADA_L40" is what it offers as L40S."""

NAMES: Final = frozenset(g.name for g in GPUS)

SPELLINGS: Final[dict[str, dict[str, str]]] = {
    "modal": {
        "T4": "T4", "L4": "L4", "A10": "A10", "A10G": "A10", "L40S": "L40S", "A100_40GB": "A100-40GB",
        "A100_80GB": "A100-80GB", "RTXPRO6000": "RTX-PRO-6000", "H100": "H100", "H200": "H200", "B200": "B200",
    },
    "baseten": {
        "T4": "T4", "L4": "L4", "A10G": "A10G", "V100": "V100", "A100_40GB": "A100_40GB", "A100_80GB": "A100",
        "L40S": "L40S", "H100_40GB": "H100_40GB", "H100": "H100", "H200": "H200", "B200": "B200",
        "RTXPRO6000": "RTX_PRO_6000",
    },
    "cerebrium": {
        "T4": "TURING_T4", "L4": "ADA_L4", "A10": "AMPERE_A10", "A10G": "AMPERE_A10", "L40S": "ADA_L40",
        "A100_40GB": "AMPERE_A100_40GB", "A100_80GB": "AMPERE_A100_80GB", "H100": "HOPPER_H100",
        "H200": "HOPPER_H200", "B200": "BLACKWELL_B200",
    },
    "cloudrun": {"L4": "nvidia-l4", "RTXPRO6000": "nvidia-rtx-pro-6000"},
    "azure": {"T4": "Consumption-GPU-NC8as-T4", "A100_80GB": "Consumption-GPU-NC24-A100"},
    "runpod": {
        "L4": "NVIDIA L4", "RTX3090": "NVIDIA GeForce RTX 3090", "RTX4090": "NVIDIA GeForce RTX 4090",
        "RTX5090": "NVIDIA GeForce RTX 5090", "RTXA4000": "NVIDIA RTX A4000", "RTXA5000": "NVIDIA RTX A5000",
        "RTXA6000": "NVIDIA RTX A6000", "RTX6000ADA": "NVIDIA RTX 6000 Ada Generation", "A40": "NVIDIA A40",
        "L40": "NVIDIA L40", "L40S": "NVIDIA L40S", "A100_80GB": "NVIDIA A100 80GB PCIe",
        "H100": "NVIDIA H100 80GB HBM3", "H100_NVL": "NVIDIA H100 NVL", "H200": "NVIDIA H200",
        "B200": "NVIDIA B200",
    },
    "skypilot": {
        "K80": "K80", "P100": "P100", "T4": "T4", "L4": "L4", "A10": "A10", "A10G": "A10G", "RTX3090": "RTX3090",
        "RTX4090": "RTX4090", "RTX5090": "RTX5090", "L40": "L40", "L40S": "L40S", "A40": "A40", "V100": "V100",
        "V100_32GB": "V100-32GB", "RTXA4000": "RTXA4000", "RTXA5000": "RTXA5000", "RTXA6000": "RTXA6000",
        "RTX6000ADA": "RTX6000-Ada", "RTXPRO6000": "RTXPRO6000", "A100_40GB": "A100", "A100_80GB": "A100-80GB",
        "H100": "H100", "H200": "H200", "GH200": "GH200", "B200": "B200", "GB200": "GB200", "B300": "B300",
        "MI300X": "MI300X",
    },
    "vast": {
        "T4": "Tesla T4", "V100": "Tesla V100", "RTX3090": "RTX 3090", "RTX4090": "RTX 4090",
        "RTX5090": "RTX 5090", "RTXA4000": "RTX A4000", "RTXA5000": "RTX A5000", "RTXA6000": "RTX A6000",
        "RTX6000ADA": "RTX 6000Ada", "RTXPRO6000": "RTX PRO 6000 WS", "A10": "A10", "A40": "A40", "L4": "L4",
        "L40": "L40", "L40S": "L40S", "A100_40GB": "A100 PCIE", "A100_80GB": "A100 SXM4", "H100": "H100 SXM",
        "H100_NVL": "H100 NVL", "H200": "H200", "GH200": "GH200 SXM", "B200": "B200",
    },
    "tensordock": {
        "T4": "t4-pcie-16gb", "V100": "v100-sxm2-16gb", "L4": "l4-pcie-24gb", "L40": "l40-pcie-48gb",
        "L40S": "l40s-pcie-48gb", "RTX3090": "geforcertx3090-pcie-24gb", "RTX4090": "geforcertx4090-pcie-24gb",
        "RTX5090": "geforcertx5090-pcie-32gb", "RTXA4000": "rtxa4000-pcie-16gb", "RTXA5000": "rtxa5000-pcie-24gb",
        "RTXA6000": "rtxa6000-pcie-48gb", "RTX6000ADA": "rtx6000ada-pcie-48gb", "A100_80GB": "a100-pcie-80gb",
        "H100": "h100-sxm5-80gb", "H200": "h200-sxm5-141gb",
    },
}  # fmt: skip
"""Provider to our GPU to the provider's own spelling, as it is written in its API or catalog."""

_DECORATION: Final = re.compile(
    r"nvidia|geforce|tesla|quadro|amd|instinct|intel|pcie|sxm[2-6]?|hbm\d?e?|oam|lovelace|generation"
)
_MAKER: Final = re.compile(r"^(nvidia|geforce|tesla)(?=.)")
_MEMORY: Final = re.compile(r"(\d+)gi?b")
_SAME: Final = 0.07
"""Hosts report a GPU's memory a little off what its data sheet says."""


def find(name: str) -> Gpu:
    """The GPU of that name; case, blanks, dashes, vendor and form factor don't matter.

    Raises RequestError with the nearest known name.
    """
    gpu = identify(name)
    if gpu is None:
        raise RequestError(f"unknown GPU {name!r}", did_you_mean(name, [g.name for g in GPUS]))
    return gpu


def identify(name: str, vram_gb: float | None = None, provider: str | None = None) -> Gpu | None:
    """As `find`, without an error. vram_gb: what the provider says of its memory, where one name has two sizes.
    provider: whose word it is, where its words mean something else there."""
    if provider in SPELLINGS and vram_gb is None:
        ours = next((ours for ours, theirs in SPELLINGS[provider].items() if theirs == name), None)
        if ours is not None:
            return _BY_NAME[ours]
    words = re.findall(r"[a-z0-9]+", name.lower())
    bare = [_MAKER.sub("", w) for w in words if not _DECORATION.fullmatch(w) and not _MEMORY.fullmatch(w)]
    gpu = _BY_KEY.get("".join(words)) or _BY_KEY.get("".join(bare))
    told = vram_gb or next((float(found[1]) for w in words if (found := _MEMORY.fullmatch(w))), None)
    if gpu is None or told is None or _is_about(gpu, told):
        return gpu
    return next((g for g in GPUS if _family(g) == _family(gpu) and _is_about(g, told)), gpu)


def identify_whole(name: str, vram_gb: float | None, provider: str | None = None) -> Gpu | None:
    """As `identify`, but None where that is not its memory: a slice of one (a sixth of an A10, an eighth of an L4)
    and a rebuilt card (an RTX 4090 with 48 GB) are not sold at its price."""
    gpu = identify(name, vram_gb, provider)
    return gpu if gpu is None or vram_gb is None or _is_about(gpu, vram_gb) else None


def spelling(gpu: str, provider: str) -> str | None:
    """What the provider calls our GPU; None where it is not known to have it."""
    return SPELLINGS[provider].get(gpu)


def _is_about(gpu: Gpu, vram_gb: float) -> bool:
    return abs(vram_gb - gpu.vram_gb) <= gpu.vram_gb * _SAME


def _family(gpu: Gpu) -> str:
    return gpu.name.partition("_")[0]


def _by_key() -> dict[str, Gpu]:
    """A canonical name means itself whoever else uses it; then aliases; then providers, where two of ours are one
    of theirs."""
    known: dict[str, Gpu] = {}
    for names in (
        [(g.name, g) for g in GPUS],
        [(alias, g) for g in GPUS for alias in g.aliases],
        [(names[g.name], g) for names in SPELLINGS.values() for g in GPUS if g.name in names],
    ):
        for name, gpu in names:
            known.setdefault(re.sub(r"[^a-z0-9]+", "", name.lower()), gpu)
    return known


_BY_KEY: Final = _by_key()
_BY_NAME: Final = {g.name: g for g in GPUS}
