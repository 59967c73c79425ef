"""Every flag's task, read and judged by the installed SkyPilot."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from tests.backends.skyserve.requests import REQUEST
from tuna_nb.backends.base import Engine, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.engine import IMAGE
from tuna_nb.backends.skyserve import placing
from tuna_nb.backends.skyserve.task import OPTIONS, config, rescaled, secret_names
from tuna_nb.errors import RequestError

pytestmark = pytest.mark.usefixtures("offline")
KEY = "tuna-key-never-to-be-seen"


def request(**change: Any) -> ServiceRequest:
    return replace(REQUEST, **change)


def with_engine(**change: Any) -> ServiceRequest:
    return request(engine=replace(REQUEST.engine, **change))


def read(asked: ServiceRequest) -> Any:
    """The task as SkyPilot reads it. Raises what SkyPilot raises."""
    import sky
    from sky.serve import serve_utils

    secrets = [(name, KEY) for name in secret_names(asked.engine)]
    task = placing.made(sky, asked, secrets)
    serve_utils.validate_service_task(task, pool=False)
    return task


def sent(asked: ServiceRequest) -> dict[str, Any]:
    told: dict[str, Any] = read(asked).to_yaml_config()
    return told


def resources(asked: ServiceRequest) -> list[Any]:
    return list(read(asked).resources)


ASKED = {
    "plain": request(),
    "region": request(region="us-east-1"),
    "zone": request(region="us-east-2/us-east-2b"),
    "regions": request(region="us-east-1,us-east-2"),
    "gcp": request(options={"cloud": "gcp"}),
    "gcp regions": request(options={"cloud": "gcp"}, region="us-central1,us-east4"),
    "azure": request(options={"cloud": "azure"}, gpu="T4"),
    "four GPUs": with_engine(tp_size=4),
    "own image": with_engine(image="ghcr.io/me/vllm:1"),
    "own command": with_engine(command="llama-server -m {model} --port {port}"),
    "own command, regions": request(engine=Engine("m", command="serve {model}"), region="us-east-1,us-east-2"),
    "own command in an image": with_engine(command="serve {model}", image="me/mine:2"),
    "gated": with_engine(gated=True),
    "quantized": with_engine(quantization="awq", dtype="half", fast_boot=False),
    "on-demand fallback": request(options={"ondemand_fallback": "on"}),
    "overprovision": request(options={"overprovision": "2"}),
    "disk": request(options={"disk_gb": "500"}),
    "health probe": request(options={"probe": "health", "start_s": "3600"}),
    "kept up": request(scaling=SpotScaling(min_replicas=1, max_replicas=1)),
    "wide": request(scaling=SpotScaling(2, 9, 0.5, 0, 0)),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
def test_skypilot_takes_the_task_of_every_flag(asked: ServiceRequest) -> None:
    task = read(asked)
    assert task.name == asked.name
    for found in task.resources:
        assert found.use_spot
        assert found.labels == {"tuna-deployment": asked.deployment_id}
        assert found.ports == ["8000", "8002"]
    assert not task.file_mounts
    assert task.workdir is None
    assert task.to_yaml_config()["file_mounts"] == {}, "SkyServe keeps replicas through an update only without"


def test_the_scaling_is_skyserves() -> None:
    policy = sent(request(scaling=SpotScaling(1, 7, 2.5, 40, 600)))["service"]["replica_policy"]
    assert policy == {
        "min_replicas": 1,
        "max_replicas": 7,
        "target_qps_per_replica": 2.5,
        "upscale_delay_seconds": 40,
        "downscale_delay_seconds": 600,
        "spot_placer": "dynamic_fallback",
    }
    now = sent(request(scaling=SpotScaling(0, 2, 1, 0, 0)))["service"]["replica_policy"]
    assert (now["min_replicas"], now["upscale_delay_seconds"], now["downscale_delay_seconds"]) == (0, 0, 0)


def test_ready_means_that_it_generates_with_its_key_and_has_half_an_hour_for_that() -> None:
    probe = sent(request())["service"]["readiness_probe"]
    assert probe["path"] == "/v1/completions"
    assert probe["post_data"] == {"model": "Qwen/Qwen3-0.6B", "prompt": "hi", "max_tokens": 1}
    assert probe["headers"] == {"Authorization": f"Bearer {KEY}"}
    assert probe["initial_delay_seconds"] == 1800
    plain = sent(request(options={"probe": "health"}))["service"]["readiness_probe"]
    assert (plain["path"], plain.get("post_data")) == ("/health", None)


def test_long_answers_are_not_cut_by_the_balancer() -> None:
    assert sent(request())["service"]["load_balancer"]["stream_timeout_seconds"] == 600


def test_several_regions_are_a_choice_and_one_is_none() -> None:
    places = {(str(r.region), str(r.zone)) for r in resources(request(region="us-east-1, us-east-2/us-east-2b"))}
    assert places == {("us-east-1", "None"), ("us-east-2", "us-east-2b")}
    [one] = resources(request(region="us-east-1"))
    assert one.region == "us-east-1"
    [anywhere] = resources(request())
    assert anywhere.region is None
    assert str(anywhere.cloud) == "AWS"


def test_skyserve_spreads_over_three_zones_or_more_where_skypilot_lets_it() -> None:
    """Its placer never leaves the first of two: there SkyPilot's own choice goes through all of them."""

    def placer(asked: ServiceRequest) -> Any:
        return sent(asked)["service"]["replica_policy"].get("spot_placer")

    own = Engine("m", command="serve {model}")
    assert placer(request()) == placer(ASKED["own command, regions"]) == "dynamic_fallback"
    assert placer(request(region="us-east-1")) is None
    assert placer(request(engine=own, region="us-east-1/us-east-1a,us-west-2/us-west-2a")) is None
    assert placer(request(region="us-east-1,us-east-2")) is None, "with an image it refuses several regions"


