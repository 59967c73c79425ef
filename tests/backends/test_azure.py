"""Azure Container Apps: Azure's own SDK against a pretend Resource Manager, over loopback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from azure.core.credentials import AccessTokenInfo
from azure.core.pipeline.policies import SansIOHTTPPolicy

from tests.backends.cloud_contract import SECRET, CloudCase, CloudContract
from tests.fakes.azure import GPU_PROFILES, GROUP, REGION, SUBSCRIPTION, TOKEN, FakeAzure
from tests.fakes.faults import Fault
from tuna_nb.backends.azure import place
from tuna_nb.backends.azure.backend import AzureBackend
from tuna_nb.backends.base import Engine, Kind, ServerlessScaling, ServiceRequest, State
from tuna_nb.errors import BackendError, CapacityError, CredentialsError, NotFoundError, RequestError

NAME = "tuna-test-0123456789-serverless"
APPS = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.App/containerApps"
ONE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps/{NAME}"
ENVIRONMENT = f"tuna-env-{REGION}"

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name=NAME,
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="T4",
    gpu_count=1,
    scaling=ServerlessScaling(scaledown_window=60),
)


class Credential:
    def __init__(self, token: str = TOKEN) -> None:
        self._token = token

    def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        assert scopes == ("https://management.azure.com/.default",)
        return AccessTokenInfo(self._token, int(time.time()) + 3600)


class WithoutTls(SansIOHTTPPolicy):
    """The SDK's own bearer policy, allowed on http."""

    def on_request(self, request: Any) -> None:
        request.context.options["enforce_https"] = False


def backend(cloud: FakeAzure, token: str = TOKEN, **change: Any) -> AzureBackend:
    settings: dict[str, Any] = {
        "credential": Credential(token),
        "pipeline": {"per_call_policies": [WithoutTls()]},
        "timeout_s": 1.0,
        "prices_url": cloud.url,
        "endpoint_url": lambda fqdn: f"http://{fqdn}",
        "pace": 0.02,
    }
    return AzureBackend(cloud.url, **(settings | change))


@pytest.fixture
def cloud() -> Iterator[FakeAzure]:
    with FakeAzure() as running:
        yield running


@pytest.fixture
def case(cloud: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> CloudCase:
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", SUBSCRIPTION)
    monkeypatch.setenv("AZURE_RESOURCE_GROUP", GROUP)
    monkeypatch.setenv("AZURE_REGION", REGION)
    monkeypatch.delenv("AZURE_CONTAINERAPPS_ENVIRONMENT", raising=False)
    return CloudCase(
        backend(cloud),
        REQUEST,
        cloud=cloud,
        fresh=lambda: backend(cloud),
        hasty=lambda: backend(cloud, timeout_s=0.5),
        refused=lambda: backend(cloud, "revoked"),
        create=f"PUT {ONE}",
        listing=f"GET {APPS}",
        names=lambda: cloud.names,
        sent=lambda: json.dumps(cloud.bodies),
    )


class TestAzure(CloudContract):
    """Azure Container Apps keep the contract."""


async def test_the_key_and_the_token_are_secrets_of_the_app(
    case: CloudCase, cloud: FakeAzure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    case.request = replace(REQUEST, engine=replace(REQUEST.engine, gated=True))
    endpoint = await case.deploy()
    [container] = cloud.bodies[-1]["properties"]["template"]["containers"]
    refs = {one["name"]: one["secretRef"] for one in container["env"] if "secretRef" in one}
    assert refs == {"VLLM_API_KEY": "vllm-api-key", "HF_TOKEN": "hf-token"}
    key = (await case.backend.auth(endpoint.ref)).headers["Authorization"].removeprefix("Bearer ")
    assert key.startswith("tuna-")
    assert key not in json.dumps(cloud.bodies)
    # Nothing is kept here: another machine reads the same key back.
    assert (await case.fresh().auth(case.ref)).headers["Authorization"] == f"Bearer {key}"


async def test_a_public_app_has_no_key(case: CloudCase) -> None:
    case.request = replace(REQUEST, public=True)
    endpoint = await case.deploy()
    assert dict((await case.backend.auth(endpoint.ref)).headers) == {}


async def test_an_engine_that_asks_for_no_key_is_refused_unless_public(case: CloudCase) -> None:
    own = replace(REQUEST, engine=Engine("m", command="my-server --port {port}"))
    with pytest.raises(RequestError, match="VLLM_API_KEY"):
        await case.backend.plan(own)
    await case.backend.plan(replace(own, public=True))
    await case.backend.plan(
        replace(own, engine=Engine("m", command="python3 -m vllm.entrypoints.openai.api_server"))
    )


async def test_the_shape_and_the_probes_are_azures(case: CloudCase, cloud: FakeAzure) -> None:
    case.request = replace(REQUEST, gpu="A100_80GB", engine=replace(REQUEST.engine, health_path="/ready"))
    await case.deploy()
    [container] = cloud.bodies[-1]["properties"]["template"]["containers"]
    assert container["resources"] == {"cpu": 24, "memory": "220Gi"}
    [startup] = [probe for probe in container["probes"] if probe["type"] == "Startup"]
    assert startup["httpGet"]["path"] == "/ready"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


async def test_a_replica_that_finds_no_gpu_waits_and_costs_nothing(case: CloudCase, cloud: FakeAzure) -> None:
    cloud.free_gpus = False
    endpoint = await case.deploy()
    await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=1))
    status = await case.until_state(endpoint.ref, State.WAITING)
    assert "AssigningReplica" in status.detail
    assert not status.billing
    cloud.free_gpus = True
    await case.until_state(endpoint.ref, State.READY)


