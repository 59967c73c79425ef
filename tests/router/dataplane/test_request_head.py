"""Parse: what is refused, and that nothing passes which h11 would refuse."""

from __future__ import annotations

import random

import h11
import pytest

from tuna_router.dataplane.chunked import BadFraming, ChunkedBody
from tuna_router.dataplane.request_head import BadRequest, RequestHead, parse_request_head, read_request_head

HOST = b"Host: x\r\n"
ROUNDS = 20_000

REFUSED = {
    "both lengths": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "two lengths": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    "one length twice": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"),
    "a list of lengths": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\n"),
    "a signed length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n"),
    "a negative length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
    "a hex length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\n"),
    "an empty length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n"),
    "an absurd length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"),
    "another coding": (501, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    "a coding twice": (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "a coding in 1.0": (400, b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "a folded line": (400, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n"),
    "a bare line feed": (400, b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n"),
    "a bare carriage return": (400, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n"),
    "a NUL": (400, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n"),
    "a blank before the colon": (400, b"GET / HTTP/1.1\r\nHost : x\r\n\r\n"),
    "a header without a name": (400, b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
    "two keys": (400, b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n"),
    "an absolute target": (400, b"GET http://other/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a tunnel": (405, b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n"),
    "a target without a slash": (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n"),
    "two blanks": (400, b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a web socket": (501, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
    "an expectation": (417, b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 200-maybe\r\nContent-Length: 1\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\n"),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "another protocol": (400, b"GET / RTSP/1.0\r\nHost: x\r\n\r\n"),
    "too many headers": (431, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_request_is_refused(name: str) -> None:
    status, wire = REFUSED[name]
    with pytest.raises(BadRequest) as refusal:
        parse_request_head(wire)
    assert refusal.value.status == status


def test_a_good_head_is_read() -> None:
    head, length = parse_request_head(
        b"POST /%72outer/a?b=c HTTP/1.1\r\nHost: x\r\nX-A:  b \t\r\nConnection: keep-alive, X-A\r\n"
        b"Content-Length: 12\r\nAuthorization: Bearer k\r\nExpect: 100-Continue\r\n\r\n"
    )
    assert (head.method, head.target, head.path, head.plain_path) == (
        b"POST",
        b"/%72outer/a?b=c",
        b"/%72outer/a",
        b"/router/a",
    )
    assert (b"x-a", b"b") in head.headers
    assert (length, head.keep_alive, head.expects_continue, head.http10) == (12, True, True, False)
    assert head.nominated == {b"x-a"}
    assert head.special[b"authorization"] == b"Bearer k"


def test_keeping_alive_is_the_rule_in_1_1_and_asked_for_in_1_0() -> None:
    for version, connection, kept in (
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
    ):
        wire = b"GET / HTTP/%b\r\nHost: x\r\n%b\r\n" % (version, connection)
        assert parse_request_head(wire)[0].keep_alive is kept


def test_heads_that_differ_in_their_length_only_are_parsed_once() -> None:
    def wire(length: bytes, path: bytes = b"/a") -> bytes:
        return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n" % (path, length)

    first, length = read_request_head(wire(b"12"))
    again, longer = read_request_head(wire(b"3456"))
    other, _ = read_request_head(wire(b"12", b"/b"))
    assert (length, longer) == (12, 3456)
    assert first is again
    assert other is not first
    assert other.target == b"/b"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_each_time(name: str) -> None:
    for _ in range(2):
        with pytest.raises(BadRequest):
            read_request_head(REFUSED[name][1])


SEEDS = [
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    b'{"a": 12}',
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nabcd\r\n1\r\ne\r\n0\r\nX-T: 1\r\n\r\n",
    b"GET /v1/models?a=b HTTP/1.0\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n",
    *(wire for _, wire in REFUSED.values()),
]
SPICE = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"\xff", b"\x7f", b"\x0b", b"chunked", b"0", b"-1",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Host: y\r\n",
    b"HTTP/1.1", b"HTTP/1.0", b"GET ", b"0\r\n\r\n", b"Connection: close\r\n", b"http://y/",
]  # fmt: skip


def mutated(dice: random.Random) -> bytes:
    wire = dice.choice(SEEDS)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(wire) + 1)
        match dice.randrange(4):
            case 0:
                wire = wire[:at] + dice.choice(SPICE) + wire[at:]
            case 1:
                wire = wire[:at] + bytes([dice.randrange(256)]) + wire[at + 1 :]
            case 2:
                wire = wire[:at] + wire[at + dice.randint(1, 8) :]
            case _:
                begin = dice.randrange(len(wire) + 1)
                wire = wire[:at] + wire[begin : begin + dice.randint(1, 30)] + wire[at:]
    return wire


def ours(wire: bytes) -> tuple[RequestHead, bytes] | None:
    """Head and body as they would be forwarded; None when refused or incomplete."""
    end = wire.find(b"\r\n\r\n") + 4
    if end < 4:
        return None
    try:
        head, length = read_request_head(wire[:end])
        rest = wire[end:]
        if length is not None:
            return (head, rest[:length]) if len(rest) >= length else None
        chunked = ChunkedBody()
        chunked.feed(rest)
    except (BadRequest, BadFraming):
        return None
    return (head, chunked.payload) if chunked.ended else None


def theirs(wire: bytes) -> tuple[h11.Request, bytes] | None:
    connection, request, body = h11.Connection(h11.SERVER), None, b""
    try:
        connection.receive_data(wire)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                return request, body
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def test_nothing_is_forwarded_that_h11_refuses_or_reads_differently() -> None:
    dice = random.Random(20261121)
    accepted = 0
    for _ in range(ROUNDS):
        wire = mutated(dice)
        mine = ours(wire)
        if mine is None:
            continue
        accepted += 1
        reference = theirs(wire)
        assert reference is not None, wire
        request, body = reference
        head, my_body = mine
        assert (request.method, request.target, body) == (head.method, head.target, my_body), wire
        assert [(bytes(n), bytes(v)) for n, v in request.headers if n != b"content-length"] == [
            (n, v.lower() if n == b"transfer-encoding" else v) for n, v in head.headers if n != b"content-length"
        ], wire
    assert accepted > ROUNDS / 50, "the mutations are too wild to say anything"
