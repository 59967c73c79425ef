"""The sidecar as a replica runs it: the program as a child process, against metadata services over loopback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.faults import Fault
from tests.router.conftest import free_port
from tuna_nb.backends.skyserve import sidecar

KEY = "tuna-sidecar-key"
NOT_FOUND = PlainTextResponse("404 - Not Found", 404)


class Metadata(FakeCloud):
    """All three clouds' metadata services, each as strict about its headers as the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.action: dict[str, str] | None = None
        self.preempted = "FALSE"
        self.maintenance = "NONE"
        self.events: list[dict[str, Any]] = []

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/latest/api/token", self._token, methods=["PUT"]),
            Route("/latest/meta-data/spot/instance-action", self._action),
            Route("/computeMetadata/v1/instance/preempted", self._google(lambda: self.preempted)),
            Route("/computeMetadata/v1/instance/maintenance-event", self._google(lambda: self.maintenance)),
            Route("/metadata/instance/compute/name", self._azure(lambda: "vm-1")),
            Route(
                "/metadata/scheduledevents",
                self._azure(lambda: json.dumps({"DocumentIncarnation": 1, "Events": self.events})),
            ),
        ]

    async def _token(self, request: Request) -> Response:
        if "x-aws-ec2-metadata-token-ttl-seconds" not in request.headers:
            return PlainTextResponse("", 400)
        self.tokens += 1
        return PlainTextResponse(f"token-{self.tokens}")

    async def _action(self, request: Request) -> Response:
        if request.headers.get("x-aws-ec2-metadata-token") != f"token-{self.tokens}":
            return PlainTextResponse("", 401)
        return NOT_FOUND if self.action is None else PlainTextResponse(json.dumps(self.action))

    @staticmethod
    def _google(told: Callable[[], str]) -> Any:
        async def answer(request: Request) -> Response:
            good = request.headers.get("metadata-flavor") == "Google"
            return PlainTextResponse(told(), 200 if good else 403)

        return answer

    @staticmethod
    def _azure(told: Callable[[], str]) -> Any:
        async def answer(request: Request) -> Response:
            good = request.headers.get("metadata") == "true" and "api-version" in request.query_params
            return PlainTextResponse(told(), 200 if good else 400)

        return answer


class Replica:
    """The sidecar of one."""

    def __init__(self, cloud: str, metadata: Metadata) -> None:
        self.metadata, self.port = metadata, free_port()
        words = ["--cloud", cloud, "--host", "127.0.0.1", "--port", str(self.port)]
        env = {
            "VLLM_API_KEY": KEY,
            f"TUNA_METADATA_{cloud.upper()}": metadata.url,
            "http_proxy": "http://127.0.0.1:9",
        }
        self.process = subprocess.Popen([sys.executable, "-S", str(Path(sidecar.__file__)), *words], env=env)

    async def asked(self, key: str = KEY, path: str = "/notice") -> httpx.Response:
        end = time.monotonic() + 20
        async with httpx.AsyncClient(trust_env=False) as http:
            while True:
                try:
                    return await http.get(
                        f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {key}"}
                    )
                except httpx.TransportError:
                    assert time.monotonic() < end, "it does not listen"
                    await asyncio.sleep(0.05)

    async def looks_again(self) -> None:
        """It has asked for everything once more."""
        calls = self.metadata.faults.calls
        seen = len(calls)
        end = time.monotonic() + 20
        while len(calls) < seen + 4:
            assert time.monotonic() < end, "it no longer looks"
            await asyncio.sleep(0.02)

    async def notice(self) -> float:
        """Seconds of the notice, when it comes."""
        end = time.monotonic() + 20
        while (told := await self.asked()).status_code == 204:
            assert time.monotonic() < end, "no notice"
            await asyncio.sleep(0.05)
        return float(told.json()["seconds"])


@pytest.fixture
async def replica(request: pytest.FixtureRequest) -> AsyncIterator[Replica]:
    with Metadata() as metadata:
        made = Replica(request.param, metadata)
        yield made
        made.process.kill()
        made.process.wait()


