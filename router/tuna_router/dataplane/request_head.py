"""Parse: the head of a client's request. httptools reads it; what it lets pass and we don't is refused here.

The head comes whole and alone, so a limit on its size is a limit on its length, and a request that
follows in the same packet is never looked at too early. Every length that could be read in two ways
(two framings, a second length, a folded line) is refused, whatever a lenient reader would make of it.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import httptools

from tuna_router.auth import key_of
from tuna_router.dataplane.headers import PRIORITY, SIDE_EFFECTS, Headers, upstream_lines

if TYPE_CHECKING:
    from tuna_router.dataplane.route import Route

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 200
_BODILESS: Final = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"})
_READ_HERE: Final = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"host",
        b"origin",
        b"expect",
        b"upgrade",
        b"authorization",
        b"x-api-key",
        b"x-request-id",
        SIDE_EFFECTS,
        PRIORITY,
    }
)
_LENGTH: Final = re.compile(rb"\r\n(?i:content-length):[ \t]*([0-9]{1,15})[ \t]*\r\n")
_REMEMBERED_BYTES: Final = 2048
_MOST_ROUTES: Final = 16
_CONNECTION_WORDS: Final = frozenset({b"keep-alive", b"close", b"upgrade", b""})


class BadRequest(Exception):
    """A request that is refused before anything is done with it; the connection is closed after the answer."""

    def __init__(self, status: int, message: str, code: str = "bad_request") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class RequestHead:
    """A request's head, but for the length of its body: requests that differ in nothing else share one.

    `headers` are lower-case names and values in their order; `nominated` are the headers that
    `Connection` makes this hop's own; `key` is the client's key for this router.
    """

    __slots__ = (
        "_begins",
        "completes",
        "digest",
        "expects_continue",
        "framed",
        "headers",
        "http10",
        "keep_alive",
        "key",
        "method",
        "nominated",
        "once",
        "special",
        "target",
    )

    def __init__(self) -> None:
        self.headers: Headers = []
        self.special: dict[bytes, bytes] = {}
        """The headers that the router itself reads, by name; no name is in it twice."""
        self.target = b""
        self.method = b""
        self.http10 = False
        self.keep_alive = True
        self.expects_continue = False
        self.framed = False
        """True when the client said how long its body is, be it of no length."""
        self.nominated: frozenset[bytes] = frozenset()
        self.key: bytes | None = None
        self.digest: bytes | None = None
        """The SHA-256 of `key`: here, since a head that is remembered is not hashed anew."""
        self.completes = False
        """True for a POST to `completions` or `chat/completions`, which may ask for a stream."""
        self.once = False
        """True for a request that is never sent again, whatever came of it."""
        self._begins: dict[Route, bytes] = {}

    def on_url(self, url: bytes) -> None:
        """httptools' callback."""
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools' callback."""
        name = name.lower()
        value = value.strip(b" \t")
        self.headers.append((name, value))
        if name in _READ_HERE:
            if name in self.special:
                self._twice(name, value)
            else:
                self.special[name] = value

    def _twice(self, name: bytes, value: bytes) -> None:
        if name == b"connection":
            self.special[name] += b"," + value
        elif name in (b"authorization", b"x-api-key"):
            # Whoever reads one must not be shown another.
            raise BadRequest(400, "Two credentials of one kind.")
        elif name in (b"content-length", b"transfer-encoding", b"host", b"origin", b"expect"):
            raise BadRequest(400, f"Two {name.decode()} headers.")

    def begins(self, route: Route) -> bytes:
        """This request as it begins at a backend, up to the headers that differ from request to request."""
        begins = self._begins.get(route)
        if begins is None:
            if len(self._begins) >= _MOST_ROUTES:
                self._begins.clear()  # mostly of configurations that are gone
            lines = upstream_lines(self.headers, route.own_names, self.key, nominated=self.nominated)
            begins = self._begins[route] = route.request(self.method, self.target, lines)
        return begins

    def begins_at(self, route: Route, path: bytes) -> bytes:
        """The same, but as a request for another path."""
        lines = upstream_lines(self.headers, route.own_names, self.key, nominated=self.nominated)
        return route.request(self.method, path, lines)

    @property
    def place(self) -> tuple[bytes | None, bytes]:
        """`Origin`, which browsers send, and `Host`."""
        return self.special.get(b"origin"), self.special.get(b"host", b"")

    @property
    def path(self) -> bytes:
        """The target without its query, as the client wrote it."""
        return self.target.partition(b"?")[0]

    @property
    def plain_path(self) -> bytes:
        """The path with its escapes undone: what decides who answers."""
        path = self.path
        return unquote_to_bytes(path) if b"%" in path else path

    @property
    def may_have_body(self) -> bool:
        """True for methods that have one by nature: POST, PUT, PATCH."""
        return self.method not in _BODILESS


