"""One attempt at one backend, up to the first byte of the body: until then nothing was sent to the
client, and another backend may be tried.

The first *body* byte, not the head: a vLLM answers 200 long before it schedules the request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tuna_router.dataplane.account import begins_with_an_error, content_type
from tuna_router.dataplane.headers import Headers
from tuna_router.dataplane.intake import Body
from tuna_router.dataplane.upstream import BackendLost, Response, Upstream, read_capped
from tuna_router.settings import BackendSettings

WHOLE_CAP_BYTES = 1024 * 1024
"""JSON answers up to this size are taken whole before anything is sent, so that half of one is retried."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as one backend gets it."""

    method: str
    target: bytes
    headers: Headers
    body: Body


@dataclass(slots=True)
class Answered:
    """The backend answers. `pieces` is what comes after `first`, or None when that was all.

    `hollow`: it is an error all the same (an event stream that begins with an error).
    """

    status: int
    headers: Headers
    first: bytes
    pieces: AsyncIterator[bytes] | None
    response: Response
    hollow: bool = False

    @property
    def is_sse(self) -> bool:
        """True for an event stream that we can end with an event of ours."""
        return content_type(self.headers) == b"text/event-stream"


@dataclass(frozen=True, slots=True)
class Refused:
    """A status that another backend may not give; complete, so that it can be passed on if none does."""

    status: int
    headers: Headers
    body: bytes

    @property
    def reason(self) -> str:
        """For people."""
        return f"status {self.status}"

    @property
    def gone(self) -> bool:
        """True when nobody is there behind the endpoint."""
        return self.status in (502, 503, 504) and not self.busy

    @property
    def busy(self) -> bool:
        """True when it is well but has no room: also vLLM's full queue, which is a 503."""
        return self.status in (408, 429) or (self.status == 503 and b"currently busy" in self.body)


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer. `gone`: nobody is there. `again`: a second connection may do better."""

    reason: str
    gone: bool
    again: bool = False
    timed_out: bool = False


def is_retryable(status: int) -> bool:
    """408, 429 and every 5xx: vLLM's drain is a 500."""
    return status in (408, 429) or status >= 500


async def open_answer(
    upstream: Upstream,
    backend: BackendSettings,
    outgoing: Outgoing,
    *,
    connect_timeout_s: float,
    first_byte_timeout_s: float,
) -> Answered | Refused | Failed:
    """Try one backend. The caller closes `Answered.response`; in all other cases everything is closed."""
    try:
        async with asyncio.timeout(first_byte_timeout_s):
            response = await upstream.open(
                backend,
                outgoing.method,
                outgoing.target,
                outgoing.headers,
                outgoing.body.content(),
                connect_timeout_s=connect_timeout_s,
            )
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(response.aclose)
                result = await _up_to_first_byte(response)
                if isinstance(result, Answered):
                    stack.pop_all()
                return result
    except TimeoutError:
        return Failed(f"no byte in {first_byte_timeout_s:g} s", gone=False, timed_out=True)
    except BackendLost as error:
        return Failed(error.reason, error.gone, error.again, error.timed_out)


async def _up_to_first_byte(response: Response) -> Answered | Refused | Failed:
    status, headers, pieces = response.status, response.headers, response.pieces
    if not 200 <= status < 600:
        return Failed(f"status {status}", gone=False)
    if is_retryable(status):
        try:
            return Refused(status, headers, await read_capped(pieces, WHOLE_CAP_BYTES))
        except ValueError:
            return Failed(f"status {status}, with an endless body", gone=False)
    kind = content_type(headers)
    length = next((value for name, value in headers if name.lower() == b"content-length"), b"")
    if kind == b"application/json" and length.isdigit() and int(length) <= WHOLE_CAP_BYTES:
        return Answered(status, headers, await read_capped(pieces, WHOLE_CAP_BYTES), None, response)
    async for piece in pieces:
        if piece:
            sse = kind == b"text/event-stream"
            return Answered(status, headers, piece, pieces, response, hollow=sse and begins_with_an_error(piece))
    if kind == b"text/event-stream" and status == 200:
        return Failed("an empty stream", gone=False)
    return Answered(status, headers, b"", None, response)
