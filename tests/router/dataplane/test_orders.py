"""Whatever comes in whatever order, a request ends once, is counted once, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.app import Router
from tuna_router.dataplane.account import Account
from tuna_router.dataplane.exchange import Exchange
from tuna_router.dataplane.forward import Forward
from tuna_router.dataplane.relay import Relay
from tuna_router.dataplane.resuming import Resuming
from tuna_router.dataplane.stream import Stream
from tuna_router.resume.recorder import Recorder
from tuna_router.spot import Notice

from .scripted import KEY, TEXT, WORDS, Client, Engine, ScriptedLoop, scripted_router, stream_of

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ANSWER = json.dumps({"choices": [{"text": TEXT}], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}).encode()
KINDS = ("chat", "completion", "usage", "once", "http10", "plain", "n", "sampled")
ACTIONS = (
    "piece", "body", "say", "say", "say", "say", "all", "accept", "accept", "accept", "accept", "refuse", "take",
    "take", "take", "reset", "closed", "wait", "long", "full", "empty", "gone", "stop", "move", "good",
)  # fmt: skip
LIKELY = ("take", "say", "say", "accept", "reset")


class Scene:
    """One client's request and what happens around it."""

    def __init__(self, loop: ScriptedLoop, router: Router, kind: str) -> None:
        self.loop = loop
        self.router = router
        self.kind = kind
        self.engines: list[Engine] = []
        self.client = Client(router)
        self.begun = self.gone = self.stopped = False
        body = json.dumps(self._asked()).encode()
        version = b"1.0" if kind == "http10" else b"1.1"
        path = b"/v1/completions" if kind in ("completion", "n") else b"/v1/chat/completions"
        lines = b"x-tuna-side-effects: true\r\n" if kind == "once" else b""
        head = b"POST %b HTTP/%b\r\nhost: h\r\nx-api-key: %b\r\n%b" % (path, version, KEY.encode(), lines)
        self.to_send = b"%bcontent-length: %d\r\n\r\n" % (head, len(body)) + body

    def _asked(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": "m", "stream": self.kind != "plain", "max_tokens": len(WORDS)}
        body["temperature"] = 1 if self.kind == "sampled" else 0
        if self.kind in ("completion", "n"):
            body["prompt"] = "p"
        else:
            body["messages"] = [{"role": "user", "content": "p"}]
        if self.kind == "usage":
            body["stream_options"] = {"include_usage": True}
        if self.kind == "n":
            body["n"] = 2
        return body

    async def turn(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    def send(self, size: int) -> None:
        """The next bytes of the request."""
        if self.client.closed or not self.client.reading or not self.to_send:
            return
        self.begun = True
        piece, self.to_send = self.to_send[:size], self.to_send[size:]
        self.client.protocol.data_received(piece)

    async def act(self, action: str, number: int) -> None:
        client, engines = self.client, [e for e in self.engines if not e.closed]
        engine = engines[number % len(engines)] if engines else None
        dials = self.loop.dials
        if action == "piece":
            self.send(1 + number % 200)
        elif action == "body":
            self.send(100_000)
        elif action == "accept" and dials:
            accepted = dials[number % len(dials)].accept()
            if accepted is not None:
                self.engines.append(accepted)
        elif action == "refuse" and dials:
            dials[number % len(dials)].refuse()
        elif action in ("take", "good"):
            for each in engines:
                request = each.request
                if request is not None:
                    self._take(each, request, number if action == "take" else 0)
                    break
        elif action == "say" and engine is not None:
            engine.say(1 + number)
        elif action == "all" and engine is not None:
            engine.say(1_000_000)
        elif action == "reset" and engine is not None:
            engine.lose(ConnectionResetError())
        elif action == "closed" and engine is not None:
            engine.lose(None)
        elif action == "wait":
            self.loop.now += number / 500
        elif action == "long":
            self.loop.now += number
        elif action in ("full", "empty"):
            client.stuff(action == "full")
        elif action == "gone":
            self.gone = True
            client.lose(ConnectionResetError() if number % 2 else None)
        elif action == "stop" and not client.closed:
            self.stopped = True
            client.protocol.stop(now=bool(number % 3))
        elif action == "move":
            backend = self.router.core.fleet.spots[number % 2]
            backend.tell(Notice(30, f"{number}", last=True))
            assert self.router.core.fleet.on_move is not None
            self.router.core.fleet.on_move(backend)
        await self.turn()
        self.check()

    def _take(self, engine: Engine, request: dict[str, Any], number: int) -> None:
        keeps = number % 7 != 6
        how, number = number % 20, number // 20
        connection = b"" if keeps else b"connection: close\r\n"

        def whole(status: int, body: bytes) -> None:
            head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n" % status
            engine.takes(b"%b%bcontent-length: %d\r\n\r\n%b" % (head, connection, len(body), body), keeps=keeps)

        if how == 5:
            return whole(503, b'{"error":{"message":"draining"}}')
        if how == 6:
            return whole(429, b'{"error":{"message":"currently busy"}}')
        if how == 7 and request.get("return_token_ids"):
            return whole(400, b'{"error":{"message":"extra: return_token_ids"}}')
        if how == 8:
            engine.takes(b"SSH-2.0-x\r\n\r\n", keeps=False)
            return None
        if how == 12:
            return whole(200, b'{"object":"something else"}')
        if how == 16:
            return whole(400, b'{"error":{"message":"max_model_len=4096"}}')
        if how == 17:
            engine.takes(b"HTTP/1.1 100 Continue\r\n\r\n", keeps=False)
            return None
        if not request["stream"]:
            return whole(200, ANSWER)
        events = stream_of(request, ids=how != 4)
        at = number % (len(events) + 1)
        if how == 9:
            events[at:] = [b'data: {"error":{"message":"EngineCore"}}\n\n', b"data: [DONE]\n\n"]
        elif how == 10:
            events[at:] = [b"data: [DONE]\n\n"]
        elif how == 11:
            events[at:] = [b'data: {"choices":[{"index":0,"delta":{},"text":"","finish_reason":"abort"}]}\n\n']
        elif how == 15:
            del events[at:]
        elif how == 18:
            events[at:] = [b"data: {half", b"\xff\n\n"]
        body = b"".join(events)
        if how == 13:
            engine.takes(
                STREAM_HEAD + b"%bcontent-length: %d\r\n\r\n" % (connection, len(body)) + body, keeps=keeps
            )
            return None
        if how == 14:
            engine.takes(STREAM_HEAD + b"connection: close\r\n\r\n" + body, keeps=False)
            return None
        pieces = events
        if number % 3 == 1:
            pieces = [body[n : n + 50] for n in range(0, len(body), 50)]
        elif number % 3 == 2:
            pieces = [b"".join(events[n : n + 3]) for n in range(0, len(events), 3)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        if how == 19:
            chunks = chunks.replace(b"\r\n", b"\n", 3)
            keeps = False
        engine.takes(
            STREAM_HEAD + connection + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", keeps=keeps
        )
        return None

    def check(self) -> None:
        """What is true at every moment."""
        core = self.router.core
        for tally in (core.meter.requests, *core.meter.backends.values()):
            assert tally.started == tally.finished + tally.cancelled + tally.failed + tally.running
            assert tally.running >= 0
        for backend in core.fleet:
            assert backend.in_flight == core.meter.backends[backend.name].running
        assert core.admission.in_flight == core.meter.requests.running <= 1
        assert self.loop.errors == []

    async def finish(self) -> None:
        """Everybody does what is right, and time passes: now it must end."""
        for _ in range(60):
            self.client.stuff(False)
            self.send(100_000)
            for dial in list(self.loop.dials):
                accepted = dial.accept()
                if accepted is not None:
                    self.engines.append(accepted)
            await self.turn()
            for engine in self.engines:
                if not engine.closed and (request := engine.request) is not None:
                    self._take(engine, request, 0)
                engine.say(1_000_000)
                if engine.dirty and not engine.answer:
                    engine.lose(None)
            await self.turn()
            self.check()
            self.loop.now += 1
        for _ in range(12):
            self.loop.now += 200
            await self.turn()
        self.check()

    def told(self) -> tuple[int, bytes, bool]:
        """The status, the body and whether that was all, as h11 reads what was written."""
        if not self.client.written:
            return 0, b"", False
        wire = h11.Connection(h11.CLIENT)
        wire.send(h11.Request(method="POST", target="/", headers=[("host", "h"), ("content-length", "0")]))
        wire.send(h11.EndOfMessage())
        wire.receive_data(self.client.written)
        if self.client.closed:
            wire.receive_data(b"")
        status, body = 0, b""
        while True:
            try:
                event = wire.next_event()
            except h11.RemoteProtocolError as error:
                # Cut off is allowed, and judged by the caller; malformed is not.
                if "without sending complete" not in str(error) and "closed" not in str(error):
                    raise
                return status, body, False
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert not wire.trailing_data[0]
                return status, body, True
            else:
                assert isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA, event
                return status, body, False


async def play(loop: ScriptedLoop, kind: str, cap: int, resume: bool, script: list[tuple[str, int]]) -> None:
    with scripted_router(loop, resume=resume, body_cap_bytes=cap) as router:
        scene = Scene(loop, router, kind)
        for action, number in script:
            await scene.act(action, number)
        await scene.finish()
        core = router.core
        requests = core.meter.requests
        assert requests.running == core.admission.in_flight == 0
        assert all(key.in_flight == 0 for key in core.guard)
        assert loop.dials == []
        alive = [engine.protocol for engine in scene.engines if not engine.closed]
        assert set(core.upstream.connections) == set(alive)
        assert core.upstream.idle_count == len(alive)
        assert not any(engine.dirty for engine in scene.engines if not engine.closed)
        status, body, whole = scene.told()
        if scene.gone or scene.client.aborted:
            return
        if not scene.begun or (scene.stopped and not status):
            return
        recorded = resume and cap > 1000 and kind != "plain"
        assert whole or not recorded, scene.client.written
        assert requests.started == 1 or status in (400, 408)
        if status == 200 and recorded and body.startswith(b"data: "):
            # An engine that ends well after its finish, and without [DONE], is believed.
            good = b'"finish_reason":"' in body and b'"error"' not in body
            assert requests.finished == good, body
            if good:
                assert kind == "n" or _text(body) == TEXT, body
            else:
                assert body.count(b'"error"') == 1, body
                assert b"data: [DONE]" not in body


def _text(body: bytes) -> str:
    text, finishes = "", 0
    for event in body.decode().removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]:
        chunk = json.loads(event.removeprefix("data: "))
        for choice in chunk["choices"]:
            text += choice.get("delta", choice).get("text", choice.get("delta", {}).get("content")) or ""
            finishes += choice["finish_reason"] is not None
    assert finishes == 1
    return text


@pytest.mark.parametrize("kind", KINDS)
@given(
    begins=st.lists(st.tuples(st.sampled_from(LIKELY), st.integers(0, 999)), max_size=30),
    script=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 999)), max_size=40),
    cap=st.sampled_from([1 << 20, 1 << 20, 1 << 20, 40]),
    resume=st.sampled_from([True, True, True, False]),
)
@settings(deadline=None, max_examples=60)
def test_every_order_of_events_ends_each_request_once(
    kind: str, begins: list[tuple[str, int]], script: list[tuple[str, int]], cap: int, resume: bool
) -> None:
    """`begins`: what is likely to get far; `script`: anything."""
    if begins:
        script = [("body", 0), ("accept", 0), *begins, *script]
    with asyncio.Runner(loop_factory=ScriptedLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, ScriptedLoop)
        runner.run(play(loop, kind, cap, resume, script))


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("kind", ["chat", "completion", "plain", "sampled"])
def test_an_answer_may_be_cut_into_two_reads_anywhere(kind: str, resume: bool) -> None:
    """Also between a chunk's first line and what it carries: some servers write them one by one."""
    for size in range(60, 300):
        script = [("body", 0), ("accept", 0), ("take", 0), ("say", size - 1)]
        with asyncio.Runner(loop_factory=ScriptedLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, ScriptedLoop)
            runner.run(play(loop, kind, 1 << 20, resume, script))


@pytest.mark.parametrize("kind", ["chat", "completion", "plain", "n"])
@pytest.mark.parametrize("end", ["all", "gone", "stop", "reset"])
def test_an_ended_request_leaves_nothing_to_the_garbage_collector(kind: str, end: str) -> None:
    """What lives as long as a stream is old for the collector, which hardly ever looks at the old."""
    script = [("body", 0), ("accept", 0), ("good", 0), ("say", 700), (end, 1)]

    async def twice(loop: ScriptedLoop) -> None:
        with scripted_router(loop) as router:
            scene = Scene(loop, router, kind)
            for action, number in script:
                await scene.act(action, number)
            await scene.finish()
            assert router.core.meter.requests.running == 0
            gc.collect()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                scene = Scene(loop, router, kind)
                for action, number in script:
                    await scene.act(action, number)
                await scene.finish()
                gc.collect()
                kinds = {type(each) for each in gc.garbage}
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
            assert router.core.meter.requests.started == 2
            assert kinds.isdisjoint({Exchange, Resuming, Stream, Recorder, Forward, Account, Relay}), kinds

    with asyncio.Runner(loop_factory=ScriptedLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, ScriptedLoop)
        runner.run(twice(loop))