async def test_a_crash_looping_engine_has_failed_and_its_log_says_why(case: CloudCase) -> None:
    case.request = replace(REQUEST, engine=Engine("m", args=("--disable-log-requests",)))
    endpoint = await case.deploy()
    await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=1))
    assert (await case.until_state(endpoint.ref, State.FAILED)).billing
    lines = [line.text async for line in case.backend.logs(endpoint.ref)]
    assert any("--disable-log-requests" in line for line in lines)


async def test_a_failed_provisioning_is_one_error_in_azures_words_and_leaves_no_app(
    case: CloudCase, cloud: FakeAzure
) -> None:
    cloud.broken = "Failed to pull the image: manifest unknown"
    error = await case.raises(BackendError, case.deploy())
    assert "manifest unknown" in error.message
    assert await case.backend.list_owned() == []


async def test_a_followed_log_waits_for_a_replica_and_tells_no_line_twice(
    case: CloudCase, cloud: FakeAzure
) -> None:
    endpoint = await case.deploy()

    async def wake_then_end() -> None:
        await asyncio.sleep(0.1)
        await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=1))
        await case.until_state(endpoint.ref, State.READY)
        # The stream breaks off, and is opened again.
        [_, service] = [service for _, service in cloud._apps.values()]
        assert service is not None
        cloud.cut_logs = True
        await asyncio.sleep(0.1)
        cloud.cut_logs = False
        service.lines.append((time.time(), service.alive()[0].id, "the last"))

    waking = asyncio.create_task(wake_then_end())
    seen: list[str] = []
    async with asyncio.timeout(20):
        async for line in case.backend.logs(endpoint.ref, follow=True):
            seen.append(line.text)
            if line.text == "the last":
                break
    await waking
    assert seen.count("container started") == 1


async def test_a_create_is_sent_once_even_by_a_thread_that_outlives_its_caller(
    case: CloudCase, cloud: FakeAzure
) -> None:
    cloud.faults.order(Fault(500, acts=True), f"PUT {ONE}")
    endpoint = await case.deploy()
    assert cloud.faults.calls.count(f"PUT {ONE}") == 1
    await case.backend.destroy(endpoint.ref)
    hasty = backend(cloud, timeout_s=0.2)
    cloud.faults.order(Fault(hangs=True), f"PUT {ONE}")
    plan = await hasty.plan(REQUEST)
    deploying = asyncio.create_task(hasty.deploy(plan, lambda *_: None))
    while cloud.faults.calls.count(f"PUT {ONE}") < 2:
        await asyncio.sleep(0.005)
    deploying.cancel()
    await asyncio.gather(deploying, return_exceptions=True)
    await asyncio.sleep(0.6)  # three times as long as the thread waits for its answer
    assert cloud.faults.calls.count(f"PUT {ONE}") == 2
    assert await case.backend.list_owned() == []


# Environments


async def test_an_environment_is_made_once_with_both_gpus_and_stays(case: CloudCase, cloud: FakeAzure) -> None:
    said: list[tuple[str, float | None]] = []
    plan = await case.backend.plan(REQUEST)
    endpoint = await case.backend.deploy(plan, lambda text, done: said.append((text, done)))
    [made] = [body for body in cloud.bodies if "workloadProfiles" in body["properties"]]
    kinds = {profile["workloadProfileType"] for profile in made["properties"]["workloadProfiles"]}
    assert kinds == {"Consumption", *GPU_PROFILES}
    assert any("InfrastructureSetupInProgress" in text and done is not None for text, done in said)
    await case.backend.destroy(endpoint.ref)
    assert ENVIRONMENT in case.names()
    await case.deploy()
    assert len([body for body in cloud.bodies if "workloadProfiles" in body["properties"]]) == 1
    assert cloud.registrations == 0


