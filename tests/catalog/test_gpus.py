"""GPU names: one canonical name for every spelling, and every provider's spelling for the canonical name."""

from __future__ import annotations

import pytest

from tuna_nb.catalog.gpus import GPUS, SPELLINGS, find, identify, spelling
from tuna_nb.errors import RequestError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("L4", "L4"), ("l40s", "L40S"), ("A100", "A100_80GB"), ("a100-80gb", "A100_80GB"), ("A100 40GB", "A100_40GB"),
     ("RTX_4090", "RTX4090"), ("4090", "RTX4090"), ("Tesla T4", "T4"), ("h100", "H100"), ("H100NVL", "H100_NVL"),
     ("NVIDIA A100-SXM4-80GB", "A100_80GB"), ("NVIDIA A100 80GB PCIe", "A100_80GB"), ("H100 SXM", "H100"),
     ("NVIDIA H100 80GB HBM3", "H100"), ("geforcertx4090-pcie-24gb", "RTX4090"), ("h100-sxm5-80gb", "H100"),
     ("RTX 6000Ada", "RTX6000ADA"), ("RTX6000-Ada", "RTX6000ADA"), ("Quadro RTX 6000", "RTX6000"),
     ("NVIDIA RTX 4000 Ada Generation", "RTX4000ADA"), ("NVIDIA GeForce RTX 3080 Ti", "RTX3080TI"),
     ("v100-sxm2-32gb", "V100_32GB"), ("H100MIG", "H100_40GB"), ("AMPERE_A10", "A10"), ("nvidia-l4", "L4"),
     ("RTX PRO 6000 S", "RTXPRO6000"), ("AMD Instinct MI300X OAM", "MI300X"), ("A6000", "RTXA6000")],
)  # fmt: skip
def test_spellings_find_the_canonical_name(spelling: str, name: str) -> None:
    assert find(spelling).name == name


def test_a_canonical_name_means_itself_and_so_does_every_alias() -> None:
    for gpu in GPUS:
        assert find(gpu.name) is gpu
        assert all(find(alias) is gpu for alias in gpu.aliases)
    assert len({g.name for g in GPUS}) == len(GPUS)


@pytest.mark.parametrize("provider", SPELLINGS)
def test_every_provider_s_spelling_leads_back_to_our_name(provider: str) -> None:
    for ours, theirs in SPELLINGS[provider].items():
        assert spelling(ours, provider) == theirs
        found = identify(theirs, provider=provider)
        assert found is not None
        # Modal and Cerebrium sell A10 and A10G under one name.
        assert spelling(found.name, provider) == theirs
    assert spelling("K80", "modal") is None


def test_there_are_spellings_enough() -> None:
    assert len({(p, theirs) for p, names in SPELLINGS.items() for theirs in names.values()}) >= 60


def test_where_one_name_has_two_sizes_memory_decides() -> None:
    def name(told: str, vram_gb: float, provider: str | None = None) -> str | None:
        gpu = identify(told, vram_gb, provider)
        return gpu and gpu.name

    assert name("A100 PCIE", 40) == "A100_40GB"
    assert name("A100 PCIE", 79.3) == "A100_80GB", "hosts report a little off"
    assert name("A100", 40, "vast") == "A100_40GB"
    assert name("V100", 32) == "V100_32GB"
    assert name("H100", 94) == "H100_NVL"


def test_what_one_name_means_depends_on_who_says_it() -> None:
    skypilot, modal = identify("A100", provider="skypilot"), identify("A100")
    assert skypilot is not None
    assert modal is not None
    assert (skypilot.name, modal.name) == ("A100_40GB", "A100_80GB")


def test_an_unknown_gpu_is_an_error_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="unknown GPU 'L40X'") as e:
        find("L40X")
    assert "L40" in str(e.value.hint)
    assert identify("") is None
    assert identify("RX 7900") is None
