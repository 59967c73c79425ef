"""One router without sockets: fake transports, a clock that a test moves, and engines whose every byte it sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tuna_router.app import Router
from tuna_router.auth import sha256_hex
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.connection import Connection
from tuna_router.settings import parse_settings
from tuna_router.spot import ProbePassed, Started

KEY = "client-key-1"
PROMPT = [1, 2, 3]
WORDS = ["a", "b", "ć", "dd", "e ", "f", "g", "h"]
TEXT = "".join(WORDS)
FIRST_ID = 100


class ScriptedLoop(asyncio.SelectorEventLoop):
    """Its time is what a test says; connecting waits until the test accepts or refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.dials: list[Dial] = []
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self.now

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        dial = Dial(self, factory, int(port))
        self.dials.append(dial)
        try:
            return await dial.result
        finally:
            self.dials.remove(dial)


class Dial:
    """A connection that is being made to the engine at `port`."""

    def __init__(self, loop: ScriptedLoop, factory: Any, port: int) -> None:
        self.result: asyncio.Future[Any] = loop.create_future()
        self.port = port
        self._factory = factory

    def accept(self) -> Engine | None:
        if self.result.done():
            return None
        protocol: Connection = self._factory()
        engine = Engine(protocol)
        protocol.connection_made(engine)
        self.result.set_result((engine, protocol))
        return engine

    def refuse(self) -> None:
        if not self.result.done():
            self.result.set_exception(ConnectionRefusedError())


class Wire(asyncio.Transport):
    """What both fakes share: closed by `close` or `abort`, which the loop tells the protocol later."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = b""
        self.closed = False
        self.aborted = False
        self.reading = True
        self.full = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += bytes(data)

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 70_000 if self.full else 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = self.aborted or not self.closed
        self.close()

    def lose(self, error: Exception | None) -> None:
        """The other side is gone."""
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(error)


class Client(Wire):
    """The client's end."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.protocol = ClientConnection(router.core.wheel, router.begin, router.connections)
        self.protocol.connection_made(self)

    def stuff(self, full: bool) -> None:
        """The client takes nothing more; or it does again."""
        if full is not self.full and not self.closed:
            self.full = full
            self.protocol.pause_writing() if full else self.protocol.resume_writing()


class Engine(Wire):
    """One connection to an engine. `request` is what came on it, once it is complete."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.protocol = protocol
        self.answer: bytes | None = None
        """What it still has to say; None while nothing is asked."""
        self.keeps = True
        """False when its answers' end is the end of the connection."""
        self.dirty = False
        """It owes, or has said what nobody can make sense of: it must not be asked again."""

    def write(self, data: Any) -> None:
        assert not self.dirty, "a connection that was not at a clean end was used again"
        super().write(data)

    @property
    def request(self) -> dict[str, Any] | None:
        head, found, body = self.written.partition(b"\r\n\r\n")
        if not found or self.answer is not None:
            return None
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert len(body) <= length, "more than one request at a time"
        if len(body) < length:
            return None
        return {"path": head.split(b" ")[1].decode(), **json.loads(body)}

    def takes(self, answer: bytes, *, keeps: bool) -> None:
        """Its request is read; this is what it will say, by and by."""
        self.written = b""
        self.answer, self.keeps, self.dirty = answer, keeps, True

    def say(self, size: int) -> None:
        """The next bytes."""
        if not self.answer or self.closed or not self.reading:
            return
        piece, self.answer = self.answer[:size], self.answer[size:]
        if not self.answer and self.keeps:
            self.answer, self.dirty = None, False
        self.protocol.data_received(piece)


def stream_of(request: dict[str, Any], *, ids: bool = True) -> list[bytes]:
    """The events of a good answer to a completion: the words that its prompt does not hold yet."""
    chat = "messages" in request
    done = 0
    if not chat and isinstance(request["prompt"], list):
        assert request["prompt"] == [*PROMPT, *range(FIRST_ID, FIRST_ID + len(request["prompt"]) - len(PROMPT))]
        done = len(request["prompt"]) - len(PROMPT)
    else:
        said = request["prompt"].removeprefix("p") if not chat else ""
        if chat and request.get("continue_final_message"):
            assert request["add_generation_prompt"] is False
            said = request["messages"][-1]["content"]
        assert TEXT.startswith(said)
        while "".join(WORDS[:done]) != said:
            done += 1
    assert request["max_tokens"] == len(WORDS) - done
    tells = ids and request.get("return_token_ids") is True
    names = {
        "id": "c-1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 7,
        "model": "m",
    }
    chunks: list[dict[str, Any]] = []
    prompt = [*PROMPT, *range(FIRST_ID, FIRST_ID + done)]
    if chat:
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        chunks.append({**names, "choices": [role], "prompt_token_ids": prompt if tells else None})
    for number in range(done, len(WORDS)):
        word = WORDS[number]
        last = number == len(WORDS) - 1
        choice: dict[str, Any] = {"index": 0, "delta": {"content": word}} if chat else {"index": 0, "text": word}
        choice |= {"logprobs": None, "finish_reason": "length" if last else None}
        choice["token_ids"] = [FIRST_ID + number] if tells else None
        if not chat:
            choice["prompt_token_ids"] = prompt if tells and number == done else None
        chunks.append({**names, "choices": [choice]})
    if (request.get("stream_options") or {}).get("include_usage"):
        new = len(WORDS) - done
        usage = {"prompt_tokens": len(prompt), "completion_tokens": new, "total_tokens": len(prompt) + new}
        chunks.append({**names, "choices": [], "usage": usage})
    events = [b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n" for chunk in chunks]
    return [*events, b"data: [DONE]\n\n"]


@contextlib.contextmanager
def scripted_router(loop: ScriptedLoop, **settings: Any) -> Iterator[Router]:
    """A router over two spot engines, READY, at ports 1 and 2, and a serverless one at port 3."""
    kinds = ("spot", "spot", "serverless")
    backends = [
        {"name": f"b{n}", "kind": kind, "url": f"http://h:{n}", "price_per_hour_usd": 1}
        for n, kind in enumerate(kinds, 1)
    ]
    values = {"backends": backends, "api_key_sha256": [sha256_hex(KEY)], **settings}
    router = Router(parse_settings(values), clock=loop.time, wall=loop.time)
    for backend in router.core.fleet.spots:
        assert backend.machine is not None
        backend.tell(Started())
        backend.tell(ProbePassed(backend.machine.epoch))
    yield router
    router.core.wheel.stop()