async def test_idle_environments_are_removed_when_asked_and_others_never(case: CloudCase, cloud: FakeAzure) -> None:
    assert isinstance(case.backend, AzureBackend)
    cloud.environment("empty", tags={"team": "theirs"})
    endpoint = await case.deploy()
    assert await case.backend.remove_shared() == []
    await case.backend.destroy(endpoint.ref)
    assert await case.backend.remove_shared() == [ENVIRONMENT]
    assert {"theirs", "empty"} <= set(case.names())
    assert ENVIRONMENT not in case.names()


async def test_a_deployment_can_take_its_environment_with_it(case: CloudCase) -> None:
    case.request = replace(REQUEST, options={"azure_cleanup_env": "true"})
    endpoint = await case.deploy()
    await case.fresh().destroy(endpoint.ref)
    assert ENVIRONMENT not in case.names()


async def test_an_environment_of_the_users_is_used_and_never_removed(case: CloudCase, cloud: FakeAzure) -> None:
    cloud.environment("mine")
    case.request = replace(REQUEST, options={"azure_environment": "Mine", "azure_cleanup_env": "true"})
    endpoint = await case.deploy()
    assert ENVIRONMENT not in case.names()
    await case.backend.destroy(endpoint.ref)
    assert "mine" in case.names()
    case.request = replace(REQUEST, options={"azure_environment": "no-such"})
    await case.raises(NotFoundError, case.deploy())


async def test_an_environment_that_has_our_name_and_is_not_ours_is_left_alone(
    case: CloudCase, cloud: FakeAzure
) -> None:
    cloud.environment(ENVIRONMENT, tags={"team": "theirs"})
    error = await case.raises(BackendError, case.deploy())
    assert f"--azure-environment {ENVIRONMENT}" in (error.hint or "")


async def test_a_region_without_the_gpu_is_said_before_an_environment_is_made(
    case: CloudCase, cloud: FakeAzure
) -> None:
    del cloud.offers["Consumption-GPU-NC8as-T4"]
    await case.raises(CapacityError, case.deploy())
    assert ENVIRONMENT not in case.names()


@pytest.mark.parametrize("fault", [Fault(500, acts=True), Fault(drops=True, acts=True)], ids=["500", "cut"])
async def test_an_environment_whose_answer_got_lost_is_found_and_not_made_twice(
    case: CloudCase, cloud: FakeAzure, fault: Fault
) -> None:
    cloud.faults.order(fault, f"PUT {ONE.rpartition('/containerApps')[0]}/managedEnvironments")
    await case.deploy()
    assert case.names().count(ENVIRONMENT) == 1


# Checks


