"""The control plane does what its OpenAPI says, whatever is sent to it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tuna_router.app import Router
from tuna_router.auth import sha256_hex
from tuna_router.serving import Server, bind
from tuna_router.settings import parse_settings

schemathesis = pytest.importorskip("schemathesis")

ADMIN, CLIENT = "admin-key-1", "client-key-1"
OPEN = {("GET", "/router/stats"), ("GET", "/metrics")}
"""What a client key may ask for."""


class Thread:
    """A router on a loop of its own: what asks it here blocks."""

    def __init__(self) -> None:
        self.url = ""
        self.router: Router | None = None
        self._listens = threading.Event()
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Thread:
        self._thread.start()
        assert self._listens.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._loop is not None
        assert self._server is not None
        for _ in range(2):
            self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        settings = {"api_key_sha256": [sha256_hex(CLIENT)], "admin_key_sha256": [sha256_hex(ADMIN)]}
        backends = [
            {"kind": "spot", "url": "http://127.0.0.1:9"},
            {"kind": "serverless", "url": "http://127.0.0.1:9"},
        ]
        self.router = Router(parse_settings({**settings, "backends": backends}))
        sock = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self._server, self._loop = Server(self.router, 1), asyncio.get_running_loop()
        await self.router.start()
        self._listens.set()
        await self._server.serve(sock)
        await self.router.stop()


@pytest.fixture(scope="module")
def served() -> Iterator[Thread]:
    with Thread() as thread:
        yield thread


def ask(served: Thread, method: str, path: str, key: str | None, **more: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.request(method, served.url + path, headers=headers, trust_env=False, verify=False, **more)


@pytest.fixture(scope="module")
def openapi(served: Thread) -> dict[str, Any]:
    found: dict[str, Any] = ask(served, "GET", "/router/openapi.json", ADMIN).json()
    return found


def operations(openapi: dict[str, Any]) -> list[tuple[str, str]]:
    return [(method.upper(), path) for path, item in openapi["paths"].items() for method in item]


def test_every_endpoint_of_the_control_plane_is_in_it(openapi: dict[str, Any]) -> None:
    assert set(operations(openapi)) == {
        ("GET", "/router/config"),
        ("POST", "/router/config"),
        ("PUT", "/router/backends/{name}/headers"),
        ("PUT", "/router/backends/{name}/replicas"),
        ("POST", "/router/spot-replicas"),
        ("POST", "/router/spot-replicas/{name}/notice"),
        ("GET", "/router/stats"),
        ("GET", "/router/load"),
        ("GET", "/router/budget"),
        ("PUT", "/router/budget"),
        ("DELETE", "/router/budget"),
        ("GET", "/router/keys"),
        ("POST", "/router/keys"),
        ("DELETE", "/router/keys/{name}"),
        ("GET", "/metrics"),
    }


def test_nothing_is_read_or_written_without_the_right_key(served: Thread, openapi: dict[str, Any]) -> None:
    assert served.router is not None
    before = served.router.core.settings
    for method, path in operations(openapi):
        for key, status in ((None, 401), ("wrong", 401), (CLIENT, 200 if (method, path) in OPEN else 403)):
            body = {"json": {"max_concurrency": 1}} if method == "POST" else {}
            assert ask(served, method, path.replace("{name}", "admin"), key, **body).status_code == status, path
    assert served.router.core.settings is before


def test_whatever_is_sent_it_answers_as_it_says_and_never_with_a_5xx(
    served: Thread, openapi: dict[str, Any]
) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_dict(openapi)
    schema.config.update(base_url=served.url)
    checks = (
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    )
    quick = settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    good, bad = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    calls: Counter[str] = Counter()

    def call(case: Any) -> None:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        answer = case.call_and_validate(headers=headers, checks=checks, timeout=10)
        calls[f"{case.method} {answer.status_code}"] += 1

    for result in schema.get_all_operations():
        operation = result.ok()
        # Without a body there is nothing that could be of a wrong form.
        for mode in (good, bad) if operation.method.upper() == "POST" else (good,):
            quick(given(operation.as_strategy(generation_mode=mode))(call))()
    assert {"GET 200", "POST 200", "POST 201", "POST 400", "POST 422", "DELETE 404"} <= calls.keys(), calls
    assert ask(served, "GET", "/router/config", ADMIN).status_code == 200, "no key was lost on the way"
