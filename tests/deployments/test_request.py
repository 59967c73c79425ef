"""A request that can't be is refused before anything starts, with the reason and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.deployments.request import DeployRequest, check_name, new_name
from tuna_nb.errors import RequestError
from tuna_nb.store import jsonable

GOOD: dict[str, Any] = {"service_name": "a", "model": "Qwen/Qwen3-0.6B", "gpu": "L4"}


@pytest.mark.parametrize(
    "model", ["a b", "../x", "a/..", "a/b/c", "", "/x", "x/", "a\nb", "a;b", "--model", "a..b"]
)
def test_a_model_name_that_is_none_is_refused(model: str) -> None:
    with pytest.raises(RequestError, match="not a model name"):
        DeployRequest(**GOOD | {"model": model})


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "gpt2", "meta-llama/Llama-3.1-8B", "a_b/c.d"])
def test_a_hub_id_is_accepted(model: str) -> None:
    assert DeployRequest(**GOOD | {"model": model}).model == model


@pytest.mark.parametrize("name", ["A", "1a", "-a", "a-", "a--b", "a_b", "a b", "a/b", "", "x" * 41, "ä"])
def test_a_service_name_that_a_provider_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="not a service name"):
        check_name(name)


def test_a_made_up_name_is_a_good_one() -> None:
    assert check_name(new_name()) != new_name()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "L5"}, "unknown GPU"),
        ({"gpu_count": 0}, "--gpu-count is 0"),
        ({"gpu_count": -1}, "--gpu-count is -1"),
        ({"tp_size": 2}, "--tp-size 2 needs as many GPUs"),
        ({"max_model_len": 0}, "--max-model-len is 0"),
        ({"port": 0}, "--port is 0"),
        ({"port": 70000}, "--port is 70000"),
        ({"spot": SpotScaling(min_replicas=-1)}, "spot.min_replicas is -1"),
        ({"spot": SpotScaling(max_replicas=0)}, "spot.max_replicas is 0"),
        ({"spot": SpotScaling(min_replicas=6)}, "spot.min_replicas is 6, above"),
        ({"spot": SpotScaling(target_qps=0)}, "spot.target_qps is 0"),
        ({"spot": SpotScaling(upscale_delay=float("inf"))}, "spot.upscale_delay is inf"),
        ({"spot": SpotScaling(downscale_delay=float("nan"))}, "spot.downscale_delay is nan"),
        ({"serverless": ServerlessScaling(concurrency=0)}, "serverless.concurrency is 0"),
        ({"serverless": ServerlessScaling(workers_min=3)}, "serverless.workers_min is 3, above"),
    ],
)
def test_a_figure_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as e:
        DeployRequest(**GOOD | change)
    assert e.value.hint


def test_the_gpu_gets_its_canonical_name() -> None:
    assert DeployRequest(**GOOD | {"gpu": "a100"}).gpu == "A100_80GB"


def test_a_request_comes_back_from_the_store_unchanged() -> None:
    request = DeployRequest(**GOOD | {"spot": SpotScaling(max_replicas=3), "options": {"boot_s": "3"}})
    assert DeployRequest.from_json(jsonable(request.to_json())) == request
