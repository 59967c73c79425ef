"""`/router/events`: what happens, told as it happens."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx

from tuna_router.auth import sha256_hex
from tuna_router.dataplane.wheel import Wheel
from tuna_router.told.events import KEPT, MOST_LISTENERS, Events

from ..backends import Seen, Wire
from ..conftest import KEY, Running, StartBackend, StartRouter, until

Event = tuple[str | None, str, Any]


def read(text: str) -> list[Event]:
    """`(id, kind, data)` of each event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


class Listening:
    """A client that reads events until it is closed."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.text = ""
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for piece in self.answer.aiter_text():
            self.text += piece

    def events(self, kind: str | None = None) -> list[Event]:
        return [event for event in read(self.text) if kind is None or event[1] == kind]

    async def until(self, kind: str, matches: Callable[[Any], bool] = lambda data: True) -> Any:
        await until(lambda: any(matches(data) for _, _, data in self.events(kind)), 10)
        return next(data for _, _, data in self.events(kind) if matches(data))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self.answer.aclose()


async def listen(router: Running, query: str = "", **headers: str) -> Listening:
    request = router.client.build_request("GET", f"/router/events{query}", headers=headers)
    return Listening(await router.client.send(request, stream=True))


async def test_a_snapshot_has_what_a_dashboard_shows(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def story(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for number in range(20):
            await wire.token(f" {number}", None if number < 19 else "stop")
        await wire.done()

    fleet, one, two = await start_backend(story), await start_backend(story), await start_backend(story)
    backends: list[dict[str, Any]] = [
        {"name": "spot", "kind": "spot", "url": fleet.url},
        {"name": "spot.1", "kind": "spot", "url": one.url, "balancer": "spot"},
        {"name": "spot.2", "kind": "spot", "url": two.url, "balancer": "spot"},
        {"name": "serverless", "kind": "serverless", "url": fleet.url},
    ]
    router = await start_router(backends=backends)
    await until(lambda: all(spot.state_name == "READY" for spot in router.router.core.fleet.spots))
    events = await listen(router)
    assert (await events.until("snapshot"))["totals"] == dict.fromkeys(
        ("started", "finished", "failed", "cancelled", "resumed", "retries"), 0
    )
    for _ in range(4):
        await router.complete(stream=True)
    shown = await events.until("snapshot", lambda data: data["totals"]["finished"] == 4)
    assert shown["serverless_use"] == "always"
    assert shown["tokens_per_s"] > 0
    told = shown["backends"]
    assert list(told) == ["spot", "spot.1", "spot.2", "serverless"]
    assert told["spot"]["replicas"] == {"spot.1": "READY", "spot.2": "READY"}
    assert sum(told[name]["finished"] for name in ("spot.1", "spot.2")) == 4
    assert sum(told[name]["share"] for name in told) == 1.0
    used = next(told[name] for name in ("spot.1", "spot.2") if told[name]["finished"])
    assert used["ttft_s"]["p50"] <= used["ttft_s"]["p95"]
    assert used["inter_token_s"]["p50"] is not None
    assert used["running"] == 0
    assert told["serverless"]["ttft_s"] == {"p50": None, "p95": None}
    await events.close()


async def test_state_changes_preemptions_and_backends_are_told_and_a_snapshot_each_second(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot = await start_backend()
    router = await start_router(await start_backend(), spot)
    events = await listen(router)
    assert events.answer.headers["content-type"] == "text/event-stream"
    first = await events.until("snapshot")
    assert first["states"] == {"serverless": "READY", "spot": "READY"}
    assert first.keys() >= {"requests_per_s", "split", "in_flight", "waiting", "ttft_s", "usd_per_hour"}
    await router.complete(stream=True)
    busy = await events.until("snapshot", lambda data: data["requests_per_s"] > 0)
    assert busy["split"]["spot"] == 1
    assert busy["ttft_s"]["p50"] > 0
    await router.client.post("/router/spot-replicas", json={"ready": 0, "draining": 1})
    change = await events.until("state", lambda data: data["to"] == "DRAINING")
    assert (change["backend"], change["from"]) == ("spot", "READY")
    assert (await events.until("preemption"))["backend"] == "spot"
    await router.client.post("/router/config", json={"backends": [{"kind": "spot", "name": "b", "url": spot.url}]})
    changes = {(data["backend"], data["change"]) for _, _, data in events.events("backend")}
    assert changes == {("spot", "removed"), ("serverless", "removed"), ("b", "added")}
    await events.close()
    await until(lambda: not router.router.core.events.listeners)


async def test_whoever_comes_back_gets_what_was_missed(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend())
    hub = router.router.core.events
    for number in range(5):
        hub.publish("note", {"number": number})
    events = await listen(router, "?snapshots=no", **{"last-event-id": "3"})
    await until(lambda: len(events.events()) == 2)
    assert [(event[0], event[2]["number"]) for event in events.events()] == [("4", 3), ("5", 4)]
    hub.publish("note", {"number": 5})
    await events.until("note", lambda data: data["number"] == 5)
    await events.close()
    for number in range(2 * KEPT):
        hub.publish("note", {"number": number})
    late = await listen(router, "?snapshots=no", **{"last-event-id": "6"})
    await until(lambda: len(late.events()) == KEPT + 1)
    assert late.events()[0] == (None, "dropped", {"count": KEPT})
    await late.close()
    another = await listen(router, "?snapshots=no", **{"last-event-id": "999999"})
    await until(lambda: len(another.events()) == KEPT + 1)  # of an earlier life of this router
    await another.close()


async def test_a_reader_that_does_not_read_loses_events_and_is_told_and_costs_no_memory(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend())
    hub = router.router.core.events
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", router.port))
    await loop.sock_sendall(sock, f"GET /router/events?snapshots=no HTTP/1.0\r\nx-api-key: {KEY}\r\n\r\n".encode())
    await until(lambda: len(hub.listeners) == 1)
    sent = 0
    connection = next(iter(router.server.connections))
    while not connection.write_paused or sent < 20_000:
        for _ in range(100):
            hub.publish("note", {"number": sent, "text": "x" * 500})
            sent += 1
        await asyncio.sleep(0)
    assert connection.unsent_bytes < 1024 * 1024
    text, last = bytearray(), f'"number":{sent - 1},'.encode()
    async with asyncio.timeout(60):
        while last not in text[-2000:] or not text.endswith(b"\n\n"):
            text += await loop.sock_recv(sock, 1 << 20)
    body = text.decode().partition("\r\n\r\n")[2]
    got = read(body)
    dropped = sum(data["count"] for _, kind, data in got if kind == "dropped")
    assert dropped > 0
    assert dropped + len([1 for _, kind, _ in got if kind == "note"]) == sent
    sock.close()
    await until(lambda: not hub.listeners)


async def test_a_client_key_may_read_and_nobody_else(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(), admin_key_sha256=[sha256_hex("admin")])
    events = await listen(router)
    assert events.answer.status_code == 200
    await events.close()
    assert (await router.client.get("/router/events", headers={"authorization": "Bearer x"})).status_code == 401
    assert (await router.client.post("/router/events", json={})).status_code == 405
    assert (await router.client.head("/router/events")).status_code == 200


class Kept:
    """A listener that keeps what it is told."""

    wants_snapshots = True

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.ended = False

    def push(self, frame: bytes) -> None:
        self.frames.append(frame)

    def end(self) -> None:
        self.ended = True


async def test_snapshots_are_taken_only_while_somebody_listens() -> None:
    now, taken = [0.0], list[float]()
    wheel = Wheel(clock=lambda: now[0])

    def snapshot() -> dict[str, Any]:
        taken.append(now[0])
        return {}

    events = Events(lambda: now[0], lambda: 0.0, wheel.timer, snapshot)
    quiet, loud = Kept(), Kept()
    quiet.wants_snapshots = False

    def pass_a_second() -> None:
        now[0] += 1.1
        wheel.turn()

    events.listen(quiet, None)
    pass_a_second()
    assert not taken
    events.listen(loud, None)
    for _ in range(3):
        pass_a_second()
    assert len(taken) == 4
    events.leave(loud)
    for _ in range(3):
        pass_a_second()
    assert len(taken) == 4
    assert not quiet.frames
    events.close()
    assert quiet.ended
    wheel.stop()


def test_what_happens_with_every_request_is_told_seldom_and_there_is_an_end_to_listeners() -> None:
    now = [0.0]
    wheel = Wheel(clock=lambda: now[0])
    events, kept = Events(lambda: now[0], lambda: 7.0, wheel.timer, dict), Kept()
    kept.wants_snapshots = False
    events.listen(kept, None)
    for _ in range(5):
        events.publish_seldom("limit", "alice", {"key": "alice"})
        events.publish_seldom("limit", "bob", {"key": "bob"})
    assert len(kept.frames) == 2
    now[0] = 11.0
    events.publish_seldom("limit", "alice", {"key": "alice"})
    assert len(kept.frames) == 3
    for _ in range(MOST_LISTENERS - 1):
        extra = Kept()
        extra.wants_snapshots = False
        assert events.listen(extra, None)
    assert not events.listen(Kept(), None)
