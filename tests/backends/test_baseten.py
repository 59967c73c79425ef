"""Baseten: truss for the push, our HTTP client for the rest, against a pretend Baseten over loopback."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.backends.cloud_contract import SECRET, CloudCase, CloudContract
from tests.fakes.baseten import KEY, FakeBaseten
from tests.fakes.faults import Fault
from tuna_nb.backends.base import Engine, Kind, Ref, ServerlessScaling, ServiceRequest, State
from tuna_nb.backends.baseten import child, push
from tuna_nb.backends.baseten.backend import BasetenBackend
from tuna_nb.errors import BackendError, CapacityError, CredentialsError, RequestError, UnclearError

pytestmark = pytest.mark.e2e  # every deploy is a `truss push` in a process of its own

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-serverless",
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=ServerlessScaling(scaledown_window=60),
)


class WrongKey(BasetenBackend):
    """As with a key that was revoked."""

    def _key(self) -> str:
        return "revoked"


def backend(
    cloud: FakeBaseten, kind: type[BasetenBackend] = BasetenBackend, timeout_s: float = 30
) -> BasetenBackend:
    where: dict[str, Any] = {"app_url": cloud.url, "s3_url": f"{cloud.url}/s3", "inference_url": cloud.inference}
    return kind(cloud.url, **where, timeout_s=timeout_s, pace=0.02)


@pytest.fixture
def cloud() -> Iterator[FakeBaseten]:
    with FakeBaseten() as running:
        yield running


def book(cloud: FakeBaseten, ref: Ref | None, at: float, usd: str) -> None:
    model, name = (str(ref.id), ref.name) if ref else ("theirs00", "tuna-salad")
    cloud.account.append((model, name, at, usd))


@pytest.fixture
def case(cloud: FakeBaseten, monkeypatch: pytest.MonkeyPatch) -> CloudCase:
    monkeypatch.setenv("BASETEN_API_KEY", KEY)
    return CloudCase(
        backend(cloud),
        REQUEST,
        cloud=cloud,
        fresh=lambda: backend(cloud),
        hasty=lambda: backend(cloud, timeout_s=0.5),
        refused=lambda: backend(cloud, WrongKey),
        create="POST /graphql/create_model_from_truss",
        listing="GET /v1/models",
        names=lambda: cloud.names,
        sent=lambda: json.dumps(cloud.bodies),
        books=lambda ref, at, usd: book(cloud, ref, at, usd),
        account="GET /v1/billing/usage_summary",
    )


class TestBaseten(CloudContract):
    """Baseten keeps the contract."""

    # After the price (1), the search (2) and truss's five questions (3 to 7) come upload, create, and what is set
    # then. The questions make nothing and are left out, for each push starts a process that takes seconds.
    @pytest.mark.parametrize("number", [2, 8, 9, 10, 11])
    async def test_what_a_crash_after_any_call_left_is_found_by_its_name_and_removed(
        self, case: CloudCase, number: int
    ) -> None:
        await super().test_what_a_crash_after_any_call_left_is_found_by_its_name_and_removed(case, number)


async def test_a_quarter_of_a_year_of_its_account_is_asked_by_the_month_and_no_day_counts_twice(
    case: CloudCase, cloud: FakeBaseten
) -> None:
    first = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    ours = replace(case.ref, id="m1")
    for day in range(95):
        book(cloud, ours, first + day * 86_400 + 3600, "0.1")
    for ref in (ours, case.ref):
        charges = await case.backend.charges(ref, first - 40 * 86_400, first + 95 * 86_400)
        assert len(charges) == 95
        assert sum(c.usd for c in charges) == pytest.approx(9.5)
    assert charges[0].what == "L4x4x16 of deployment d-m1, 10 min"
    assert len(cloud.faults.calls) == 2 * 4


async def test_days_that_do_not_add_up_are_a_fault(case: CloudCase, cloud: FakeBaseten) -> None:
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
    book(cloud, replace(case.ref, id="m1"), noon, "1.0")
    cloud.forgets_days = True
    with pytest.raises(BackendError, match="do not add up"):
        await case.backend.charges(case.ref, noon, noon + 60)


def command(request: ServiceRequest, folder: Path) -> tuple[list[str], str | None]:
    """What a shell starts for it, and the token in its environment; /secrets is in `folder`, vllm tells what it got."""
    stub = folder / "vllm"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "${HF_TOKEN-none}" "$0" "$@"\n')
    stub.chmod(0o755)
    line = push.start_command(request).replace("/secrets/", f"{folder}/")
    ran = subprocess.run(
        shlex.split(line), env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    token, _, *argv = ran.stdout.splitlines()
    return argv, None if token == "none" else token


def test_the_token_comes_from_the_mounted_secret_and_is_in_no_argv(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(SECRET)
    engine = Engine("a b/$(id) 'x'", gated=True, args=("--chat-template", 'two "words" $HOME'))
    argv, token = command(replace(REQUEST, engine=engine, options={"hf_secret": "mine"}), tmp_path)
    assert token == SECRET
    assert SECRET not in argv
    assert argv[:2] == ["serve", "a b/$(id) 'x'"]
    assert argv[-1] == 'two "words" $HOME'
    open_model, no_token = command(replace(REQUEST, engine=replace(engine, gated=False)), tmp_path)
    assert (open_model, no_token) == (argv, None)


async def test_a_gated_models_token_becomes_a_secret_once_and_never_replaces_one(
    case: CloudCase, cloud: FakeBaseten, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    case.request = replace(REQUEST, engine=replace(REQUEST.engine, gated=True))
    await case.deploy()
    assert cloud.secrets == {"hf_access_token": SECRET}
    cloud.secrets["hf_access_token"] = "the workspace's own"
    assert isinstance(case.backend, BasetenBackend)
    await case.backend._secret(case.request, lambda *_: None)
    assert cloud.secrets == {"hf_access_token": "the workspace's own"}


async def test_a_gated_model_without_any_token_is_refused_before_anything_is_made(
    case: CloudCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    case.request = replace(REQUEST, engine=replace(REQUEST.engine, gated=True))
    error = await case.raises(CredentialsError, case.deploy())
    assert "HF_TOKEN" in (error.hint or "")
    assert REQUEST.name not in case.names()
    assert [row.fix for row in await case.backend.check(case.request) if not row.passed] == [
        "export HF_TOKEN=hf_..."
    ]


def test_truss_knows_every_field_and_accelerator_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    from truss.base.truss_config import TrussConfig

    for gpu, accelerator in push.ACCELERATORS.items():
        config = TrussConfig.from_dict(push.config(replace(REQUEST, gpu=gpu, gpu_count=2)))
        config.validate_forbid_extra()
        assert config.to_dict()["resources"]["accelerator"] == f"{accelerator}:2"
    monkeypatch.setattr(push, "ACCELERATORS", {"L4": "H100MIG"})
    with pytest.raises(ValueError, match="H100MIG"):
        TrussConfig.from_dict(push.config(REQUEST))


async def test_nothing_of_the_users_is_read_or_written_by_a_push(
    case: CloudCase, cloud: FakeBaseten, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the user has there would break the push."""
    home, folders = tmp_path / "home", tmp_path / "folders"
    (home / ".aws").mkdir(parents=True)
    folders.mkdir()
    (home / ".trussrc").write_text("[a]\n[b]\n")
    (home / ".aws" / "config").write_text("[default]\nendpoint_url = http://127.0.0.1:9\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("USER_TRUSSRC_PATH", str(home / ".trussrc"))
    monkeypatch.setenv("AWS_PROFILE", "there-is-none")
    monkeypatch.setenv("BASETEN_TRUSS_AUTH_API_KEY", "another")
    monkeypatch.setattr("tempfile.tempdir", str(folders))
    # Everything else that truss would ask, a package index for a newer truss first of all, is asked by this.
    proxy = socket.create_server(("127.0.0.1", 0))
    proxy.setblocking(False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
    before = dict(os.environ)
    await asyncio.gather(case.deploy(), case.fresh().check(REQUEST))
    assert dict(os.environ) == before
    with proxy, pytest.raises(BlockingIOError):
        proxy.accept()
    assert sorted(path.name for path in home.rglob("*")) == [".aws", ".trussrc", "config"]
    assert list(folders.iterdir()) == []
    assert cloud.labels == {REQUEST.name: {"tuna-deployment": REQUEST.deployment_id}}


def test_the_child_gets_the_key_by_one_variable_and_no_other_secret(tmp_path: Path) -> None:
    account = child.Account("http://a", KEY, None, "sign in")
    ours = {"PATH": "/bin", "HF_TOKEN": SECRET, "RUNPOD_API_KEY": SECRET, "AWS_PROFILE": "mine", "LANG": "C"}
    theirs = child.environment(tmp_path, account, {**ours, "AWS_SECRET_ACCESS_KEY": SECRET, "BASETEN_API_KEY": KEY})
    assert [name for name, value in theirs.items() if value == KEY] == ["BASETEN_TRUSS_AUTH_API_KEY"]
    assert SECRET not in theirs.values()
    assert (theirs["PATH"], theirs["LANG"], "AWS_PROFILE" in theirs) == ("/bin", "C", False)
    assert theirs["HOME"].startswith(str(tmp_path))
    line = child.argv(tmp_path, replace(REQUEST, options={"team": "red team"}))
    assert KEY not in " ".join(line)
    assert line[-1] == "--team=red team"
    assert KEY not in repr(account)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ({"message": "x", "status_code": 401}, CredentialsError, "x"),
        ({"message": "x", "status_code": 400, "response_body": {"errors": [{"message": "y"}]}}, BackendError, "y"),
        ({"message": "your quota is 0", "error_code": "LIMIT"}, CapacityError, "quota"),
        ({"message": "x", "status_code": 502}, UnclearError, "502"),
        ({"message": f"('Connection aborted.', {KEY})"}, UnclearError, "aborted"),
        (None, UnclearError, "the last word"),
    ],
)
def test_a_push_that_fails_is_told_in_trusss_words_and_is_unclear_unless_it_was_refused(
    said: dict[str, Any] | None, kind: type[BackendError], words: str
) -> None:
    out = "" if said is None else json.dumps({"error": said})
    with pytest.raises(BackendError, match=words) as raised:
        child._model("m", 1, out, b"a word\nthe last word\n", child.Account("http://a", KEY, None, "sign in"))
    assert type(raised.value) is kind
    assert KEY not in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("creating", [False, True], ids=["at its start", "in its create"])
