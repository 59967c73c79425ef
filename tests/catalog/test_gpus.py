"""GPU names: one canonical name for every spelling."""

from __future__ import annotations

import pytest

from tuna_nb.catalog.gpus import GPUS, find
from tuna_nb.errors import RequestError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("L4", "L4"), ("l40s", "L40S"), ("A100", "A100_80GB"), ("a100-80gb", "A100_80GB"), ("A100 40GB", "A100_40GB"),
     ("RTX_4090", "RTX4090"), ("4090", "RTX4090"), ("Tesla T4", "T4"), ("h100", "H100")],
)  # fmt: skip
def test_spellings_find_the_canonical_name(spelling: str, name: str) -> None:
    assert find(spelling).name == name


def test_no_two_gpus_share_a_spelling() -> None:
    spellings = [n.replace("-", "").replace("_", "").lower() for g in GPUS for n in {g.name, *g.aliases}]
    assert all(find(s) for s in spellings)
    for gpu in GPUS:
        assert find(gpu.name) is gpu
        assert all(find(a) is gpu for a in gpu.aliases)


def test_an_unknown_gpu_is_an_error_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="unknown GPU 'L40X'") as e:
        find("L40X")
    assert "L40" in str(e.value.hint)
