"""Modal: its real SDK against its control plane by gRPC, over loopback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.backends.cloud_contract import SECRET, CloudCase, CloudContract
from tests.fakes.faults import Fault
from tests.fakes.modal import TOKEN, FakeModal
from tuna_nb.backends.base import Engine, Kind, Ref, ServerlessScaling, ServiceRequest, State
from tuna_nb.backends.modal import function, prices
from tuna_nb.backends.modal.backend import ModalBackend
from tuna_nb.errors import BackendError, CapacityError, CredentialsError, RequestError, UnclearError

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-serverless",
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=ServerlessScaling(scaledown_window=60),
)


class Quick(ModalBackend):
    """Whose patience a test can wait for."""

    call_s = 5.0
    probe_s = 0.3

    def __init__(self) -> None:
        super().__init__(pace=0.05)


class Hasty(Quick):
    """Which waits for no answer for long."""

    call_s = 0.5


class WrongToken(Quick):
    """As with a token that was revoked."""

    def _credentials(self) -> tuple[str, str]:
        return "ak-revoked", "as-revoked"


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK reads its file when it is first imported, which is in a test."""
    for name in ("MODAL_PROFILE", "MODAL_ENVIRONMENT", "MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", "/nonexistent/modal.toml")


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModal]:
    with FakeModal() as running:
        monkeypatch.setenv("MODAL_SERVER_URL", running.url)
        monkeypatch.setenv("MODAL_TOKEN_ID", TOKEN[0])
        monkeypatch.setenv("MODAL_TOKEN_SECRET", TOKEN[1])
        yield running


def book(cloud: FakeModal, ref: Ref | None, at: float, usd: str) -> None:
    object_id, name = (str(ref.id), ref.name) if ref else ("ap-foreign", "tuna-salad")
    cloud.account.append((object_id, name, at, usd))


@pytest.fixture
def case(cloud: FakeModal) -> CloudCase:
    return CloudCase(
        Quick(),
        REQUEST,
        cloud=cloud,
        fresh=Quick,
        hasty=Hasty,
        refused=WrongToken,
        create="AppPublish",
        listing="AppList",
        names=lambda: cloud.names,
        sent=lambda: cloud.sent,
        books=lambda ref, at, usd: book(cloud, ref, at, usd),
        account="WorkspaceBillingReport",
    )


class TestModal(CloudContract):
    """Modal keeps the contract."""


async def test_its_account_is_by_the_hour_and_by_name_where_no_id_is_known(
    case: CloudCase, cloud: FakeModal
) -> None:
    book(cloud, replace(case.ref, id="ap-1"), 7250.0, "0.1000000000000000055")
    book(cloud, None, 7250.0, "3")
    [charge] = await case.backend.charges(case.ref, 7300, 7400)
    assert (charge.started_at, charge.ended_at, charge.usd) == (7200, 10_800, 0.1)
    assert charge.what == "gpu_l4 0.1"


async def test_an_amount_that_is_none_is_a_fault_and_not_zero(case: CloudCase, cloud: FakeModal) -> None:
    for amount in ("", "NaN", "about 3"):
        cloud.account.clear()
        book(cloud, replace(case.ref, id="ap-1"), 7250.0, amount)
        with pytest.raises(BackendError):
            await case.backend.charges(case.ref, 7200, 10_800)


def definition(cloud: FakeModal) -> Any:
    """Of the function that was deployed last."""
    return next(message.function for name, message in reversed(cloud.requests) if name == "FunctionCreate")


def calls(cloud: FakeModal, name: str) -> int:
    return cloud.faults.calls.count(name)