async def test_a_push_that_is_cancelled_has_ended_and_what_it_made_is_found(
    case: CloudCase, cloud: FakeBaseten, monkeypatch: pytest.MonkeyPatch, creating: bool
) -> None:
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def seen(*argv: Any, **how: Any) -> asyncio.subprocess.Process:
        process = await start(*argv, **how)
        started.extend([process] if "push" in argv else [])
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", seen)
    if creating:
        cloud.faults.order(Fault(hangs=True, acts=True), case.create)
    deploying = asyncio.create_task(case.deploy())
    while not (REQUEST.name in case.names() if creating else started):
        await asyncio.sleep(0.005)
    for _ in range(2):
        deploying.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError):
        await deploying
    assert [process.returncode for process in started] == [-signal.SIGTERM]
    cloud.faults.clear()
    assert [ref.name for ref in await case.backend.list_owned()] == ([REQUEST.name] if creating else [])


async def test_whoever_is_quicker_with_a_name_has_the_model_and_the_other_a_deployment_of_it(
    case: CloudCase, cloud: FakeBaseten
) -> None:
    account = child.Account(cloud.url, KEY, f"{cloud.url}/s3", "sign in")
    said: list[str] = []
    pushes = [child.run(REQUEST, account, lambda text, _: said.append(text), 1.0) for _ in range(2)]
    assert await pushes[0] == await pushes[1]
    assert case.names().count(REQUEST.name) == 1
    assert said == [f"truss pushes {REQUEST.name}"] * 2


