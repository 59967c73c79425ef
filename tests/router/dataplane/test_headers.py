"""Which headers cross the router."""

from __future__ import annotations

from tuna_router.dataplane.headers import request_id_of, upstream_lines
from tuna_router.dataplane.response_head import parse_response_head

from ..backends import Seen, Wire
from ..conftest import KEY, StartBackend, StartRouter


async def test_the_clients_key_never_reaches_a_backend(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(
        backends=[
            {
                "name": "modal",
                "kind": "serverless",
                "url": backend.url,
                "headers": {"Authorization": "Bearer provider-secret", "Modal-Key": "mk"},
            }
        ]
    )
    await router.client.post(
        "/v1/completions",
        json={},
        headers={"x-api-key": KEY, "x-copy": f"again {KEY}", "modal-key": "the client's", "x-kept": "yes"},
    )
    headers = backend.seen[0].headers
    assert headers["authorization"] == "Bearer provider-secret"
    assert headers["modal-key"] == "mk"
    assert headers["x-kept"] == "yes"
    assert headers["host"] == f"127.0.0.1:{backend.port}"
    assert KEY not in str(headers)


async def test_no_credentials_of_a_client_reach_a_backend_that_needs_none(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend)
    await router.client.get("/x", headers={"authorization": "Basic dXNlcjpwdw==", "x-api-key": KEY})
    await router.client.get("/x", headers={"x-api-key": "of another service"})
    for seen in backend.seen:
        assert not {"authorization", "x-api-key"} & seen.headers.keys()
    assert len(backend.seen) == 2


async def test_the_secrets_of_a_backend_never_reach_the_client(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    entry = {"name": "a", "kind": "serverless", "url": backend.url, "headers": {"x-token": "provider-secret"}}
    router = await start_router(backends=[entry])
    answers = [
        await router.complete(),
        await router.client.get("/router/health"),
        await router.client.get("/router/config"),
        await router.client.get("/router/stats"),
        await router.client.get("/metrics"),
    ]
    assert all(answer.status_code == 200 for answer in answers)
    assert "provider-secret" not in "".join(answer.text + str(answer.headers) for answer in answers)


async def test_any_path_query_and_method_is_forwarded_as_written(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def echo(wire: Wire, seen: Seen) -> None:
        await wire.json({"method": seen.method, "target": seen.target, "body": seen.body.decode()})

    router = await start_router(await start_backend(echo))
    for method, target, body in (
        ("GET", "/", ""),
        ("PUT", "/a%2Fb/c%20d?x=1&y=%26&z", "text"),
        ("DELETE", "/v1/files/f-1", ""),
        ("PATCH", "/router-like/x", "p"),
        ("OPTIONS", "/v1/models?a=b", ""),
    ):
        answer = await router.client.request(method, target, content=body)
        assert answer.json() == {"method": method, "target": target, "body": body}


async def test_hop_by_hop_headers_stop_at_the_router(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def nominate(wire: Wire, seen: Seen) -> None:
        await wire.json(
            {}, headers="connection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nx-end: 2\r\n"
        )

    backend = await start_backend(nominate)
    router = await start_router(backend)
    answer = await router.client.get(
        "/x", headers={"connection": "keep-alive, x-mine", "x-mine": "1", "te": "trailers", "x-end": "3"}
    )
    assert "x-hop" not in answer.headers
    assert "keep-alive" not in answer.headers
    assert answer.headers["x-end"] == "2"
    seen = backend.seen[0].headers
    assert "x-mine" not in seen
    assert "te" not in seen
    assert seen["x-end"] == "3"


async def test_the_request_id_is_passed_on_or_made(start_backend: StartBackend, start_router: StartRouter) -> None:
    backend = await start_backend()
    router = await start_router(backend)
    answer = await router.client.get("/x", headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert backend.seen[0].headers["x-request-id"] == "abc-1"
    assert len((await router.client.get("/x")).headers["x-request-id"]) == 32


def test_a_strange_request_id_is_replaced() -> None:
    assert request_id_of(b"abc-1") == b"abc-1"
    assert request_id_of(b"a b") != b"a b"
    assert len(request_id_of(b"x" * 500)) == 32
    assert len({request_id_of(None) for _ in range(1000)}) == 1000


def test_a_backends_own_tuna_headers_are_replaced() -> None:
    head = b"HTTP/1.1 200 OK\r\nX-Tuna-Backend: inner\r\nX-Kept: a=1\r\ncontent-length: 1\r\n\r\n"
    lines = parse_response_head(head, to_head=False).lines
    assert b"X-Kept: a=1\r\n" in lines
    assert b"x-tuna-backend" not in lines.lower()


def test_an_open_router_has_no_key_to_look_for() -> None:
    assert b"x-a: b\r\n" in upstream_lines([(b"x-a", b"b")], frozenset(), None)


def test_a_backend_can_not_nominate_the_length_of_its_body_away() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: content-length, x-a\r\nx-a: 1\r\ncontent-length: 1\r\n\r\n"
    assert parse_response_head(head, to_head=False).lines == b"content-length: 1\r\n"
