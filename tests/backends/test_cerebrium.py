"""Cerebrium: our HTTP client against its REST API v2, over loopback."""

from __future__ import annotations

import asyncio
import io
import json
import time
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.backends.cloud_contract import SECRET, CloudCase, CloudContract
from tests.fakes.cerebrium import BARE, KEY, PAGE, PROJECT, FakeCerebrium, key
from tests.fakes.faults import Fault
from tuna_nb.backends.base import Engine, Kind, ServerlessScaling, ServiceRequest, State
from tuna_nb.backends.cerebrium import app
from tuna_nb.backends.cerebrium.backend import KEYS, CerebriumBackend
from tuna_nb.backends.cerebrium.key import ends_at, project_of
from tuna_nb.errors import BackendError, CredentialsError, RequestError

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-serverless",
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=ServerlessScaling(scaledown_window=60),
)
PACE = 0.01


class WrongKey(CerebriumBackend):
    """As with a key that was revoked."""

    def _key(self) -> str:
        return key(project_id=PROJECT, jti="revoked")


@pytest.fixture
def cloud() -> Iterator[FakeCerebrium]:
    with FakeCerebrium() as running:
        yield running


@pytest.fixture
def case(cloud: FakeCerebrium, monkeypatch: pytest.MonkeyPatch) -> CloudCase:
    for name in (*KEYS, "CEREBRIUM_PROJECT_ID", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.setenv(KEYS[0], KEY)
    return CloudCase(
        CerebriumBackend(cloud.url, cloud.url, pace=PACE),
        REQUEST,
        cloud=cloud,
        fresh=lambda: CerebriumBackend(cloud.url, cloud.url, pace=PACE),
        hasty=lambda: CerebriumBackend(cloud.url, cloud.url, timeout_s=0.5, pace=PACE),
        refused=lambda: WrongKey(cloud.url, cloud.url, pace=PACE),
        create=f"POST /v2/projects/{PROJECT}/apps",
        listing=f"GET /v2/projects/{PROJECT}/apps",
        names=lambda: cloud.names,
        sent=lambda: json.dumps(cloud.bodies),
    )


class TestCerebrium(CloudContract):
    """Cerebrium keeps the contract."""


# What is sent


def test_the_zip_is_the_engines_image_with_our_command_and_the_same_settings() -> None:
    engine = Engine("Qwen/Qwen3-0.6B", image="example/vllm:nightly", args=("--served-model-name", 'a "b" é'))
    request = replace(REQUEST, engine=engine, gpu="L40S", gpu_count=2, public=True)
    with zipfile.ZipFile(io.BytesIO(app.bundle(request))) as packed:
        files = {name: packed.read(name).decode() for name in packed.namelist()}
    lines = files["Dockerfile"].splitlines()
    assert lines[0] == "FROM example/vllm:nightly"
    assert "ENTRYPOINT []" in lines
    body = app.body(request)
    assert json.loads(lines[-1].removeprefix("CMD ")) == body["entrypoint"]
    told = tomllib.loads(files["cerebrium.toml"])["cerebrium"]
    assert told["hardware"] == {
        "provider": "aws",
        "region": "us-east-1",
        "compute": "ADA_L40",
        "gpu_count": 2,
        "cpu": 16.0,
        "memory": 96.0,
    }
    assert told["deployment"]["disable_auth"] is True
    assert told["runtime"]["custom"]["entrypoint"] == body["entrypoint"]


async def test_the_price_has_a_line_for_cores_and_memory(case: CloudCase) -> None:
    plan = await case.backend.plan(replace(REQUEST, options={"cpu": "10", "memory_gb": "20"}))
    assert plan.price_per_hour_usd == pytest.approx(0.80 + 10 * 0.02358 + 20 * 0.007992)
    unknown = await case.backend.plan(replace(REQUEST, gpu="H200"))
    assert unknown.price_per_hour_usd is None
    assert unknown.worst_case_usd_per_hour is None


async def test_settings_that_cerebrium_refuses_are_refused_in_the_plan(case: CloudCase) -> None:
    changes: list[dict[str, Any]] = [
        {"scaling": ServerlessScaling(scaledown_window=4000)},
        {"scaling": ServerlessScaling(timeout=4000)},
        {"options": {"cpu": "60"}},
        {"options": {"memory_gb": "lots"}},
        {"options": {"init_timeout": "900"}},
        {"gpu": "RTX4090"},
        {"gpu_count": 9},
    ]
    for change in changes:
        with pytest.raises(RequestError):
            await case.backend.plan(replace(REQUEST, **change))
    endpoint = await case.deploy()
    with pytest.raises(RequestError):
        await case.backend.scale(endpoint.ref, ServerlessScaling(scaledown_window=0.5))


# Keys


def test_a_key_names_its_project_in_any_of_its_claims() -> None:
    assert project_of(key(project_id="p-1", sub="p-2")) == "p-1"
    assert project_of(key(sub="p-2", project="p-3")) == "p-2"
    assert project_of(key(sub="someone", custom={"projectId": "dev-p-4"})) == "dev-p-4"
    assert project_of(key(sub="someone")) is None
    for nonsense in ("", "a.b", "a.!!!.c", "a.W10.c"):
        assert project_of(nonsense) is None
        assert ends_at(nonsense) is None


@pytest.mark.parametrize("name", KEYS)
async def test_both_spellings_of_the_keys_variable_count(
    case: CloudCase, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(KEYS[0])
    assert not case.backend.configured()
    [row] = await case.backend.check(REQUEST)
    assert row.fix
    assert KEYS[0] in row.fix
    monkeypatch.setenv(name, KEY)
    assert case.backend.configured()
    assert await case.backend.list_owned() == []


async def test_a_key_without_a_project_opens_the_only_one(
    case: CloudCase, cloud: FakeCerebrium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS[0], BARE)
    endpoint = await case.deploy()
    assert endpoint.ref.id == f"{PROJECT}-{REQUEST.name}"
    cloud.projects.append({"id": "p-other", "name": "others"})
    error = await case.raises(CredentialsError, case.backend.list_owned())
    assert "p-other" in error.message
    monkeypatch.setenv("CEREBRIUM_PROJECT_ID", PROJECT)
    assert len(await case.backend.list_owned()) == 1


async def test_an_expired_key_is_told_and_never_sent(
    case: CloudCase, cloud: FakeCerebrium, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await case.deploy()
    assert (await case.backend.auth(endpoint.ref)).expires_at is None
    end = int(time.time()) + 3600
    assert ends_at(key(project_id=PROJECT, exp=end)) == end
    calls = len(cloud.faults.calls)
    monkeypatch.setenv(KEYS[0], key(project_id=PROJECT, exp=int(time.time()) - 5))
    [row] = await case.backend.check(REQUEST)
    assert not row.passed
    assert "ended" in row.message
    assert len(cloud.faults.calls) == calls


# A life


async def test_a_failed_build_is_told_in_its_own_words(cloud: FakeCerebrium, case: CloudCase) -> None:
    cloud.tries = True
    case.request = replace(REQUEST, engine=Engine("Qwen/Qwen3-0.6B", args=("--disable-log-requests",)))
    error = await case.raises(BackendError, case.deploy())
    assert "init_failure" in error.message
    assert "the container did not get ready" in error.message
    assert "--disable-log-requests" in error.message
    status = await case.backend.status(case.ref)
    assert status.state is State.FAILED
    assert "init_failure" in status.detail

    async def ended() -> bool:
        return not (await case.backend.status(case.ref)).billing

    await case.until(ended, "the container that it tried is gone, and bills no more")
    # The same name again is another build of the same app.
    case.request = REQUEST
    endpoint = await case.deploy()
    await case.until_state(endpoint.ref, State.READY, State.IDLE)
    assert cloud.names.count(REQUEST.name) == 1


async def test_a_build_bills_from_its_upload_on(case: CloudCase, cloud: FakeCerebrium) -> None:
    cloud.build_s = 1000
    said: list[str] = []
    deploying = asyncio.create_task(
        case.backend.deploy(await case.backend.plan(REQUEST), lambda text, _: said.append(text))
    )

    async def builds() -> bool:
        return any(text.endswith(": building") for text in said)

    await case.until(builds, "it is said that it builds")
    status = await case.backend.status(case.ref)
    assert (status.state, status.billing, status.detail) == (State.STARTING, True, "the build is building")
    deploying.cancel()
    await asyncio.gather(deploying, return_exceptions=True)
    cloud.apps[f"{PROJECT}-{REQUEST.name}"].build_status = "pending"
    assert not (await case.backend.status(case.ref)).billing


async def test_an_address_that_is_not_known_yet_is_waited_for_without_waking_anything(
    case: CloudCase, cloud: FakeCerebrium
) -> None:
    cloud.hidden = 3
    endpoint = await case.deploy()
    assert cloud.early == 3
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{endpoint.url}/health")).status_code == 401
    assert (await case.backend.status(endpoint.ref)).state is State.IDLE
    # Another process, which knows it by name alone, makes the same address of it.
    again = case.fresh()
    assert await again.deploy(await again.plan(REQUEST), lambda *_: None) == endpoint


async def test_a_public_app_asks_for_no_key(case: CloudCase) -> None:
    case.request = replace(REQUEST, public=True)
    endpoint = await case.deploy()
    async with httpx.AsyncClient(timeout=20) as http:
        assert (await http.get(f"{endpoint.url}/health")).status_code == 200


async def test_a_container_that_goes_is_stopping_and_bills_until_it_is_gone(
    case: CloudCase, cloud: FakeCerebrium
) -> None:
    cloud.leaving_s = 1000
    endpoint = await case.deploy()
    await case.backend.wake(endpoint.ref)
    await case.until_state(endpoint.ref, State.READY)
    await case.backend.scale(endpoint.ref, ServerlessScaling(scaledown_window=1))
    assert (await case.until_state(endpoint.ref, State.STOPPING)).billing
    cloud.leaving_s = 0
    status = await case.until_state(endpoint.ref, State.IDLE)
    assert (status.billing, status.replicas) == (False, ())


async def test_a_container_without_a_gpu_waits_and_costs_nothing(case: CloudCase, cloud: FakeCerebrium) -> None:
    cloud.free_gpus = False
    endpoint = await case.deploy()
    await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=1))
    assert not (await case.until_state(endpoint.ref, State.WAITING)).billing
    cloud.free_gpus = True
    await case.until_state(endpoint.ref, State.READY)


async def test_a_crash_looping_container_has_failed_and_still_bills(case: CloudCase) -> None:
    case.request = replace(REQUEST, engine=Engine("Qwen/Qwen3-0.6B", args=("--disable-log-requests",)))
    endpoint = await case.deploy()
    await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=1))
    status = await case.until_state(endpoint.ref, State.FAILED)
    assert status.billing
    assert "billing" in status.detail


