"""Cloud Run: Google's own SDK and token flows, against a Google over loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.auth import jwt
from google.oauth2 import credentials as user
from google.oauth2 import service_account

from tests.backends.cloud_contract import CloudCase, CloudContract
from tests.fakes.cloudrun import PROJECT, FakeCloudRun, id_token
from tests.fakes.faults import Fault
from tests.fakes.google_billing import KEY as BILLING_KEY
from tests.fakes.google_billing import FakeGoogleBilling
from tuna_nb.backends.base import Engine, Kind, LogLine, ServerlessScaling, ServiceRequest, State
from tuna_nb.backends.cloudrun import service as services
from tuna_nb.backends.cloudrun.backend import CloudRunBackend
from tuna_nb.backends.cloudrun.identity import SCOPES, mint
from tuna_nb.errors import BackendError, CapacityError, CredentialsError, RequestError

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-serverless",
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=ServerlessScaling(scaledown_window=60),
)
REGION = "us-east4"
GATED = replace(REQUEST, engine=replace(REQUEST.engine, gated=True))
BROKEN = replace(REQUEST, engine=replace(REQUEST.engine, args=("--disable-log-requests",)))


def backend(url: str) -> CloudRunBackend:
    return CloudRunBackend(url, timeout_s=20, pace=0.01)


@pytest.fixture
def cloud() -> Iterator[FakeCloudRun]:
    with FakeCloudRun() as running:
        yield running


@pytest.fixture
def case(cloud: FakeCloudRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CloudCase:
    for name in ("GOOGLE_CLOUD_PROJECT", "CLOUDRUN_REGION", "GOOGLE_CLOUD_REGION", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    # google.auth asks a fixed host, in the background, to which locations an account is bound.
    monkeypatch.setattr(
        "google.auth.credentials.CredentialsWithRegionalAccessBoundary._after_refresh",
        lambda *_: None,
        raising=False,
    )
    ours, others = tmp_path / "ours.json", tmp_path / "revoked.json"
    ours.write_text(json.dumps(cloud.key_file()))
    others.write_text(json.dumps(cloud.key_file("revoked")))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(ours))

    class Revoked(CloudRunBackend):
        """As with a key that Google knows no more."""

        def __init__(self) -> None:
            super().__init__(cloud.url, timeout_s=20, pace=0.01)
            self._calls.credentials = self._revoked  # type: ignore[method-assign]

        async def _revoked(self) -> tuple[Any, str | None]:
            made: Any = service_account.Credentials
            return made.from_service_account_file(str(others), scopes=SCOPES), PROJECT

    return CloudCase(
        backend(cloud.url),
        REQUEST,
        cloud=cloud,
        fresh=lambda: backend(cloud.url),
        hasty=lambda: CloudRunBackend(cloud.url, timeout_s=0.5, pace=0.01),
        refused=Revoked,
        create=f"POST /v2/projects/{PROJECT}/locations/{REGION}/services",
        listing=f"GET /v2/projects/{PROJECT}/locations",
        names=lambda: cloud.names,
        sent=lambda: json.dumps(cloud.bodies),
    )


class TestCloudRun(CloudContract):
    """Cloud Run keeps the contract."""


# What is asked for


def test_the_service_has_one_gpu_and_half_an_hour_to_load_the_weights() -> None:
    made = services.service(replace(REQUEST, scaling=ServerlessScaling(workers_min=1, workers_max=3, timeout=900)))
    [container] = made.template.containers
    assert dict(container.resources.limits) == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert [*container.command] == ["vllm"]
    assert [*container.args][:2] == ["serve", "Qwen/Qwen3-0.6B"]
    probe = container.startup_probe
    assert (probe.http_get.path, probe.http_get.port) == ("/health", 8000)
    assert probe.period_seconds * probe.failure_threshold == 1800
    assert made.template.node_selector.accelerator == "nvidia-l4"
    assert made.template.gpu_zonal_redundancy_disabled
    assert made.template.max_instance_request_concurrency == 32
    assert made.template.timeout.total_seconds() == 900
    assert (made.scaling.min_instance_count, made.scaling.max_instance_count) == (1, 3)
    assert dict(made.labels) == {"tuna-deployment": "0123456789"}
    assert not made.invoker_iam_disabled
    big = services.service(replace(REQUEST, gpu="RTXPRO6000")).template
    limits = dict(big.containers[0].resources.limits)
    assert (limits["cpu"], limits["memory"]) == ("20", "80Gi")


def test_a_gated_models_token_is_a_reference_to_a_secret() -> None:
    [*_, env] = services.service(replace(GATED, options={"hf_secret": "mine"})).template.containers[0].env
    assert (env.name, env.value) == ("HF_TOKEN", "")
    assert (env.value_source.secret_key_ref.secret, env.value_source.secret_key_ref.version) == ("mine", "latest")
    assert "HF_TOKEN" not in [e.name for e in services.service(REQUEST).template.containers[0].env]


async def test_the_price_has_a_line_for_cores_and_memory(case: CloudCase) -> None:
    plan = await case.backend.plan(REQUEST)
    assert plan.price_per_hour_usd == pytest.approx(0.672 + 8 * 0.0648 + 32 * 0.0072)
    pro = await case.backend.plan(replace(REQUEST, gpu="RTXPRO6000", options={"gcp_region": "us-central1"}))
    assert pro.price_per_hour_usd == pytest.approx(1.314792 + 20 * 0.0648 + 80 * 0.0072)
    invited = await case.backend.plan(replace(REQUEST, gpu="RTXPRO6000", options={"gcp_region": "asia-south2"}))
    assert invited.worst_case_usd_per_hour is None, "of a region whose price nobody tells"


async def test_with_a_key_the_price_is_googles_own_and_without_an_answer_the_shipped_one(
    case: CloudCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = (await case.backend.plan(REQUEST)).quote
    assert shipped is not None
    assert shipped.snapshot
    with FakeGoogleBilling() as billing:
        monkeypatch.setenv("GOOGLE_API_KEY", BILLING_KEY)
        monkeypatch.setenv("TUNA_GOOGLE_BILLING_URL", billing.url)
        for sku in billing.skus:
            if sku["description"].startswith("NVIDIA L4") or "L4" in sku["description"]:
                [rate] = sku["pricingInfo"][-1]["pricingExpression"]["tieredRates"][-1:]
                rate["unitPrice"] = {"currencyCode": "USD", "units": "0", "nanos": 200_000}
        plan = await case.backend.plan(replace(REQUEST, options={"gcp_region": "us-central1"}))
        elsewhere = await case.backend.plan(REQUEST)
    assert elsewhere.price_per_hour_usd == pytest.approx(0.672 + 8 * 0.0648 + 32 * 0.0072), "of a region it lacks"
    assert plan.quote is not None
    assert (plan.quote.source, plan.quote.snapshot) == ("Cloud Billing catalogue", False)
    assert plan.price_per_hour_usd == pytest.approx(0.0002 * 3600 + 8 * 0.0648 + 32 * 0.0072)
    again = CloudRunBackend("http://127.0.0.1:9")
    plan = await again.plan(REQUEST)
    assert plan.price_per_hour_usd == pytest.approx(0.672 + 8 * 0.0648 + 32 * 0.0072)
    assert plan.quote is not None
    assert plan.quote.snapshot
    assert "no connection" in plan.quote.source
    assert BILLING_KEY not in plan.quote.source


async def test_settings_that_cloud_run_refuses_are_refused_in_the_plan(case: CloudCase) -> None:
    changes: list[dict[str, Any]] = [
        {"scaling": ServerlessScaling(timeout=4000)},
        {"scaling": ServerlessScaling(concurrency=2000)},
        {"options": {"hf_secret": "no secret"}},
        {"options": {"impersonate": "me"}},
        {"options": {"gcp_region": "us-west1"}},
        {"region": "us-west1"},
        {"gpu": "H100"},
        {"gpu_count": 2},
    ]
    for change in changes:
        with pytest.raises(RequestError):
            await case.backend.plan(replace(REQUEST, **change))


def test_the_region_is_the_users_else_one_that_is_open_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLOUDRUN_REGION", "GOOGLE_CLOUD_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert services.region(REQUEST) == "us-east4"
    assert services.region(replace(REQUEST, gpu="RTXPRO6000")) == "us-central1"
    monkeypatch.setenv("GOOGLE_CLOUD_REGION", "europe-west4")
    assert services.region(REQUEST) == "europe-west4"
    monkeypatch.setenv("CLOUDRUN_REGION", "europe-west1")
    assert services.region(REQUEST) == "europe-west1"
    assert services.region(replace(REQUEST, region="asia-southeast1")) == "asia-southeast1"
    assert services.region(replace(REQUEST, options={"gcp_region": "us-central1"})) == "us-central1"
    with pytest.raises(RequestError, match="europe-west1 has no RTXPRO6000"):
        services.region(replace(REQUEST, gpu="RTXPRO6000"))


# Checks


async def test_each_thing_that_is_missing_has_its_row_and_its_command(
    case: CloudCase, cloud: FakeCloudRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failed(request: ServiceRequest = REQUEST) -> dict[str, str]:
        return {row.name: str(row.fix) for row in await case.fresh().check(request) if not row.passed}

    assert await failed() == {}
    cloud.gpu_quota = 0
    assert "--dimensions=region=us-east4" in (await failed())["quota"]
    cloud.secrets.clear()
    cloud.gpu_quota = 1
    assert "gcloud secrets create hf-token" in (await failed(GATED))["model"]
    assert list(await failed(replace(REQUEST, gpu="H100"))) == ["gpu"]
    cloud.enabled = False
    assert await failed() == {"api": f"gcloud services enable run.googleapis.com --project {PROJECT}"}
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    assert await failed() == {"credentials": "gcloud auth application-default login"}
    assert not case.backend.configured()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert await failed() == {"package": "pip install 'tuna-nb[cloudrun]'"}


async def test_the_project_is_the_options_else_the_environments_else_the_credentials(
    case: CloudCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CloudRunBackend("http://127.0.0.1:1", pace=0.01)
    assert await made._project(REQUEST) == PROJECT
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "theirs")
    assert await made._project(None) == "theirs"
    assert await made._project(replace(REQUEST, options={"gcp_project": "mine"})) == "mine"


# Tokens


async def test_a_token_opens_one_service_for_an_hour(case: CloudCase, cloud: FakeCloudRun) -> None:
    endpoint = await case.deploy()
    auth = await case.backend.auth(endpoint.ref)
    assert auth.expires_at is not None
    assert 3500 < auth.expires_at - time.time() <= 3600
    async with httpx.AsyncClient(base_url=endpoint.url, timeout=20) as http:
        assert (await http.get("/health")).status_code == 403
        for token in (id_token("https://another.run.app"), id_token(endpoint.url, lasts_s=-100)):
            answer = await http.get("/health", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401
        assert (await http.get("/health", headers=dict(auth.headers))).status_code == 200


async def test_a_public_service_needs_no_token(case: CloudCase) -> None:
    case.request = replace(REQUEST, public=True)
    endpoint = await case.deploy()
    auth = await case.backend.auth(endpoint.ref)
    assert (auth.headers, auth.expires_at) == ({}, None)
    async with httpx.AsyncClient(timeout=20) as http:
        assert (await http.get(f"{endpoint.url}/health")).status_code == 200


async def test_a_service_remembers_for_whom_its_tokens_are_made(
    case: CloudCase, cloud: FakeCloudRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("google.auth.iam._IAM_IDTOKEN_ENDPOINT", f"{cloud.url}/impersonated/{{}}")
    who = "router@tuna-test.iam.gserviceaccount.com"
    case.request = replace(REQUEST, options={"impersonate": who})
    endpoint = await case.deploy()
    token = (await case.fresh().auth(endpoint.ref)).headers["Authorization"].removeprefix("Bearer ")
    decode: Any = jwt.decode
    claims = decode(token, verify=False)
    assert (claims["email"], claims["aud"]) == (who, endpoint.url)


def test_a_persons_credentials_have_gcloud_make_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: Any = user.Credentials
    person = made("ya29.mine", refresh_token="1//mine", client_id="id", client_secret="secret")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CredentialsError, match="gcloud is not installed"):
        mint(person, "https://one.run.app")
    token, gcloud = id_token("32555940559.apps.googleusercontent.com"), tmp_path / "gcloud"

    def install(script: str) -> None:
        gcloud.write_text(f"#!/bin/sh\n{script}\n")
        gcloud.chmod(0o755)

    install(f'[ "$*" = "auth print-identity-token" ] && echo {token}')
    assert mint(person, "https://one.run.app")[0] == token
    install("echo 'ERROR: You do not currently have an active account selected.' >&2; exit 1")
    with pytest.raises(CredentialsError, match="active account") as refused:
        mint(person, "https://one.run.app")
    assert refused.value.hint


# A life


async def test_a_container_that_never_gets_ready_is_told_in_its_words_and_removed(
    case: CloudCase, cloud: FakeCloudRun
) -> None:
    case.request = BROKEN
    error = await case.raises(BackendError, case.deploy())
    assert "failed the configured startup probe checks" in error.message
    assert "--disable-log-requests" in error.message
    assert REQUEST.name not in cloud.names


async def test_no_quota_is_no_capacity_and_asked_once(case: CloudCase, cloud: FakeCloudRun) -> None:
    cloud.gpu_quota = 0
    error = await case.raises(CapacityError, case.deploy())
    assert "quota" in error.message
    assert sum(call.startswith("POST /v2/projects") for call in cloud.faults.calls) == 1
    assert REQUEST.name not in cloud.names


async def test_a_secret_that_is_not_there_ends_the_deploy(case: CloudCase, cloud: FakeCloudRun) -> None:
    cloud.secrets.clear()
    case.request = GATED
    error = await case.raises(BackendError, case.deploy())
    assert "hf-token was not found" in error.message
    assert REQUEST.name not in cloud.names


async def test_a_service_that_never_got_ready_is_made_anew(case: CloudCase, cloud: FakeCloudRun) -> None:
    """It was left by a caller that died before it could remove it."""
    case.request = BROKEN
    cloud.faults.order(Fault(500), "DELETE", times=10**6)
    await case.raises(BackendError, case.deploy())
    assert REQUEST.name in cloud.names
    assert (await case.backend.status(case.ref)).state is State.FAILED
    cloud.faults.clear()
    case.request = REQUEST
    endpoint = await case.deploy()
    await case.until_state(endpoint.ref, State.READY)
    assert cloud.names.count(REQUEST.name) == 1


async def test_instances_that_can_not_be_counted_are_taken_to_cost_money(
    case: CloudCase, cloud: FakeCloudRun
) -> None:
    endpoint = await case.deploy()
    cloud.monitored = False
    status = await case.backend.status(endpoint.ref)
    assert (status.state, status.billing, len(status.replicas)) == (State.READY, True, 1)
    assert "instances unknown" in status.detail
    assert "monitoring.timeSeries.list" in status.detail


async def test_instances_are_counted_by_the_newest_of_monitorings_points(
    case: CloudCase, cloud: FakeCloudRun
) -> None:
    endpoint = await case.deploy()
    await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=2, workers_max=2))

    async def two() -> bool:
        status = await case.backend.status(endpoint.ref)
        return status.billing and [r.state for r in status.replicas] == [State.READY] * 2

    await case.until(two, "two instances are counted")
    assert cloud.bodies[-1].keys() == {"scaling"}, "nothing that would be a new revision"


async def test_a_fresh_service_without_a_count_is_not_called_idle(case: CloudCase) -> None:
    slow = CloudRunBackend(case.cloud.url, timeout_s=20)
    endpoint = await case.deploy()
    await case.until_state(endpoint.ref, State.IDLE)
    status = await slow.status(endpoint.ref)
    assert (status.state, status.billing) == (State.STARTING, True)
    assert "instances unknown" in status.detail


async def test_a_region_that_was_not_reached_is_no_empty_region(case: CloudCase, cloud: FakeCloudRun) -> None:
    await case.deploy()
    cloud.unreachable = ("asia-south1",)
    error = await case.raises(BackendError, case.backend.list_owned())
    assert "asia-south1" in error.message


async def test_a_service_in_another_region_is_found_by_its_name(case: CloudCase) -> None:
    case.request = replace(REQUEST, region="asia-southeast1")
    endpoint = await case.deploy()
    assert "/asia-southeast1/" in str(endpoint.ref.id)
    again = case.fresh()
    assert (await again.list_owned()) == [endpoint.ref]
    await again.destroy(case.ref)
    assert await again.list_owned() == []


async def test_a_followed_log_has_every_line_once(case: CloudCase) -> None:
    endpoint = await case.deploy()
    whole = [line async for line in case.backend.logs(endpoint.ref)]
    assert len(whole) > 1
    told: list[LogLine] = []
    async with asyncio.timeout(20):
        async for line in case.backend.logs(endpoint.ref, follow=True):
            told.append(line)
            if len(told) == len(whole):
                await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=2, workers_max=2))
            if line.source != whole[0].source:
                break
    assert told[: len(whole)] == whole
    assert len(set(told)) == len(told)