async def test_the_function_asks_for_what_the_plan_says(case: CloudCase, cloud: FakeModal) -> None:
    scaling = ServerlessScaling(concurrency=7, scaledown_window=90, timeout=1200, workers_min=1, workers_max=3)
    case.request = replace(
        REQUEST,
        gpu="A100_80GB",
        gpu_count=2,
        scaling=scaling,
        region="us-west",
        options={"cpu": "6", "memory_gb": "24"},
    )
    plan = await case.backend.plan(case.request)
    await case.deploy()
    sent = definition(cloud)
    assert (sent.resources.gpu_config.gpu_type, sent.resources.gpu_config.count) == ("A100-80GB", 2)
    assert (sent.resources.milli_cpu, sent.resources.milli_cpu_max, sent.resources.memory_mb) == (6000, 6000, 24576)
    assert (sent.timeout_secs, sent.max_concurrent_inputs) == (1200, 7)
    assert sent.startup_timeout_secs >= 1800
    assert sent.webhook_config.web_server_startup_timeout >= 1800
    settings = sent.autoscaler_settings
    assert (settings.min_containers, settings.max_containers, settings.scaledown_window) == (1, 3, 90)
    assert list(sent.scheduler_placement.regions) == ["us-west"]
    assert {mount.mount_path for mount in sent.volume_mounts} == {"/root/.cache/huggingface", "/root/.cache/vllm"}
    each = (2 * 2.50 + 6 * 0.0504 + 24 * 0.0081) * 1.75
    assert plan.price_per_hour_usd == pytest.approx(each, rel=1e-3)
    assert plan.worst_case_usd_per_hour == pytest.approx(3 * each, rel=1e-3)
    [app] = [app for app in cloud.apps.values() if app.name == REQUEST.name]
    assert app.tags["tuna-deployment"] == REQUEST.deployment_id


async def test_what_modal_refuses_is_refused_in_the_plan(case: CloudCase) -> None:
    changes: list[dict[str, Any]] = [
        {"gpu": "RTX4090"},
        {"gpu_count": 9},
        {"gpu": "A10G", "gpu_count": 5},
        {"scaling": ServerlessScaling(scaledown_window=1)},
        {"scaling": ServerlessScaling(timeout=100_000)},
        {"scaling": ServerlessScaling(workers_min=2, workers_max=1)},
        {"scaling": ServerlessScaling(workers_max=0)},
        {"options": {"cpu": "lots"}},
        {"options": {"memory_gb": "0"}},
        {"engine": Engine("m", command="vllm {modle}")},
    ]
    for change in changes:
        with pytest.raises(RequestError):
            await case.backend.plan(replace(REQUEST, **change))


# The container