def test_fallback_to_on_demand_is_off_unless_asked_for() -> None:
    def fallback(asked: ServiceRequest) -> Any:
        return sent(asked)["service"]["replica_policy"].get("dynamic_ondemand_fallback")

    assert not fallback(request())
    assert fallback(request(options={"ondemand_fallback": "on"})) is True


def test_vllm_runs_in_its_image_and_a_command_of_ones_own_on_the_machine() -> None:
    def image(asked: ServiceRequest) -> Any:
        return resources(asked)[0].extract_docker_image()

    assert image(request()) == IMAGE
    assert image(ASKED["own command"]) is None
    assert image(ASKED["own command in an image"]) == "me/mine:2"


def test_no_secret_is_in_the_task_before_skypilot_gets_it_nor_in_any_command_line() -> None:
    asked = with_engine(gated=True)
    assert KEY not in repr(config(asked, "L4"))
    told = sent(asked)
    assert told["secrets"] == {"VLLM_API_KEY": KEY, "HF_TOKEN": KEY}
    assert KEY not in told["run"]
    assert KEY not in told["_user_specified_yaml"]
    assert "HF_TOKEN" not in sent(request())["secrets"]


def test_a_hostile_model_name_stays_one_word() -> None:
    run = config(with_engine(model="a/b; rm -rf /"), "L4")["run"]
    last = run.strip().splitlines()[-1]
    assert shlex.split(last)[:4] == ["exec", "vllm", "serve", "a/b; rm -rf /"]


def test_another_scaling_changes_the_service_and_nothing_else() -> None:
    import sky

    old = sent(request(options={"overprovision": "1"}))
    new = sky.Task.from_yaml_config(rescaled(old, SpotScaling(1, 5, 3, 20, 60))).to_yaml_config()
    for gone in (old, new):
        gone.pop("_user_specified_yaml")
    policy = new["service"]["replica_policy"]
    assert (policy["min_replicas"], policy["max_replicas"], policy["num_overprovision"]) == (1, 5, 1)
    assert {**new, "service": None} == {**old, "service": None}
    assert new["service"]["readiness_probe"] == old["service"]["readiness_probe"]


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"cloud": "oracle"}},
        {"options": {"disk_gb": "lots"}},
        {"options": {"disk_gb": "1"}},
        {"options": {"ondemand_fallback": "perhaps"}},
        {"options": {"probe": "port"}},
        {"options": {"nonsense": "1"}},
        {"options": {"start_s": "1"}},
        {"region": "us east 1"},
        {"region": "aws/us-east-1/a/b"},
        {"scaling": ServerlessScaling()},
        {"engine": Engine("m", command="serve {gpu}")},
    ],
    ids=str,
)
def test_what_can_never_work_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        config(request(**change), "L4")


def test_every_option_has_its_line_of_help() -> None:
    assert all(len(text) > 10 for text in OPTIONS.values())