def at(cloud: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("replica", [cloud], indirect=True)


@pytest.mark.parametrize("replica", ["aws", "gcp", "azure"], indirect=True)
async def test_all_is_well_until_there_is_a_notice_and_only_the_key_is_told(replica: Replica) -> None:
    assert (await replica.asked()).status_code == 204
    assert (await replica.asked(key="wrong")).status_code == 401
    assert (await replica.asked(path="/else")).status_code == 404


@at("aws")
async def test_aws_tells_two_minutes_before(replica: Replica) -> None:
    assert (await replica.asked()).status_code == 204
    ends = datetime.now(UTC) + timedelta(seconds=120)
    replica.metadata.action = {"action": "terminate", "time": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert 110 < await replica.notice() <= 120


@at("aws")
async def test_a_token_that_is_refused_is_asked_for_anew(replica: Replica) -> None:
    await replica.asked()
    while not replica.metadata.tokens:
        await asyncio.sleep(0.02)
    replica.metadata.tokens += 5  # as after a restart of the service
    replica.metadata.action = {"action": "stop", "time": "2026-01-01T00:00:00Z"}
    assert await replica.notice() == 0


@at("gcp")
async def test_google_tells_half_a_minute_before(replica: Replica) -> None:
    assert (await replica.asked()).status_code == 204
    replica.metadata.preempted = "TRUE"
    first = await replica.notice()
    assert 20 < first <= 30
    await asyncio.sleep(0.3)
    assert await replica.notice() < first


@at("gcp")
async def test_google_maintenance_that_ends_the_machine_is_a_notice_and_migration_is_none(replica: Replica) -> None:
    replica.metadata.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    await replica.looks_again()
    assert (await replica.asked()).status_code == 204
    replica.metadata.maintenance = "TERMINATE_ON_HOST_MAINTENANCE"
    assert 30 < await replica.notice() <= 60


@at("azure")
async def test_azure_tells_of_this_machine_and_not_of_another(replica: Replica) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=45), usegmt=True)
    other = {"EventId": "A", "EventType": "Preempt", "Resources": ["vm-2"], "NotBefore": soon}
    frozen = {"EventId": "B", "EventType": "Freeze", "Resources": ["vm-1"], "NotBefore": soon}
    replica.metadata.events = [other, frozen]
    await replica.looks_again()
    assert (await replica.asked()).status_code == 204
    replica.metadata.events.append(
        {"EventId": "C", "EventType": "Preempt", "Resources": ["vm-1"], "NotBefore": soon}
    )
    assert 30 < await replica.notice() <= 45


@at("azure")
async def test_an_azure_event_that_has_begun_has_no_date_and_little_time(replica: Replica) -> None:
    replica.metadata.events = [{"EventId": "C", "EventType": "Preempt", "Resources": ["vm-1"], "NotBefore": ""}]
    assert 0 < await replica.notice() <= 30


@at("aws")
async def test_a_metadata_service_that_fails_takes_no_notice_back(replica: Replica) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=120)
    replica.metadata.action = {"action": "terminate", "time": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
    await replica.notice()
    replica.metadata.faults.order(Fault(500), times=10**6)
    await replica.looks_again()
    assert (await replica.asked()).status_code == 200


def test_it_ends_with_its_engine() -> None:
    """Its parent here is a shell that goes away, as the engine's does."""
    with Metadata() as metadata:
        port = free_port()
        program = f"{sys.executable} -S {sidecar.__file__} --cloud aws --host 127.0.0.1 --port {port}"
        env = {"VLLM_API_KEY": KEY, "TUNA_METADATA_AWS": metadata.url}
        shell = f"{program} </dev/null >/dev/null 2>&1 & echo $!; exec sleep 1.5"
        told = subprocess.run(["/bin/sh", "-c", shell], env=env, capture_output=True, text=True, check=True)
        left = Path(f"/proc/{told.stdout.strip()}/stat")
        end = time.monotonic() + 10
        while left.exists() and left.read_text().split()[2] != "Z":
            assert time.monotonic() < end, "it is still there"
            time.sleep(0.05)


def test_it_needs_nothing_but_the_standard_library() -> None:
    import ast

    tree = ast.parse(Path(sidecar.__file__).read_text())
    names = {n.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    names |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)
    ast.parse(Path(sidecar.__file__).read_text(), feature_version=(3, 8))
