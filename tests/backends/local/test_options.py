"""What can be asked of the local cloud, and what is refused before anything starts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backends.local.clouds import serverless, spot
from tuna_nb.backends.base import Engine, Kind, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.local import options, prices
from tuna_nb.backends.local import spec as specs
from tuna_nb.backends.local.backend import LocalBackend, default_folder
from tuna_nb.errors import RequestError


@pytest.fixture
def backend(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path / "never-made")


def with_command(command: str) -> ServiceRequest:
    return replace(serverless("x"), engine=Engine("my model", command=command))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"boot": "1"}, "did you mean 'boot_s'"),
        ({"zzz": "1"}, "known: "),
        ({"boot_s": "soon"}, "not a number"),
        ({"boot_s": "-1"}, "negative"),
        ({"boot_s": "nan"}, "finite"),
        ({"cold_start_s": "inf"}, "finite"),
        ({"seed": "1.5"}, "whole number"),
        ({"max_num_seqs": "0"}, "above 0"),
        ({"decode_tokens_per_s": "0"}, "above 0"),
        ({"engine_args": "--x 'open"}, "split"),
        ({"engine_env": "NOVALUE"}, "NAME=VALUE"),
        ({"listen": "localhost"}, "no IPv4 address"),
        ({"listen": "0.0.0.0"}, "no address of this machine"),
        ({"listen": "192.0.2.1"}, "no address of this machine"),
    ],
)
async def test_a_bad_option_is_refused_in_words(backend: LocalBackend, given: dict[str, str], told: str) -> None:
    with pytest.raises(RequestError) as refused:
        await backend.plan(replace(serverless("x"), options=given))
    assert told in "\n".join(refused.value.lines())


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (replace(serverless("x"), gpu="L44"), "did you mean 'L4'|did you mean 'L40'"),
        (replace(serverless("x"), gpu_count=0), "gpu count"),
        (replace(serverless("x"), name="a/b"), "no name"),
        (replace(serverless("x"), name="../up"), "no name"),
        (replace(serverless("x"), name=""), "no name"),
        (replace(serverless("x"), scaling=SpotScaling()), "does not fit"),
        (serverless("x", workers_min=2, workers_max=1), "workers_max"),
        (serverless("x", concurrency=0), "concurrency"),
        (serverless("x", timeout=0), "timeout"),
        (spot("x", min_replicas=3, max_replicas=1), "max_replicas"),
        (spot("x", target_qps=0), "target_qps"),
        (spot("x", downscale_delay=-1), "downscale_delay"),
        (with_command("serve {modle}"), "did you mean 'model'"),
        (with_command("serve {port:d}"), "placeholder"),
        (with_command("serve {"), "brace"),
        (with_command("serve 'open"), "quotes"),
        (with_command("  "), "empty"),
    ],
)
async def test_a_request_that_can_not_be_met_is_refused(
    backend: LocalBackend, request_: ServiceRequest, told: str
) -> None:
    import re

    with pytest.raises(RequestError) as refused:
        await backend.plan(request_)
    assert re.search(told, "\n".join(refused.value.lines()))


def test_placeholders_are_filled_after_splitting_so_that_a_model_is_one_argument() -> None:
    spec = specs.from_request(with_command("serve '{model}' --at {host}:{port} {{literal}}"))
    assert spec.argv("127.0.0.1", 7) == ["serve", "my model", "--at", "127.0.0.1:7", "{literal}"]
    spec = specs.from_request(replace(with_command("serve {model}"), options={"engine_args": "--a 'b c'"}))
    assert spec.argv("127.0.0.1", 7) == ["serve", "my model", "--a", "b c"]


def test_the_stand_in_gets_its_figures() -> None:
    given = {"decode_tokens_per_s": "30", "max_num_seqs": "4", "engine_args": "--startup-delay 1"}
    request = replace(serverless("x"), engine=Engine("m", max_model_len=512), options=given)
    argv = specs.from_request(request).argv("127.0.0.1", 7)
    assert argv[:3] == [sys.executable, "-m", "tuna_nb.backends.local.engine"]
    told = " ".join(argv[3:])
    assert "--model m --host 127.0.0.1 --port 7 --max-model-len 512" in told
    assert "--decode-tokens-per-s 30.0 --max-num-seqs 4 --startup-delay 1" in told
    assert "--prefill" not in told


def test_a_specification_survives_the_wire() -> None:
    given = {"seed": "4", "engine_args": "a b", "engine_env": "X=1 Y='2 3'"}
    for request in (replace(serverless("x"), options=given, region="here"), replace(spot("y"), options=given)):
        spec = specs.from_request(request, cwd="/tmp", path="/bin")
        assert specs.from_json(specs.to_json(spec)) == spec
        assert specs.from_json(specs.to_json(spec)).cwd == "/tmp"


def test_where_the_user_stands_is_no_part_of_what_is_deployed() -> None:
    assert specs.from_request(spot("x"), cwd="/a") == specs.from_request(spot("x"), cwd="/b")


def test_every_option_has_help_and_a_figure() -> None:
    from dataclasses import fields

    assert set(options.OPTIONS) == {f.name for f in fields(options.Figures)}


async def test_the_worst_case_is_every_replica_with_all_its_gpus(backend: LocalBackend) -> None:
    plan = await backend.plan(replace(spot("x", max_replicas=4), gpu="H100", gpu_count=2))
    each = 2 * prices.price_per_hour_usd("H100", Kind.SPOT)
    assert plan.price_per_hour_usd == each
    assert plan.worst_case_usd_per_hour == 4 * each
    given = {"serverless_price_per_hour_usd": "3.6", "spot_price_per_hour_usd": "99"}
    plan = await backend.plan(replace(serverless("x", workers_max=2), options=given))
    assert plan.worst_case_usd_per_hour == 7.2
    assert not backend.folder.exists(), "planning creates nothing"


async def test_serverless_costs_three_to_five_times_spot(backend: LocalBackend) -> None:
    by_gpu: dict[str, dict[Kind, float]] = {}
    for offer in await backend.prices():
        assert "illustrative" in offer.source
        by_gpu.setdefault(offer.gpu, {})[offer.kind] = offer.price_per_hour_usd
    for gpu, both in by_gpu.items():
        assert 3 <= both[Kind.SERVERLESS] / both[Kind.SPOT] <= 5, gpu


async def test_checks_are_rows_with_a_way_out(backend: LocalBackend) -> None:
    good = await backend.check(serverless("x"))
    assert [c.name for c in good if not c.passed] == []
    bad = {c.name: c for c in await backend.check(replace(with_command("vllm-nowhere {model}"), gpu="Z9"))}
    assert not bad["engine"].passed
    assert "vllm-nowhere" in (bad["engine"].fix or "")
    assert not bad["gpu"].passed
    assert not backend.folder.exists()


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNA_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("TUNA_LOCAL_FOLDER", raising=False)
    assert default_folder() == tmp_path / "local-cloud"
    monkeypatch.setenv("TUNA_LOCAL_FOLDER", str(tmp_path / "own"))
    assert LocalBackend().folder == tmp_path / "own"


def test_importing_the_backend_is_light() -> None:
    heavy = ("httpx", "uvicorn", "httptools", "psutil", "sqlite3", "asyncio.subprocess", "platformdirs")
    code = (
        "import sys, tuna_nb.backends.registry, tuna_nb.backends.local.backend\n"
        f"print([m for m in {heavy!r} if m in sys.modules and m != 'asyncio.subprocess'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_scaling_of_the_wrong_kind_is_refused(backend: LocalBackend) -> None:
    from tuna_nb.backends.base import Ref

    with pytest.raises(RequestError, match="does not fit"):
        await backend.scale(Ref("local", Kind.SPOT, "x"), ServerlessScaling())


def test_every_gpu_that_a_provider_sells_by_the_second_has_a_price_here() -> None:
    from tuna_nb.catalog import snapshot
    from tuna_nb.catalog.offers import OfferKind

    assert {o.gpu for o in snapshot.offers() if o.kind is OfferKind.SERVERLESS} <= set(prices.PRICES)