async def test_the_scaling_is_set_in_basetens_words(case: CloudCase, cloud: FakeBaseten) -> None:
    scaling = ServerlessScaling(concurrency=12, scaledown_window=90, workers_min=0, workers_max=3)
    case.request = replace(REQUEST, scaling=scaling, options={"autoscaling_window": "30"})
    endpoint = await case.deploy()
    [told] = [body["autoscaling_settings"] for body in cloud.bodies if "autoscaling_settings" in body]
    assert told == {
        "min_replica": 0,
        "max_replica": 3,
        "concurrency_target": 12,
        "scale_down_delay": 90,
        "autoscaling_window": 30,
        "target_utilization_percentage": 70,
    }
    await case.backend.scale(endpoint.ref, replace(scaling, workers_max=4))
    [_, again] = [body["autoscaling_settings"] for body in cloud.bodies if "autoscaling_settings" in body]
    assert again["max_replica"] == 4
    assert "autoscaling_window" not in again, "what scaling does not tell stays as it is"


async def test_a_build_is_told_as_it_goes_and_a_failed_one_in_the_builders_words_leaves_nothing(
    case: CloudCase, cloud: FakeBaseten
) -> None:
    cloud.broken, cloud.build_looks = "manifest unknown", 10
    plan, said = await case.backend.plan(REQUEST), []
    error = await case.raises(BackendError, case.backend.deploy(plan, lambda text, _: said.append(text)))
    assert "BUILD_FAILED" in error.message
    assert "manifest unknown" in error.message
    assert REQUEST.name not in case.names()
    assert any("is model m" in text for text in said)
    assert any("building" in text for text in said)