async def test_an_upload_is_tried_again_and_gets_no_key(case: CloudCase, cloud: FakeCerebrium) -> None:
    cloud.faults.order(Fault(503), "PUT /bucket", times=2)
    await case.deploy()
    assert sum(call.startswith("PUT /bucket") for call in cloud.faults.calls) == 3
    await case.backend.destroy(case.ref)
    cloud.faults.order(Fault(403, message="no"), "PUT /bucket")
    error = await case.raises(BackendError, case.deploy())
    assert "Signature" not in repr(error.lines())


async def test_the_token_is_a_secret_of_the_app_and_there_before_anything_runs(
    case: CloudCase, cloud: FakeCerebrium, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.request = replace(REQUEST, engine=replace(REQUEST.engine, gated=True))
    rows = {row.name: row for row in await case.backend.check(case.request)}
    assert not rows["model"].passed
    await case.raises(CredentialsError, case.deploy())
    assert REQUEST.name not in cloud.names
    cloud.secrets["HF_TOKEN"] = "hf_the-projects"
    rows = {row.name: row for row in await case.backend.check(case.request)}
    assert rows["model"].passed
    assert "hf_the-projects" not in repr(rows)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    await case.deploy()
    made = cloud.apps[f"{PROJECT}-{REQUEST.name}"]
    assert made.secrets == {"HF_TOKEN": SECRET}
    assert made.service is not None
    assert made.service.env["HF_TOKEN"] == SECRET


async def test_a_followed_log_has_every_line_once(case: CloudCase) -> None:
    endpoint = await case.deploy()
    await case.backend.wake(endpoint.ref)
    await case.until_state(endpoint.ref, State.READY)
    whole = [line async for line in case.backend.logs(endpoint.ref)]
    assert len(whole) > PAGE
    told = []
    async with asyncio.timeout(10):
        async for line in case.backend.logs(endpoint.ref, follow=True):
            told.append(line)
            if len(told) == len(whole):
                await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=2, workers_max=2))
            if len(told) > len(whole) and line.source != whole[0].source:
                break
    assert told[: len(whole)] == whole
    assert len(set(told)) == len(told)
    middle = whole[len(whole) // 2].at
    later = [x for x in told if x.at >= middle]
    assert [x async for x in case.backend.logs(endpoint.ref, since=middle)][: len(later)] == later
