"""Parse: the head of a backend's answer. What can't be framed without doubt is no answer."""

from __future__ import annotations

import copy
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import httptools

from tuna_router.dataplane.headers import HOP_BY_HOP, Headers

MAX_HEAD_BYTES: Final = 64 * 1024
WHOLE_CAP_BYTES: Final = 1024 * 1024
"""JSON answers up to this size are taken whole before anything is sent, so that half of one is retried."""
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_OF_THE_PROVIDER: Final = frozenset(
    {
        b"set-cookie",
        b"server",
        b"via",
        b"alt-svc",
        b"strict-transport-security",
        b"www-authenticate",
        b"clear-site-data",
    }
)
"""What a provider's front says of itself or to a browser: here it would speak of the router's own address."""
_NOT_DOWNSTREAM: Final = HOP_BY_HOP | _OF_THE_PROVIDER | {b"x-tuna-backend", b"x-tuna-attempts", b"x-request-id"}
_READ_HERE: Final = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"content-type",
        b"content-encoding",
        b"location",
        # What another router says of its answer: never passed on, but a load test's client is told.
        b"x-tuna-backend",
        b"x-tuna-attempts",
    }
)


class BadAnswer(Exception):
    """This is no HTTP/1.1 answer."""


class Framing(Enum):
    """How the end of a body is known."""

    NONE = "there is none"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    CLOSE = "the connection's end"


class ResponseHead:
    """One answer's head. `lines` is what of it goes to a client, as it will be on the wire.

    `content_type` is the media type, lower case, without parameters; empty where the content is encoded.
    """

    __slots__ = (
        "_passed",
        "content_type",
        "framing",
        "is_bodiless",
        "is_odd",
        "is_retryable",
        "keep_alive",
        "length",
        "lines",
        "place",
        "reason",
        "special",
        "start",
        "status",
        "streams",
        "whole",
    )

    def __init__(self) -> None:
        self._passed: Headers = []
        self.special: dict[bytes, bytes] = {}
        self.status = 0
        self.reason = b""
        self.framing = Framing.CLOSE
        self.length = 0
        self.keep_alive = False
        self.content_type = b""
        self.lines = b""
        self.place = ""
        """The host that `Location` names; empty where it names none."""
        self.start = b""
        """The first line and `lines` without a length, for a body that is sent whole with a length of our own."""
        self.is_bodiless = False
        """True for a status that never has a body, and so no length."""
        self.is_odd = False
        """True for a status that ends no request."""
        self.is_retryable = False
        """True for 408, 429 and every 5xx (vLLM's drain is a 500): another backend may do better."""
        self.whole = False
        """True for an answer that is better taken whole, see WHOLE_CAP_BYTES."""
        self.streams = False
        """True for an event stream."""

    def on_status(self, reason: bytes) -> None:
        """httptools' callback."""
        self.reason = reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools' callback."""
        value = value.strip(b" \t")
        low = name.lower()
        if low not in _NOT_DOWNSTREAM and not low.startswith(b"proxy-"):
            self._passed.append((low, b"%b: %b" % (name, value)))
        if low in _READ_HERE:
            if low not in self.special:
                self.special[low] = value
            elif low == b"connection":
                self.special[low] += b"," + value
            elif low in (b"content-length", b"transfer-encoding"):
                raise BadAnswer("two lengths")

    def keep(self, dropped: frozenset[bytes]) -> None:
        """Settle `lines`: all that may go to a client but these."""
        kept = self._passed = [(low, line) for low, line in self._passed if low not in dropped]
        self.lines = b"".join([b"%b\r\n" % line for _, line in kept])
        self.start = self.start_line + b"".join(
            [b"%b\r\n" % line for low, line in kept if low != b"content-length"]
        )

    def without_location(self) -> ResponseHead:
        """The same, but it says nothing of where the backend is; `self` may be remembered, and stays."""
        head = copy.copy(self)
        head.place = ""
        head.keep(frozenset({b"location"}))
        return head

    @property
    def start_line(self) -> bytes:
        """The first line as a client gets it."""
        return b"HTTP/1.1 %d %b\r\n" % (self.status, self.reason or _REASONS.get(self.status, b""))


@lru_cache(maxsize=256)
def known_response_head(data: bytes, to_head: bool) -> ResponseHead:
    """`parse_response_head`, remembered: within a second an engine's heads are mostly the same."""
    return parse_response_head(data, to_head=to_head)


def parse_response_head(data: bytes, *, to_head: bool) -> ResponseHead:
    """Read a head, from the first byte to the empty line. `to_head`: it answers a HEAD. Raises BadAnswer."""
    head = ResponseHead()
    parser = httptools.HttpResponseParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # a 101, which nobody asked for: it is refused by its status
    except httptools.HttpParserCallbackError as error:
        if isinstance(error.__context__, BadAnswer):
            raise error.__context__ from None
        raise
    except httptools.HttpParserError as error:
        raise BadAnswer(str(error)) from None
    head.status = parser.get_status_code()
    version = parser.get_http_version()
    if version not in ("1.1", "1.0") or not data.startswith(b"HTTP/1."):
        raise BadAnswer("not HTTP/1.1")
    _frame(head, http10=version == "1.0", to_head=to_head)
    return head


def _frame(head: ResponseHead, *, http10: bool, to_head: bool) -> None:
    special = head.special
    length = special.get(b"content-length")
    coding = special.get(b"transfer-encoding")
    connection = special.get(b"connection")
    words = frozenset(w.strip().lower() for w in connection.split(b",")) if connection is not None else frozenset()
    head.keep_alive = b"keep-alive" in words if http10 else b"close" not in words
    if length is not None and (coding is not None or not length.isdigit() or len(length) > 15):
        raise BadAnswer("a length that is none")
    if coding is not None and (coding.lower() != b"chunked" or http10):
        raise BadAnswer("a transfer-encoding that is not chunked")
    bodiless = head.is_bodiless = head.status in (204, 304)
    if to_head or bodiless or 100 <= head.status < 200:
        head.framing = Framing.NONE
    elif coding is not None:
        head.framing = Framing.CHUNKED
    elif length is not None:
        head.length = int(length)
        head.framing = Framing.LENGTH if head.length else Framing.NONE
    else:
        head.keep_alive = False
    kind = special.get(b"content-type")
    if kind is not None and special.get(b"content-encoding", b"identity").lower() == b"identity":
        head.content_type = kind.partition(b";")[0].strip().lower()
    location = special.get(b"location")
    if location is not None:
        head.place = _host_in(location)
    dropped: frozenset[bytes] = words - {b"content-length"} if words else words
    if bodiless:
        dropped |= {b"content-length"}  # it speaks of a body that is not sent
    head.keep(dropped)
    head.is_odd = not 200 <= head.status < 600
    head.is_retryable = head.status in (408, 429) or head.status >= 500
    head.streams = head.content_type == b"text/event-stream"
    head.whole = (
        head.content_type == b"application/json"
        and head.framing in (Framing.LENGTH, Framing.CHUNKED)
        and head.length <= WHOLE_CAP_BYTES
    )


def _host_in(location: bytes) -> str:
    try:
        return urlsplit(location.decode("latin-1")).hostname or ""
    except ValueError:
        return ""  # for the client to make sense of
