"""The engine is described once: the same command line and environment at every provider, and no secret in it."""

from __future__ import annotations

import pytest

from tests.fakes.platform import stand_in
from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import Engine
from tuna_nb.errors import RequestError


def test_the_whole_command_line() -> None:
    plain = Engine("Qwen/Qwen3-0.6B", fast_boot=False)
    assert engines.command(plain) == [
        "vllm", "serve", "Qwen/Qwen3-0.6B", "--served-model-name", "Qwen/Qwen3-0.6B", "--host", "0.0.0.0",
        "--port", "8000", "--max-model-len", "4096", "--tensor-parallel-size", "1",
    ]  # fmt: skip
    full = Engine(
        "m", max_model_len=100, tp_size=2, dtype="half", quantization="awq", args=("--seed", "7"), gated=True
    )
    assert engines.command(full, port=9)[8:] == [
        "9", "--max-model-len", "100", "--tensor-parallel-size", "2", "--dtype", "half", "--quantization", "awq",
        "--enforce-eager", "--seed", "7",
    ]  # fmt: skip
    assert "HF_TOKEN" not in engines.environment(full)


def test_a_command_of_ones_own_gets_its_blanks_filled_and_arguments_added() -> None:
    own = Engine("my model", command="serve {model} --at {host}:{port}", args=("-x",))
    assert engines.command(own) == ["serve", "my model", "--at", "0.0.0.0:8000", "-x"]
    assert engines.environment(own) == {}
    with pytest.raises(RequestError, match="unknown placeholder"):
        engines.command(Engine("m", command="serve {modl}"))


def test_the_image_is_pinned_and_can_be_another() -> None:
    assert engines.image(Engine("m")) == engines.IMAGE
    assert engines.IMAGE.rpartition(":")[2].startswith("v")
    assert engines.image(Engine("m", image="me/vllm:1")) == "me/vllm:1"


def test_the_stand_in_takes_what_vllm_takes_and_nothing_else() -> None:
    assert "--max-model-len" in stand_in(engines.command(Engine("m", dtype="half")))
    with pytest.raises(ValueError, match="vllm serve"):
        stand_in(["python", "-m", "something"])
