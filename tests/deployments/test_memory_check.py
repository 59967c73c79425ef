"""A plan whose GPUs can't hold its model is refused before anything is created, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.catalog.models.configs import SMALL
from tests.deployments.providers import Priced
from tuna_nb.deployments.memory_check import check
from tuna_nb.deployments.plan import plan
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError

Make = Callable[..., DeployRequest]
BIG = "Qwen/Qwen3-32B"


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


async def test_a_model_that_is_too_large_is_refused_in_the_plan_with_what_would_fit(
    workspace: Workspace, request_of: Make, market: Callable[..., None]
) -> None:
    market(Priced("real", 1.0))
    asked = request_of("a", model=BIG, serverless_provider="real", serverless_only=True, options={})
    with pytest.raises(RequestError, match="Qwen/Qwen3-32B does not fit 1x L4") as refused:
        await plan(workspace, asked, "0123456789")
    assert "--tp-size 4 --gpu-count 4" in str(refused.value.hint)
    fits = request_of(
        "a", model=BIG, gpu_count=4, tp_size=4, serverless_provider="real", serverless_only=True, options={}
    )
    assert (await plan(workspace, fits, "0123456789")).serverless.request.gpu_count == 4


async def test_where_gpus_are_only_pretended_any_model_may_be(workspace: Workspace, request_of: Make) -> None:
    made = await plan(workspace, request_of("a", model=BIG), "0123456789")
    assert made.serverless_provider == "local"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "someone/unknown-70b"},
        {"engine_cmd": "llama-server --model {model} --port {port}"},
        {"quantization": "something-new"},
        {"engine_args": "--cpu-offload-gb 64"},
        {"engine_args": "--pipeline-parallel-size=4"},
        {"engine_args": "--hf-overrides '{}'"},
        {"engine_args": "--kv-cache-dtype turboquant_4bit"},
    ],
)
async def test_what_is_not_understood_here_passes(request_of: Make, change: dict[str, str]) -> None:
    assert await check(request_of("a", model=BIG)) is not None
    assert await check(request_of("a", **({"model": BIG} | change))) is None


async def test_flags_that_change_the_memory_are_heeded(request_of: Make) -> None:
    """Qwen3 8B on an L4 with its whole context: 15.3 GiB of weights, and 5.6 GiB for one request."""
    whole = {"model": "Qwen/Qwen3-8B", "max_model_len": 40_960}
    assert await check(request_of("a", **whole)) is not None
    assert await check(request_of("a", **whole, engine_args="--kv-cache-dtype fp8")) is None
    assert await check(request_of("a", **whole, quantization="fp8")) is None
    assert await check(request_of("a", **whole, gpu="L40S")) is None
    assert await check(request_of("a", **whole, gpu="L40S", engine_args="--gpu-memory-utilization 0.4")) is not None
    assert await check(request_of("a", **whole, gpu="L40S", engine_args="--gpu_memory_utilization=0.4")) is not None


async def test_a_context_that_the_model_does_not_take_is_refused(request_of: Make) -> None:
    refused = await check(request_of("a", model="Qwen/Qwen3-0.6B", max_model_len=100_000))
    assert refused is not None
    assert "40,960 tokens at most" in refused.message


async def test_a_local_folder_counts_with_its_own_weights(
    request_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    layers = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    (folder / "config.json").write_text(json.dumps(SMALL | layers | {"num_key_value_heads": 8}))
    refused = await check(request_of("a", model="mine", max_model_len=1024))
    assert refused is not None
    assert "mine does not fit 1x L4" in refused.message
