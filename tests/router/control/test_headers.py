"""A backend's headers, changed while it serves: tokens expire."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuna_router.settings import MASK
from tuna_router.state import load

from ..conftest import StartBackend, StartRouter


async def test_renewed_headers_open_a_backend_from_the_next_request_on(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    backend, other = await start_backend(), await start_backend()
    backends = [
        {
            "name": "a",
            "kind": "serverless",
            "url": backend.url,
            "headers": {"Authorization": "Bearer old", "x-a": "1"},
        },
        {"name": "b", "kind": "serverless", "url": other.url, "headers": {"x-b": "2"}, "weight": 0},
    ]
    path = tmp_path / "config.json"
    router = await start_router(backends=backends, save_to=path)
    known = router.router.core.fleet["a"]
    await router.complete()
    answer = await router.client.put(
        "/router/backends/a/headers", json={"headers": {"Authorization": "Bearer new"}}
    )
    assert answer.json() == {"ok": True, "backend": "a", "headers": ["authorization"]}
    await router.complete()
    assert [seen.headers.get("authorization") for seen in backend.seen] == ["Bearer old", "Bearer new"]
    assert "x-a" not in backend.seen[1].headers
    assert router.router.core.fleet["a"] is known, "it keeps what was learned"
    assert router.router.core.fleet["b"].settings.headers == {"x-b": "2"}
    assert load(path).backends[0].headers == {"authorization": "Bearer new"}, "a restart has it too"


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("nobody", {"headers": {}}, 404),
        ("a", {}, 422),
        ("a", {"headers": ["x"]}, 422),
        ("a", {"headers": {"host": "x"}}, 422),
        ("a", {"headers": {"x-new": MASK}}, 422),
        ("a", {"headers": {"x": "1"}, "url": "http://evil.example"}, 422),
    ],
)
async def test_headers_that_can_not_be_change_nothing(
    start_backend: StartBackend, start_router: StartRouter, name: str, body: dict[str, object], status: int
) -> None:
    backend = await start_backend()
    backends = [{"name": "a", "kind": "serverless", "url": backend.url, "headers": {"x-a": "1"}}]
    router = await start_router(backends=backends)
    answer = await router.client.put(f"/router/backends/{name}/headers", json=body)
    assert answer.status_code == status, answer.text
    assert router.router.core.fleet["a"].settings.headers == {"x-a": "1"}