async def test_without_a_sign_in_the_row_has_the_command(
    cloud: FakeAzure, case: CloudCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Azure's own chain of credentials, of which only `az` is asked, and that is not there."""
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
    monkeypatch.setenv("PATH", str(tmp_path))
    signed_out = backend(cloud, credential=None)
    rows = {row.name: row for row in await signed_out.check(REQUEST)}
    assert not rows["sign-in"].passed
    assert rows["sign-in"].fix == "az login"
    assert "\n" not in rows["sign-in"].message
    with pytest.raises(CredentialsError):
        await signed_out.list_owned()


async def failed(case: CloudCase) -> dict[str, str]:
    return {row.name: row.fix or "" for row in await case.backend.check(case.request) if not row.passed}


async def test_a_missing_registration_has_its_command_and_is_never_made_by_a_check(
    case: CloudCase, cloud: FakeAzure
) -> None:
    cloud.registered = False
    rows = await failed(case)
    assert rows["Microsoft.App"] == "az provider register --namespace Microsoft.App --wait"
    assert rows["Microsoft.OperationalInsights"].startswith("az provider register")
    error = await case.raises(BackendError, case.deploy())
    assert error.hint == "az provider register --namespace Microsoft.App --wait"
    assert cloud.registrations == 0


async def test_each_requirement_is_a_row_with_its_fix(
    case: CloudCase, cloud: FakeAzure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cloud.quota = 1
    assert "Managed Environment Consumption T4 Gpus" in (await failed(case))["quota"]
    cloud.quota = 2
    assert await failed(case) == {}
    del cloud.offers["Consumption-GPU-NC8as-T4"]
    assert "list-supported" in (await failed(case))["gpu"]
    case.request = replace(REQUEST, options={"azure_resource_group": "no-such"})
    assert (await failed(case))["resource group"] == f"az group create --name no-such --location {REGION}"
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID")
    assert "az account show" in (await failed(case))["settings"]
    assert not case.backend.configured()
    profile = {"subscriptions": [{"id": "other"}, {"id": SUBSCRIPTION, "isDefault": True}]}
    (tmp_path / "azureProfile.json").write_text(json.dumps(profile), encoding="utf-8-sig")
    assert place.default_subscription() == SUBSCRIPTION
    assert case.backend.configured()


# Prices


async def test_a_price_has_gpu_vcpus_and_memory(case: CloudCase, cloud: FakeAzure) -> None:
    live = 0.30 + 8 * 0.00003 * 3600 + 56 * 0.000004 * 3600
    plan = await case.backend.plan(REQUEST)
    assert plan.price_per_hour_usd == pytest.approx(live)
    [t4] = [offer for offer in await case.backend.prices() if offer.gpu == "T4"]
    assert t4.sum() == (pytest.approx(live), ())
    assert t4.price_per_hour_usd == pytest.approx(0.30)
    assert t4.region == REGION
    assert plan.quote is not None
    assert not plan.quote.snapshot
    unreachable = backend(cloud, prices_url="http://127.0.0.1:9")
    plan = await unreachable.plan(REQUEST)
    assert plan.price_per_hour_usd == pytest.approx(0.26 + 8 * 0.0864 + 56 * 0.0108)
    assert plan.quote is not None
    assert plan.quote.snapshot
    assert "not checked against Azure" in plan.quote.source
    assert "can't be used" in plan.quote.source


async def test_settings_that_azure_refuses_are_refused_in_the_plan(
    case: CloudCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[dict[str, Any]] = [
        {"gpu": "H100"},
        {"gpu_count": 2},
        {"scaling": ServerlessScaling(workers_max=1001)},
        {"scaling": ServerlessScaling(workers_min=2, workers_max=1)},
        {"scaling": ServerlessScaling(concurrency=0)},
        {"options": {"azure_cleanup_env": "perhaps"}},
    ]
    for change in changes:
        with pytest.raises(RequestError):
            await case.backend.plan(replace(REQUEST, **change))
    monkeypatch.delenv("AZURE_RESOURCE_GROUP")
    with pytest.raises(RequestError, match="resource group"):
        await case.backend.plan(REQUEST)


# The wire


async def test_a_404_that_is_not_azures_word_of_the_app_is_not_gone(case: CloudCase, cloud: FakeAzure) -> None:
    endpoint = await case.deploy()
    cloud.faults.order(Fault(404, message="a proxy's"), f"GET {ONE}")
    error = await case.raises(BackendError, case.backend.status(endpoint.ref))
    assert "a proxy's" in error.message


async def test_with_tls_the_sdk_is_as_it_comes(cloud: FakeAzure, case: CloudCase, tmp_path: Path) -> None:
    """A self-signed certificate and the SDK's own bearer policy, nothing loosened."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key)),
            *("-out", str(certificate), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )

    async def listen() -> tuple[uvicorn.Server, asyncio.Task[None]]:
        server = uvicorn.Server(
            uvicorn.Config(
                cloud._http,
                port=0,
                lifespan="off",
                log_level="error",
                ws="none",
                interface="asgi3",
                ssl_keyfile=key,
                ssl_certfile=certificate,
            )
        )
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.002)
        return server, serving

    server, serving = cloud.do(listen())
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        tls = AzureBackend(
            f"https://localhost:{port}",
            credential=Credential(),
            pipeline={"connection_verify": str(certificate)},
            prices_url=cloud.url,
            pace=0.02,
        )
        assert await tls.list_owned() == []
        assert [row for row in await tls.check() if not row.passed] == []
    finally:

        async def end() -> None:
            server.should_exit = server.force_exit = True
            await serving

        cloud.do(end())


def test_asking_whether_it_is_configured_loads_none_of_the_sdk() -> None:
    code = (
        "from tuna_nb.backends.azure.backend import AzureBackend; import sys; "
        "assert AzureBackend().configured(); "
        "assert not {'azure.identity', 'azure.mgmt.appcontainers', 'azure.core', 'httpx'} & set(sys.modules)"
    )
    env = {**os.environ, "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
