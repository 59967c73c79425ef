"""Keys."""

from __future__ import annotations

import httpx
import pytest

from tuna_router.auth import Role, key_of, sha256_hex
from tuna_router.keys.live import Guard
from tuna_router.settings import parse_settings

from .conftest import KEY, StartBackend, StartRouter

CLIENT, ADMIN = sha256_hex("client"), sha256_hex("admin")


def guard(clients: list[str], admins: list[str] | None = None, *, open_door: bool = False) -> Guard:
    made = Guard()
    settings = parse_settings({"api_key_sha256": clients, "admin_key_sha256": admins or []})
    made.configure(settings.all_keys, open_door=open_door, now=0.0)
    return made


def test_client_keys_administrate_only_while_there_is_no_admin_key() -> None:
    assert guard([CLIENT]).role(b"client") is Role.ADMIN
    assert guard([CLIENT], [ADMIN]).role(b"client") is Role.CLIENT
    assert guard([CLIENT], [ADMIN]).role(b"admin") is Role.ADMIN
    assert guard([CLIENT], [CLIENT]).role(b"client") is Role.ADMIN, "in both lists"


def test_nobody_gets_in_without_a_key_unless_the_door_is_open() -> None:
    assert guard([CLIENT]).role(None) is Role.NOBODY
    assert guard([CLIENT]).role(b"wrong") is Role.NOBODY
    assert guard([]).role(b"") is Role.NOBODY
    assert guard([], open_door=True).role(None) is Role.ADMIN
    assert guard([], [ADMIN], open_door=True).role(None) is Role.CLIENT
    assert guard([], [ADMIN], open_door=True).role(b"wrong") is Role.CLIENT


def test_a_key_is_read_from_either_header() -> None:
    assert key_of({b"authorization": b"bearer  abc "}) == b"abc"
    assert key_of({b"x-api-key": b"abc"}) == b"abc"
    assert key_of({b"authorization": b"Basic abc", b"x-api-key": b"k"}) == b"k"
    assert key_of({b"authorization": b"Bearer "}) is None


@pytest.mark.parametrize(
    "path", ["/v1/models", "/", "/metrics", "/router/stats", "/router/config", "/router/nothing"]
)
async def test_everything_but_health_needs_the_key(
    start_backend: StartBackend, start_router: StartRouter, path: str
) -> None:
    backend = await start_backend()
    router = await start_router(backend)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{router.port}", trust_env=False, verify=False
    ) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": KEY[:-1]}):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get("/router/health")).status_code == 200
        assert (await client.get(path, headers={"x-api-key": KEY})).status_code in (200, 404)
    assert len(backend.seen) <= 1


async def test_with_an_admin_key_a_client_can_read_but_not_change(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(), admin_key_sha256=[ADMIN])
    assert (await router.complete()).status_code == 200
    assert (await router.client.get("/router/stats")).status_code == 200
    for method in ("GET", "POST"):
        answer = await router.client.request(method, "/router/config", json={})
        assert answer.status_code == 403
    assert (await router.client.post("/router/spot-replicas", json={"replicas": 0})).status_code == 403
    as_admin = {"authorization": "Bearer admin"}
    assert (await router.client.get("/router/config", headers=as_admin)).status_code == 200
    assert (await router.client.get("/v1/x", headers=as_admin)).status_code == 200


async def test_without_keys_a_web_page_of_another_site_can_not_use_the_router(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend, no_auth=True)
    here = f"127.0.0.1:{router.port}"
    # The second is a page that gave its own name this machine's address after it was loaded.
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "https://evil.example", "host": "evil.example"},
        {"host": f"evil.example:{router.port}"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{router.port + 1}"},
    ):
        for path in (
            "/router/config",
            "/router/health",
            "/router/events",
            "/metrics",
            "/v1/models",
            "/v1/chat/completions",
        ):
            answer = await router.client.post(path, json={}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site"), (path, headers)
    assert not backend.seen
    for headers in (
        {},
        {"origin": f"http://{here}"},
        *({"host": host} for host in ("localhost", "a.localhost:1", "[::1]:80")),
    ):
        assert (await router.client.get("/v1/models-here", headers=headers)).status_code == 200, headers
        changed = await router.client.post("/router/config", json={"max_concurrency": 7}, headers=headers)
        assert changed.status_code == 200, headers


async def test_with_keys_any_name_and_origin_will_do(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend())
    headers = {"origin": "https://app.example", "host": "api.example"}
    assert (await router.client.get("/v1/x", headers=headers)).status_code == 200


async def test_without_a_key_health_tells_states_and_nothing_else(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend, spot = await start_backend(), await start_backend()
    router = await start_router(backend, spot)
    await spot.stop()
    assert (await router.complete()).status_code == 200
    full = (await router.client.get("/router/health")).json()
    assert full["serverless_base_url"] == backend.url
    assert {b["name"]: b["last_error"] for b in full["backends"]}["spot"]
    for headers in ({"authorization": ""}, {"authorization": "Bearer wrong"}):
        answer = await router.client.get("/router/health", headers=headers)
        shown = answer.json()
        assert shown.keys() == {"status", "version", "skyserve_ready", "spot_state", "backends"}
        assert [(b.keys(), b["name"]) for b in shown["backends"]] == [
            ({"name", "state"}, "serverless"),
            ({"name", "state"}, "spot"),
        ]
        assert "127.0.0.1" not in answer.text


async def test_an_encoded_path_does_not_get_around_the_control_planes_key(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend, admin_key_sha256=[ADMIN])
    answer = await router.client.get("/%72outer/config")
    assert answer.status_code == 403
    assert not backend.seen