def read_request_head(data: bytes) -> tuple[RequestHead, int | None]:
    """`parse_request_head`, remembered: a client's heads differ in little more than the content-length.

    What is looked up is the whole head with that one number made 0, so that nothing else is taken for granted.
    """
    if len(data) > _REMEMBERED_BYTES:
        return parse_request_head(data)
    found = _LENGTH.search(data)
    if found is None:
        return _remembered(data)
    start, end = found.span(1)
    head, length = _remembered(b"%b0%b" % (data[:start], data[end:]))
    return head, length if length is None else int(data[start:end])


@lru_cache(maxsize=256)
def _remembered(data: bytes) -> tuple[RequestHead, int | None]:
    return parse_request_head(data)


def parse_request_head(data: bytes) -> tuple[RequestHead, int | None]:
    """Read a head, from the first byte to the empty line; with it the length of the body (None: chunked).

    Raises BadRequest.
    """
    head = RequestHead()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # decided below
    except httptools.HttpParserCallbackError as error:
        if isinstance(error.__context__, BadRequest):
            raise error.__context__ from None
        raise
    except httptools.HttpParserError as error:
        raise BadRequest(400, f"This is no HTTP/1.1 request: {error}.") from None
    head.method = method = parser.get_method()
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise BadRequest(505, "This router speaks HTTP/1.1.")
    if not data.startswith(b"%b %b HTTP/1." % (method, head.target)):
        raise BadRequest(400, "The request line is malformed.")
    if method == b"CONNECT":
        raise BadRequest(405, "This router is no forward proxy.", "method_not_allowed")
    if not head.target.startswith(b"/") and not (head.target == b"*" and method == b"OPTIONS"):
        raise BadRequest(400, "The target must be a path: this router is no forward proxy.")
    if not head.target.isascii() or b"#" in head.target:
        raise BadRequest(400, "The target has characters that a target can't have.")
    if len(head.headers) > MAX_HEADERS:
        raise BadRequest(431, f"More than {MAX_HEADERS} headers.", "headers_too_large")
    head.http10 = version == "1.0"
    head.completes = method == b"POST" and head.path.endswith(b"/completions")
    head.key = key_of(head.special)
    if head.key is not None:
        head.digest = hashlib.sha256(head.key).digest()
    head.once = head.special.get(SIDE_EFFECTS, b"false").lower() not in (b"false", b"0", b"no")
    return head, _frame(head)


def _frame(head: RequestHead) -> int | None:
    """What the headers say about the body and the connection; returns the body's length."""
    special = head.special
    length = special.get(b"content-length")
    size: int | None = 0
    coding = special.get(b"transfer-encoding")
    if b"host" not in special and not head.http10:
        raise BadRequest(400, "No host header.")
    if coding is not None:
        if length is not None:
            raise BadRequest(400, "Both content-length and transfer-encoding.")
        if coding.lower() != b"chunked":
            raise BadRequest(501, "The only transfer-encoding here is chunked.")
        if head.http10:
            raise BadRequest(400, "HTTP/1.0 has no transfer-encoding.")
        size = None
        head.framed = True
    elif length is not None:
        if not length.isdigit() or len(length) > 15:
            raise BadRequest(400, "The content-length is no length.")
        size = int(length)
        head.framed = True
    connection = special.get(b"connection")
    words: frozenset[bytes] = frozenset()
    if connection is not None:
        words = frozenset([word.strip().lower() for word in connection.split(b",")])
        head.nominated = words - _CONNECTION_WORDS
    head.keep_alive = b"close" not in words and (not head.http10 or b"keep-alive" in words)
    if b"upgrade" in words and (protocol := special.get(b"upgrade", b"").lower()) and protocol != b"h2c":
        # h2c may be ignored, and some clients offer it with every request.
        raise BadRequest(501, "This router does not upgrade connections.", "upgrade_refused")
    expect = special.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            raise BadRequest(417, "The only expectation here is 100-continue.")
        head.expects_continue = not head.http10
    return size
