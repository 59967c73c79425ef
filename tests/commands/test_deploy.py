"""From flags and policy to a request: defaults, then file or cell, then flags."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from tuna_nb import grammar
from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.commands.deploy import read_request
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.errors import RequestError, UsageError

LEAST = ["deploy", "--model", "Qwen/Qwen3-0.6B", "--gpu", "l4"]


def options(*more: str) -> Namespace:
    return grammar.parse(grammar.build(), [*LEAST, *more])


def request(*more: str, cell: str | None = None) -> DeployRequest:
    return read_request(options(*more), cell)


def test_the_defaults() -> None:
    made = request()
    assert made.service_name.startswith("tuna-")
    assert (made.gpu, made.gpu_count, made.tp_size, made.max_model_len) == ("L4", 1, 1, 4096)
    assert (made.serverless, made.spot) == (ServerlessScaling(), SpotScaling())
    assert (made.public, made.serverless_only, made.port, made.engine_cmd) == (False, False, None, None)
    assert made.cold_start_mode == "fast_boot"
    assert made.options == {}


def test_every_flag_has_its_effect() -> None:
    made = request(
        "--gpu-count", "4", "--tp-size", "2", "--max-model-len", "8192", "--serverless-provider", "p",
        "--spots-cloud", "q", "--region", "r", "--cold-start-mode", "no_fast_boot", "--service-name", "n",
        "--public", "--port", "8080", "--engine-cmd", "x {port}", "--option", "a-b=c=d", "--gcp-project", "g",
        "--concurrency", "3", "--workers-max", "7",
    )  # fmt: skip
    assert (made.gpu_count, made.tp_size, made.max_model_len) == (4, 2, 8192)
    assert (made.serverless_provider, made.spots_cloud, made.region) == ("p", "q", "r")
    assert (made.service_name, made.public, made.port, made.engine_cmd) == ("n", True, 8080, "x {port}")
    assert made.options == {"a_b": "c=d", "gcp_project": "g"}
    assert (made.serverless.concurrency, made.serverless.workers_max) == (3, 7)
    assert not made.engine.fast_boot
    assert request("--serverless-only").serverless_only
    assert request("--use-different-vm-for-lb").router_host == "vm"


def test_flags_go_over_the_cell_and_the_cell_over_defaults() -> None:
    cell = "serverless:\n  concurrency: 8\n  workers_max: 2\nspot:\n  min_replicas: 0\n"
    made = request("--concurrency", "4", "--no-scale-to-zero", cell=cell)
    assert (made.serverless.concurrency, made.serverless.workers_max) == (4, 2)
    assert made.spot.min_replicas == 1
    assert made.serverless.scaledown_window == 300
    assert made.serverless.timeout == ServerlessScaling().timeout


def test_a_file_counts_its_lines_from_one_and_a_cell_from_its_magic(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("spott:\n")
    with pytest.raises(UsageError, match=r"p\.yaml line 1, column 1"):
        request("--scaling-policy", str(path))
    with pytest.raises(UsageError, match="cell line 2, column 1"):
        request(cell="spott:\n")


def test_a_policy_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the policy is given twice"):
        request("--scaling-policy", str(tmp_path / "p"), cell="")


@pytest.mark.parametrize("pair", ["x", "=x", ""])
def test_an_option_has_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(UsageError, match="has no value"):
        request("--option", pair)


def test_serverless_only_contradicts_a_spot_side() -> None:
    for flag in ("--spots-cloud", "--region"):
        with pytest.raises(RequestError, match="has no spot side"):
            request("--serverless-only", flag, "x")