def test_the_deployed_function_starts_the_engine_where_tuna_is_not_and_ends_with_it(tmp_path: Path) -> None:
    """By the SDK's own reader of pickled functions, in a process that can't import Tuna."""
    from modal._serialization import serialize

    told = tmp_path / "told.json"
    engine = f"import json, os, sys; json.dump(os.environ['PYTHONPATH'], open({str(told)!r}, 'w')); sys.exit(3)"
    (tmp_path / "code").write_bytes(serialize(function.starter([sys.executable, "-c", engine])))
    container = (
        "import sys, time; sys.modules['tuna_nb'] = sys.modules['tests'] = None\n"
        "from modal._serialization import deserialize\n"
        f"deserialize(open({str(tmp_path / 'code')!r}, 'rb').read(), None)()\n"
        "time.sleep(60)"
    )
    env = {"PYTHONPATH": "/root:/pkg:/own", "MODAL_CONFIG_PATH": str(tmp_path / "none"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", container], env=env, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 3, "the container ends as its engine did"
    assert json.loads(told.read_text()) == "/own"


async def test_modal_runs_the_function_in_the_python_that_made_it(case: CloudCase, cloud: FakeModal) -> None:
    await case.deploy()
    sent = definition(cloud)
    assert cloud._python(sent.image_id) == ".".join(map(str, sys.version_info[:2]))
    commands = cloud._commands(sent.image_id)
    assert commands[0].startswith("FROM vllm/vllm-openai:v")
    assert commands[-1] == "ENTRYPOINT []"


async def test_a_build_that_fails_is_told_in_modals_words_and_leaves_nothing(
    case: CloudCase, cloud: FakeModal
) -> None:
    cloud.broken_build = "manifest for vllm/vllm-openai:v0 not found"
    error = await case.raises(BackendError, case.deploy())
    assert "manifest for vllm/vllm-openai:v0 not found" in error.message
    assert "modal image logs im-" in (error.hint or "")
    assert REQUEST.name not in cloud.names


async def test_an_engine_that_crashes_again_and_again_has_failed(case: CloudCase) -> None:
    case.request = replace(REQUEST, engine=Engine("Qwen/Qwen3-0.6B", args=("--disable-log-requests",)))
    endpoint = await case.deploy()
    await case.backend.scale(endpoint.ref, ServerlessScaling(workers_min=1))
    status = await case.until_state(endpoint.ref, State.FAILED)
    assert status.billing
    assert "ended with an error" in status.detail
    lines = [line.text async for line in case.backend.logs(endpoint.ref)]
    assert any("--disable-log-requests" in line for line in lines)


async def test_an_app_that_waits_for_a_gpu_costs_nothing(case: CloudCase, cloud: FakeModal) -> None:
    cloud.free_gpus = False
    endpoint = await case.deploy()
    await case.backend.wake(endpoint.ref)
    status = await case.until_state(endpoint.ref, State.WAITING)
    assert not status.billing
    assert status.replicas == ()
    cloud.free_gpus = True
    await case.until_state(endpoint.ref, State.READY)


async def test_a_status_never_starts_what_is_at_zero(case: CloudCase, cloud: FakeModal) -> None:
    endpoint = await case.deploy()
    for _ in range(3):
        assert (await case.backend.status(endpoint.ref)).state is State.IDLE
    [service] = cloud.platform.services
    assert service.replicas == []


async def test_a_status_does_not_keep_awake_what_runs(case: CloudCase, cloud: FakeModal) -> None:
    endpoint = await case.deploy()
    await case.backend.wake(endpoint.ref)
    await case.until_state(endpoint.ref, State.READY)
    [service] = cloud.platform.services
    [replica] = service.replicas

    async def quiet() -> bool:
        return not service.waiting and not replica.in_flight

    await case.until(quiet, "the request that woke it is through")
    last = replica.used_at
    for _ in range(3):
        assert (await case.backend.status(endpoint.ref)).state is State.READY
    assert replica.used_at == last


async def test_a_container_bills_from_when_it_was_first_seen(case: CloudCase) -> None:
    endpoint = await case.deploy()
    await case.backend.wake(endpoint.ref)
    await case.until_state(endpoint.ref, State.READY)
    [first] = (await case.backend.status(endpoint.ref)).replicas
    [again] = (await case.backend.status(endpoint.ref)).replicas
    assert again == first
    assert time.time() - 30 < first.started_at <= time.time()


# The door


async def test_a_held_request_is_sent_on_to_where_its_answer_will_be(case: CloudCase, cloud: FakeModal) -> None:
    cloud.held_s = 0.05
    endpoint = await case.deploy()
    assert case.backend.door.redirects
    headers = dict((await case.backend.auth(endpoint.ref)).headers)
    body = {"model": REQUEST.engine.model, "prompt": "hi", "max_tokens": 1}
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(f"{endpoint.url}/v1/completions?a=b", json=body, headers=headers)
        assert answer.status_code == 303
        place = answer.headers["location"]
        assert place.startswith(f"{endpoint.url}/v1/completions?a=b&")
        assert (await http.get(place)).status_code == 401
        while answer.status_code == 303:
            answer = await http.get(answer.headers["location"], headers=headers)
        assert answer.status_code == 200
        assert answer.json()["object"] == "text_completion"
        warm = await http.post(f"{endpoint.url}/v1/completions", json=body, headers=headers)
        assert warm.status_code == 200


async def test_a_later_process_has_the_same_key_and_destroy_takes_it_back(
    case: CloudCase, cloud: FakeModal
) -> None:
    endpoint = await case.deploy()
    auth = await case.backend.auth(endpoint.ref)
    assert dict((await case.fresh().auth(endpoint.ref)).headers) == dict(auth.headers)
    assert cloud.token_names == ["someone's", REQUEST.name]
    await case.fresh().destroy(case.ref)
    assert cloud.token_names == ["someone's"]
    endpoint = await case.deploy()
    assert dict((await case.backend.auth(endpoint.ref)).headers) != dict(auth.headers)


async def test_a_machine_without_the_secret_gets_a_key_of_its_own(
    case: CloudCase, cloud: FakeModal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endpoint = await case.deploy()
    monkeypatch.setenv("TUNA_DATA_DIR", str(tmp_path / "another machine"))
    elsewhere = case.fresh()
    headers = dict((await elsewhere.auth(endpoint.ref)).headers)
    assert cloud.token_names.count(REQUEST.name) == 2
    async with httpx.AsyncClient(timeout=30) as http:
        assert (await http.get(f"{endpoint.url}/health", headers=headers)).status_code == 200
    await elsewhere.destroy(endpoint.ref)
    assert cloud.token_names == ["someone's"]


@pytest.mark.parametrize("rpc", ["WebhookTokenCreate", "WebhookTokenDelete", "AppStop"])
async def test_a_crash_around_a_key_leaves_none_that_destroy_does_not_find(
    case: CloudCase, cloud: FakeModal, rpc: str
) -> None:
    cloud.faults.order(Fault(hangs=True, acts=True), rpc)
    going = asyncio.create_task(_deployed_and_destroyed(case))
    while rpc not in cloud.faults.calls:
        await asyncio.sleep(0.005)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    assert {ref.name for ref in await case.fresh().list_owned()} <= {REQUEST.name}
    await case.fresh().destroy(case.ref)
    assert cloud.token_names == ["someone's"]
    assert await case.backend.list_owned() == []


async def _deployed_and_destroyed(case: CloudCase) -> None:
    await case.backend.destroy((await case.deploy()).ref)


async def test_destroy_waits_until_the_containers_have_ended(case: CloudCase, cloud: FakeModal) -> None:
    endpoint = await case.deploy()
    await case.backend.wake(endpoint.ref)
    await case.until_state(endpoint.ref, State.READY)
    await case.backend.destroy(endpoint.ref)
    [service] = cloud.platform.services
    assert service.alive() == []


async def test_an_app_is_stopped_even_where_its_key_can_not_be_removed(case: CloudCase, cloud: FakeModal) -> None:
    endpoint = await case.deploy()
    cloud.faults.order(Fault(403, message="members may not"), "WebhookTokenDelete", times=10)
    error = await case.raises(CredentialsError, case.backend.destroy(endpoint.ref))
    assert "members may not" in error.message
    assert await case.backend.list_owned() == []


async def test_the_users_own_key_is_used_and_none_is_made(
    case: CloudCase, cloud: FakeModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_PROXY_TOKEN_ID", "wk-foreign")
    monkeypatch.setenv("MODAL_PROXY_TOKEN_SECRET", "ws-foreign")
    endpoint = await case.deploy()
    auth = await case.backend.auth(endpoint.ref)
    assert dict(auth.headers) == {"Modal-Key": "wk-foreign", "Modal-Secret": "ws-foreign"}
    await case.backend.destroy(endpoint.ref)
    assert cloud.token_names == ["someone's"]


async def test_where_a_workspace_has_roles_the_key_is_allowed_into_its_environment(
    case: CloudCase, cloud: FakeModal
) -> None:
    cloud.roles = True
    endpoint = await case.deploy()
    auth = await case.backend.auth(endpoint.ref)
    async with httpx.AsyncClient(timeout=30) as http:
        assert (await http.get(f"{endpoint.url}/health", headers=dict(auth.headers))).status_code == 200


async def test_a_public_app_asks_for_no_key_and_none_is_made(case: CloudCase, cloud: FakeModal) -> None:
    case.request = replace(REQUEST, public=True)
    assert "public" in " ".join((await case.backend.plan(case.request)).notes)
    endpoint = await case.deploy()
    assert dict((await case.fresh().auth(endpoint.ref)).headers) == {}
    assert cloud.token_names == ["someone's"]
    async with httpx.AsyncClient(timeout=30) as http:
        assert (await http.get(f"{endpoint.url}/health")).status_code == 200


# What goes wrong on the way


async def test_a_deploy_whose_every_answer_got_lost_is_found_by_name(case: CloudCase, cloud: FakeModal) -> None:
    cloud.faults.order(Fault(drops=True, acts=True), "AppPublish", times=4)
    endpoint = await case.deploy()
    assert [ref.id for ref in await case.backend.list_owned()] == [endpoint.ref.id]
    assert cloud.names.count(REQUEST.name) == 1


async def test_a_deploy_that_never_came_to_be_is_said_to_be_unclear(case: CloudCase, cloud: FakeModal) -> None:
    cloud.faults.order(Fault(503), "AppPublish", times=10)
    await case.raises(UnclearError, case.deploy())
    assert REQUEST.name not in cloud.names


async def test_a_rate_limit_that_never_ends_is_not_waited_out_for_ever(case: CloudCase, cloud: FakeModal) -> None:
    case.backend.call_s = 0.5  # type: ignore[misc]
    cloud.faults.order(Fault(429, headers={"Retry-After": "0.1"}), "AppList", times=10**6)
    await case.raises(BackendError, case.backend.list_owned())
    asked = calls(cloud, "AppList")
    assert 2 <= asked <= 6
    await asyncio.sleep(0.25)
    assert calls(cloud, "AppList") == asked, "nobody goes on asking"


async def test_a_full_workspace_is_a_lack_of_capacity(case: CloudCase, cloud: FakeModal) -> None:
    cloud.faults.order(Fault(429, message="workspace limit of 10 GPUs reached"), "AppPublish", times=10)
    error = await case.raises(CapacityError, case.deploy())
    assert "10 GPUs" in error.message


async def test_a_changed_token_counts_at_once(case: CloudCase, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await case.backend.list_owned() == []
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-another")
    error = await case.raises(CredentialsError, case.backend.list_owned())
    assert "modal token new" in (error.hint or "")
    assert "as-another" not in str(error)


async def test_without_an_account_it_is_not_configured_and_says_how_to_be(
    case: CloudCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MODAL_TOKEN_ID")
    backend = case.fresh()
    assert not backend.configured()
    [failed] = [row for row in await backend.check(REQUEST) if not row.passed]
    assert "modal token new" in (failed.fix or "")
    plan = await backend.plan(REQUEST)
    assert plan.quote is not None
    assert plan.quote.snapshot
    assert datetime.fromtimestamp(plan.quote.observed_at, UTC).date().isoformat() == "2026-05-08"
    profile = tmp_path / "modal.toml"
    profile.write_text('[default]\ntoken_id = "ak-1"\ntoken_secret = "as-1"\n')
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(profile))
    assert backend.configured()


async def test_a_gated_model_needs_a_token_before_anything_is_made(
    case: CloudCase, cloud: FakeModal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    case.request = replace(REQUEST, engine=Engine("meta-llama/Llama-3.1-8B", gated=True))
    assert [row.name for row in await case.backend.check(case.request) if not row.passed] == ["model"]
    await case.raises(CredentialsError, case.deploy())
    assert REQUEST.name not in cloud.names
    monkeypatch.setenv("HF_TOKEN", SECRET)
    await case.deploy()
    [service] = cloud.platform.services
    assert service.env["HF_TOKEN"] == SECRET


# Prices and logs


def test_a_rate_is_taken_only_where_it_can_be_told_whose_it_is() -> None:
    told = {
        "gpu_l4_second": Decimal("0.000225"),
        "gpu_l40s_hour": Decimal("2.00"),
        "GPU A100-80GB (per minute)": Decimal("0.05"),
        "gpu_h100_hour_region_us": Decimal("5.9"),
        "gpu_t4_hour": Decimal("123"),
        "cpu_core_second": Decimal("0.0000140"),
    }
    rates, live = prices.live(told)
    assert live == {"L4", "L40S", "A100_80GB", prices.CORE}
    assert (rates["L4"], rates["L40S"], rates["A100_80GB"]) == (0.81, 2.0, 3.0)
    assert rates["H100"] == prices.shipped()["H100"]
    assert rates["T4"] == prices.shipped()["T4"]


async def test_offers_say_which_price_is_live(case: CloudCase) -> None:
    offers = {offer.gpu: offer for offer in await case.backend.prices()}
    assert (offers["L4"].price_per_hour_usd, offers["L4"].source) == (0.81, "Modal's rates")
    assert offers["T4"].snapshot
    assert not offers["L4"].snapshot
    assert offers["H100"].price_per_hour_usd == 4.10


async def test_a_followed_log_has_every_line_once(case: CloudCase, cloud: FakeModal) -> None:
    endpoint = await case.deploy()
    [service] = cloud.platform.services
    began = time.time()
    service.lines += [(began, "r1", "one"), (began, "r2", "two")]
    seen: list[str] = []
    async with asyncio.timeout(20):
        async for line in case.backend.logs(endpoint.ref, since=began - 1, follow=True):
            seen.append(line.text)
            if line.text == "two":
                service.lines += [(began - 0.5, "r1", "late"), (time.time(), "r1", "three")]
            if line.text == "three":
                break
    assert seen == ["one", "two", "late", "three"]