async def test_an_engine_that_crashes_is_unhealthy_and_bills(case: CloudCase, cloud: FakeBaseten) -> None:
    case.request = replace(REQUEST, engine=Engine("m", args=("--disable-log-requests",)))
    cloud.free_gpus = False
    endpoint = await case.deploy()
    cloud.free_gpus = True
    status = await case.until_state(endpoint.ref, State.FAILED)
    assert (status.detail, status.billing) == ("UNHEALTHY", True)


async def test_a_log_longer_than_a_page_is_whole_and_a_followed_one_goes_on(
    case: CloudCase, cloud: FakeBaseten
) -> None:
    cloud.build_s = 0.3
    endpoint = await case.deploy()
    [service] = cloud._services.values()
    began = time.time() - 0.1
    service.lines += [(began + number / 1000, "r9", f"line {number}") for number in range(20)]
    lines = [line async for line in case.backend.logs(endpoint.ref, since=began - 1)]
    assert [line.text for line in lines if line.source == "r9"] == [f"line {number}" for number in range(20)]
    following = case.backend.logs(endpoint.ref, follow=True)
    seen: list[str] = []
    async with asyncio.timeout(10):
        async for line in following:
            seen.append(line.text)
            if line.text == "line 19":
                service.lines.append((time.time(), "r9", "the last"))
            if line.text == "the last":
                break
    assert len([text for text in seen if text == "line 3"]) == 1


async def test_a_rate_limit_in_the_body_is_honoured(case: CloudCase, cloud: FakeBaseten) -> None:
    class Limited(Fault):
        @property
        def body(self) -> bytes:
            return json.dumps({"error": "Rate limit exceeded.", "retry_after": 0.4}).encode()

    cloud.faults.order(Limited(429), "GET /v1/models")
    began = time.monotonic()
    assert await case.backend.list_owned() == []
    assert time.monotonic() - began >= 0.4


