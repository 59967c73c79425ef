"""RunPod: our HTTP client against its REST API v2, over loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.backends.cloud_contract import CloudCase, CloudContract
from tests.fakes.runpod import CATALOG, KEY, FakeRunpod
from tuna_nb.backends.base import Engine, Kind, ServerlessScaling, ServiceRequest, State
from tuna_nb.backends.runpod import TYPES, RunpodBackend, endpoint_body, selection
from tuna_nb.errors import BackendError, RequestError

OPENAPI = Path(__file__).parents[2].parent / "shared" / "data" / "runpod_openapi_v2.json"

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-serverless",
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=ServerlessScaling(scaledown_window=60),
)


class WrongKey(RunpodBackend):
    """As with a key that was revoked."""

    def _key(self) -> str:
        return "rpa_revoked"


@pytest.fixture
def cloud() -> Iterator[FakeRunpod]:
    with FakeRunpod() as running:
        yield running


@pytest.fixture
def case(cloud: FakeRunpod, monkeypatch: pytest.MonkeyPatch) -> CloudCase:
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    return CloudCase(
        RunpodBackend(cloud.url, pace=0.05),
        REQUEST,
        cloud=cloud,
        fresh=lambda: RunpodBackend(cloud.url, pace=0.05),
        hasty=lambda: RunpodBackend(cloud.url, timeout_s=0.5, pace=0.05),
        refused=lambda: WrongKey(cloud.url, pace=0.05),
        create="POST /v2/serverless",
        listing="GET /v2/serverless",
        names=lambda: cloud.names,
        sent=lambda: json.dumps(cloud.bodies),
        books=lambda ref, at, usd: cloud.account.append((str(ref.id) if ref else "ep_foreign", at, float(usd))),
        account="GET /v2/billing/serverless",
        marked_up=1.1,
    )


class TestRunpod(CloudContract):
    """RunPod keeps the contract."""


async def test_its_account_is_by_the_hour_and_names_its_parts(case: CloudCase, cloud: FakeRunpod) -> None:
    endpoint = await case.deploy()
    cloud.account += [(str(endpoint.ref.id), 7200.0 + second, 0.5) for second in (0, 1799, 3599)]
    [charge] = await case.backend.charges(endpoint.ref, 7300, 7400)
    assert (charge.started_at, charge.ended_at, charge.usd) == (7200, 10_800, pytest.approx(1.65))
    assert charge.what == "gpu 1.5, disk 0.15"


async def test_an_account_with_records_missing_is_not_a_smaller_one(case: CloudCase, cloud: FakeRunpod) -> None:
    endpoint = await case.deploy()
    cloud.account += [(str(endpoint.ref.id), 3600.0 * hour, 0.5) for hour in range(3)]
    cloud.loses_records = True
    with pytest.raises(BackendError, match="2 of 3 records"):
        await case.backend.charges(endpoint.ref, 0, 86_400)


async def test_an_account_that_tells_of_others_too_costs_us_nothing_of_theirs(
    case: CloudCase, cloud: FakeRunpod
) -> None:
    endpoint = await case.deploy()
    cloud.account += [(str(endpoint.ref.id), 3600.0, 0.5), ("ep_foreign", 3600.0, 50)]
    cloud.ignores_filter = True
    [charge] = await case.backend.charges(endpoint.ref, 3600, 7200)
    assert charge.usd == pytest.approx(0.55)


async def test_a_destroyed_endpoint_without_its_id_is_not_free(case: CloudCase) -> None:
    with pytest.raises(BackendError, match="an id that is not known"):
        await case.backend.charges(case.ref, 0, 86_400)


def body(**change: Any) -> dict[str, Any]:
    return endpoint_body(replace(REQUEST, **change), CATALOG)


def test_what_is_sent_is_what_runpod_publishes() -> None:
    if not OPENAPI.exists():
        pytest.skip("RunPod's OpenAPI description is not beside the checkout")
    import jsonschema

    schemas = json.loads(OPENAPI.read_text())["components"]["schemas"]
    whole = {"$ref": "#/components/schemas/CreateEndpointRequest", "components": {"schemas": schemas}}
    validator = jsonschema.Draft202012Validator(whole)
    for request in (
        body(),
        body(gpu="A100_80GB", gpu_count=2, scaling=ServerlessScaling(workers_min=1, workers_max=3)),
        body(options={"data_centers": "US-KS-2, EU-RO-1", "network_volume": "vol_1", "flashboot": "off"}),
        body(engine=Engine("meta-llama/Llama-3.1-8B", gated=True)),
    ):
        validator.validate(request)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**body(), "workersMax": 3})


async def test_its_pretended_account_has_the_form_that_runpod_publishes(cloud: FakeRunpod) -> None:
    if not OPENAPI.exists():
        pytest.skip("RunPod's OpenAPI description is not beside the checkout")
    import httpx
    import jsonschema

    schemas = json.loads(OPENAPI.read_text())["components"]["schemas"]
    whole = {"$ref": "#/components/schemas/ListServerlessBillingResponse", "components": {"schemas": schemas}}
    cloud.account += [("ep_foreign", 3600.0, 0.5), ("ep_foreign", 7200.0, 0.25)]
    params = {"startTime": "1970-01-01T00:00:00Z", "endTime": "1970-01-02T00:00:00Z", "bucketSize": "hour"}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as http:
        told = (await http.get(f"{cloud.url}/v2/billing/serverless", params=params)).json()
    assert len(told["records"]) == 2
    jsonschema.Draft202012Validator(whole).validate(told)


def test_one_gpu_is_its_pool_less_all_other_cards() -> None:
    assert body()["gpu"] == {
        "pools": ["AMPERE_24"],
        "excludedTypes": ["NVIDIA GeForce RTX 3090", "NVIDIA RTX A5000"],
        "count": 1,
        "minCudaVersion": "12.9",
    }
    assert selection("A100_80GB", 2, CATALOG)["excludedTypes"] == []
    with pytest.raises(RequestError, match="no serverless pool has B200"):
        selection("B200", 1, CATALOG)
    assert all(name.startswith("NVIDIA ") for names in TYPES.values() for name in names)


def test_a_gated_models_token_is_a_reference_to_runpods_own_secret() -> None:
    env = body(engine=Engine("meta-llama/Llama-3.1-8B", gated=True), options={"hf_secret": "mine"})["env"]
    assert env["HF_TOKEN"] == "{{ RUNPOD_SECRET_mine }}"
    assert "HF_TOKEN" not in body()["env"]


async def test_throttled_workers_wait_and_cost_nothing(case: CloudCase, cloud: FakeRunpod) -> None:
    cloud.free_gpus = False
    endpoint = await case.deploy()
    await case.backend.wake(endpoint.ref)
    status = await case.until_state(endpoint.ref, State.WAITING)
    assert not status.billing
    assert "throttled" in status.detail
    cloud.free_gpus = True
    await case.until_state(endpoint.ref, State.READY)


async def test_a_crash_looping_engine_has_failed_and_still_bills(case: CloudCase) -> None:
    case.request = replace(case.request, engine=Engine("Qwen/Qwen3-0.6B", args=("--disable-log-requests",)))
    endpoint = await case.deploy()
    await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=1))
    status = await case.until_state(endpoint.ref, State.FAILED)
    assert status.billing
    assert "billing" in status.detail
    lines = [line.text async for line in case.backend.logs(endpoint.ref)]
    assert any("--disable-log-requests" in line for line in lines)


async def test_settings_that_runpod_refuses_are_refused_in_the_plan(case: CloudCase) -> None:
    changes: list[dict[str, Any]] = [
        {"scaling": ServerlessScaling(scaledown_window=4000)},
        {"options": {"disk_gb": "lots"}},
        {"options": {"min_cuda": "twelve"}},
        {"gpu": "T4"},
    ]
    for change in changes:
        with pytest.raises(RequestError):
            await case.backend.plan(replace(REQUEST, **change))
