"""One request on the router's own pooled client, and the row that it leaves behind.

Every stamp is of `time.monotonic` in the callback that brings the bytes: a change of the wall clock is not seen.
Connecting is part of the time to the first token, as it is for the client of whom there is one more.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import monotonic
from typing import Final

from tuna_nb.benchmarks.load.answers import Told, reader_of
from tuna_nb.benchmarks.load.prompts import Ask
from tuna_nb.benchmarks.load.spec import Target
from tuna_nb.benchmarks.rows import Row
from tuna_router.dataplane.connection import NO_HTTP, BackendLost, Connection
from tuna_router.dataplane.route import Route
from tuna_router.dataplane.upstream import Upstream
from tuna_router.settings import BackendSettings, Kind

_LONGEST_CONNECT_S: Final = 30.0
_LONGEST_DETAIL: Final = 200
_ADDRESS: Final = re.compile(r"\w+://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_SILENT_S: Final = 30.0
"""More patience than the router's, which has another backend: a notebook may be on a train."""


class Endpoint:
    """What is the same for all requests of a run."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.upstream = Upstream()
        self.upstream.silent_s = _SILENT_S
        self.route = Route(BackendSettings("target", Kind.SERVERLESS, target.base_url.rstrip("/"), target.headers))
        self.connect_timeout_s = min(timeout_s, _LONGEST_CONNECT_S)
        self.timeout_s = timeout_s
        self.stream = target.stream
        self._target = b"/v1/chat/completions" if target.api == "chat" else b"/v1/completions"
        accept = b"text/event-stream" if target.stream else b"application/json"
        self._lines = b"accept: %b\r\nuser-agent: tuna-load-test\r\ncontent-type: application/json\r\n" % accept
        words = {word for value in target.headers.values() for word in (value, value.rpartition(" ")[2])}
        self._secrets = sorted((word for word in words if len(word) > 3), key=len, reverse=True)
        self._host = self.route.origin[0]

    def head(self, length: int) -> bytes:
        """The head of a request with a body of that length."""
        lines = b"%bcontent-length: %d\r\n" % (self._lines, length)
        return self.route.request(b"POST", self._target, lines) + b"\r\n"

    def clean(self, detail: str) -> str:
        """One short line without keys and addresses, whatever a server wrote."""
        for secret in self._secrets:
            detail = detail.replace(secret, "***")
        detail = _ADDRESS.sub("(address)", detail).replace(self._host, "(host)")
        line = " ".join("".join(c if c.isprintable() else " " for c in detail).split())
        return line if len(line) <= _LONGEST_DETAIL else line[: _LONGEST_DETAIL - 1] + "…"


class Asking:
    """One request: the listener of its connection. `over` is called once, with its row.

    began_at: when the run began; scheduled_s: seconds after that. taken_at: when the generator took it up.
    """

    __slots__ = (
        "_ask",
        "_connection",
        "_dialling",
        "_endpoint",
        "_number",
        "_over",
        "_reused",
        "_told",
        "_warmup",
        "began_at",
        "ended_at",
        "scheduled_s",
        "sent_at",
        "taken_at",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        ask: Ask,
        over: Callable[[Asking, Row], None],
        *,
        number: int,
        began_at: float,
        scheduled_s: float,
        warmup: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._ask = ask
        self._number = number
        self._over = over
        self._warmup = warmup
        self._connection: Connection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._reused = False
        self._told: Told | None = None
        self.began_at = began_at
        self.scheduled_s = scheduled_s
        self.taken_at = self.sent_at = self.ended_at = 0.0

    def begin(self) -> None:
        """Send it, on a connection that waits or on a new one."""
        endpoint = self._endpoint
        self.taken_at = monotonic()
        connection = endpoint.upstream.idle(endpoint.route)
        if connection is None:
            self._dial()
        else:
            self._reused = True
            self.connected(connection)

    def stop(self, error: str, detail: str) -> None:
        """Give up, and say so in its row."""
        self._end(monotonic(), error, detail)

    # The connection's listener

    def connected(self, connection: Connection) -> None:
        """A connection is there: send the request."""
        self._dialling = None
        self._connection = connection
        body = self._ask.body
        connection.send(self, [self._endpoint.head(len(body)) + body])
        if not self.sent_at:
            self.sent_at = monotonic()

    def answer(self, connection: Connection) -> None:
        """Bytes came."""
        now = monotonic()
        told = self._told
        if told is None:
            head = connection.head
            assert head is not None
            told = self._told = reader_of(head.status, head.content_type, stream=self._endpoint.stream)
        payload = connection.payload
        wanted = told.feed(payload, now) if payload else True
        if connection.ended or not wanted:
            self._end(now, *told.judge())

    def lost(self, error: BackendLost) -> None:
        """There will be no further answer."""
        connection = self._connection
        self._dialling = None
        if connection is None:
            self._end(monotonic(), "refused", error.reason)
        elif error.reason == NO_HTTP:
            self._end(monotonic(), "malformed", "the answer is no HTTP")
        elif self._reused and connection.head is None:
            # It was closed while it was idle, and the two crossed on their way: as any client, once more.
            self._reused = False
            self._connection = None
            self._dial()
        else:
            wrong = self._told.wrong if self._told is not None else None
            self._end(monotonic(), *(wrong or ("cut", "the connection was lost")))

    def writable(self, ready: bool) -> None:
        """A request waits in the kernel and in memory; it is not torn to pieces here."""

    # Its end

    def _dial(self) -> None:
        endpoint = self._endpoint
        self._dialling = endpoint.upstream.dial(endpoint.route, self, endpoint.connect_timeout_s)

    def _end(self, now: float, error: str | None, detail: str) -> None:
        if self.ended_at:
            return
        self.ended_at = now
        connection, dialling = self._connection, self._dialling
        self._connection = self._dialling = None
        head = connection.head if connection is not None and self._told is not None else None
        if dialling is not None:
            dialling.cancel()
        if connection is not None and not connection.ended:
            connection.drop()
        told = self._told or Told()
        special = head.special if head is not None else {}
        attempts = special.get(b"x-tuna-attempts", b"")
        backend = special.get(b"x-tuna-backend")
        began = self.began_at
        row = Row(
            self._number,
            self._ask.model,
            self._warmup,
            self.scheduled_s,
            self.sent_at - began if self.sent_at else None,
            told.first_at - began if told.first_at else None,
            now - began,
            head.status if head is not None else None,
            error,
            self._endpoint.clean(detail) if detail else "",
            told.input_tokens,
            told.output_tokens,
            told.chunks,
            tuple([gap / 1000 for gap in told.gaps_us]),
            told.finish_reason,
            backend.decode("latin-1") if backend is not None else None,
            int(attempts) if attempts.isdigit() and len(attempts) < 10 else None,
        )
        self._over(self, row)