async def test_an_upload_that_fails_is_tried_again_or_told(case: CloudCase, cloud: FakeBaseten) -> None:
    class Denied(Fault):
        @property
        def body(self) -> bytes:
            return b"<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>"

    cloud.faults.order(Fault(503, acts=True), "PUT /s3/")
    await case.deploy()
    cloud.faults.order(Denied(403), "PUT /s3/", times=10**6)
    case.request = replace(REQUEST, name="tuna-test-0123456780-serverless")
    error = await case.raises(BackendError, case.deploy())
    assert "AccessDenied" in error.message
    assert case.request.name not in case.names()


async def test_a_team_that_is_not_there_is_told_with_those_that_are(case: CloudCase) -> None:
    case.request = replace(REQUEST, options={"team": "red"})
    error = await case.raises(BackendError, case.deploy())
    assert "'red' does not exist. Available teams: team" in error.message


async def test_prices_are_of_whole_instances(case: CloudCase, monkeypatch: pytest.MonkeyPatch) -> None:
    two = replace(REQUEST, gpu_count=2)
    assert (await case.backend.plan(two)).price_per_hour_usd == pytest.approx(0.041 * 60)
    monkeypatch.delenv("BASETEN_API_KEY")
    assert (await case.backend.plan(two)).price_per_hour_usd == pytest.approx(0.04002 * 60)
    assert (await case.backend.plan(replace(REQUEST, gpu="V100"))).price_per_hour_usd is None
    assert not case.backend.configured()


async def test_a_gpu_that_baseten_lists_nowhere_is_a_failed_row(case: CloudCase) -> None:
    rows = await case.backend.check(replace(REQUEST, gpu="B200"))
    assert [row.name for row in rows if not row.passed] == ["gpu"]


async def test_settings_that_baseten_refuses_are_refused_in_the_plan(case: CloudCase) -> None:
    changes: list[dict[str, Any]] = [
        {"gpu": "A10"},
        {"gpu_count": 9},
        {"scaling": ServerlessScaling(scaledown_window=4000)},
        {"scaling": ServerlessScaling(workers_max=0)},
        {"options": {"autoscaling_window": "5"}},
        {"options": {"target_utilization": "0"}},
        {"options": {"hf_secret": "a b"}},
        {"engine": Engine("m", args=("--x=50%",))},
    ]
    for change in changes:
        with pytest.raises(RequestError):
            await case.backend.plan(replace(REQUEST, **change))


def test_the_inference_host_can_be_another_by_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASETEN_INFERENCE_URL", "http://127.0.0.1:9/{model}/")
    assert BasetenBackend()._url({"id": "m1"}) == "http://127.0.0.1:9/m1/environments/production/sync"
    monkeypatch.delenv("BASETEN_INFERENCE_URL")
    assert BasetenBackend()._url({"id": "m1"}) == "https://model-m1.api.baseten.co/environments/production/sync"


async def test_prices_that_can_not_be_asked_are_the_published_ones(case: CloudCase, cloud: FakeBaseten) -> None:
    cloud.faults.order(Fault(500), "POST /graphql/", times=10**6)
    plan = await case.backend.plan(replace(REQUEST, gpu="L4"))
    assert plan.price_per_hour_usd == pytest.approx(0.01414 * 60)
    assert plan.quote is not None
    assert plan.quote.snapshot
    assert "instance type reference" in plan.quote.source
    await case.raises(BackendError, case.backend.prices())


def test_asking_whether_it_is_configured_does_not_load_truss() -> None:
    code = (
        "from tuna_nb.backends.baseten.backend import BasetenBackend; import sys; "
        "assert BasetenBackend().configured(); "
        "assert not {'truss', 'botocore', 'httpx', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "BASETEN_API_KEY": KEY})
