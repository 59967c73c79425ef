"""The framing of chunked bodies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_router.dataplane.chunked import BadFraming, ChunkedBody, chunk_of, size_line


def framed(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces if p)


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 200), max_size=10), st.booleans())
def test_the_cuts_of_the_network_do_not_matter(pieces: list[bytes], cuts: list[int], trailer: bool) -> None:
    stream = framed(pieces) + b"0\r\n" + (b"x-sum: 1\r\n" if trailer else b"") + b"\r\nnext"
    body, payload, raw, start = ChunkedBody(), b"", b"", 0
    for cut in sorted({*(c for c in cuts if c < len(stream)), len(stream)}):
        assert not body.ended or cut == len(stream) or start >= len(stream) - 4
        if body.ended:
            break
        body.feed(stream[start:cut])
        payload += body.payload
        raw += body.raw
        start = cut
    assert body.ended
    assert payload == b"".join(pieces)
    assert raw == framed(pieces)
    assert b"next".startswith(body.rest)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.integers(0, 200))
def test_a_body_that_breaks_off_anywhere_can_be_closed_well(pieces: list[bytes], at: int) -> None:
    stream = framed(pieces)
    body = ChunkedBody()
    body.feed(stream[:at])
    closing = body.closing()
    assert closing is not None
    again = ChunkedBody()
    again.feed(body.raw + closing + b"4\r\nlast\r\n0\r\n\r\n")
    assert again.ended
    assert again.payload.endswith(b"last")
    assert again.payload.startswith(body.payload)


@pytest.mark.parametrize(
    "wire",
    [
        b"-1\r\n", b"+1\r\na\r\n", b" 1\r\na\r\n", b"1 \r\na\r\n", b"0x1\r\na\r\n", b"1_0\r\n", b"\r\n", b"g\r\n",
        b"1\na\n", b"1\r\nab\r\n", b"1\r\na\n", b"f" * 16 + b"\r\n", b"1;\x00\r\na\r\n", b"1" * 5000,
        b"0\r\nbad trailer\r\n\r\n", b"0\r\n: x\r\n\r\n", b"0\r\nx : y\r\n\r\n", b"0\r\n folded\r\n\r\n", b"0\r\nTransfer-Encoding: x\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 5000 + b"\r\n", b"1\r\na\r\n\n", b"1\rx",
    ],
)  # fmt: skip
def test_a_body_whose_end_could_be_read_in_two_ways_is_refused(wire: bytes) -> None:
    with pytest.raises(BadFraming):
        ChunkedBody().feed(wire)

    def byte_by_byte() -> None:
        body = ChunkedBody()
        for byte in wire:
            body.feed(bytes([byte]))

    with pytest.raises(BadFraming):
        byte_by_byte()


def test_a_chunk_that_was_announced_absurdly_long_can_not_be_closed() -> None:
    body = ChunkedBody()
    body.feed(b"ffffffff\r\nabc")
    assert body.closing() is None


def test_the_length_of_a_whole_chunk_tells_how_it_begins() -> None:
    lengths = {len(chunk_of(b"x" * size)): size for size in range(1, 70_000)}
    for total in range(max(lengths) + 1):
        size = lengths.get(total)
        assert size_line(total) == (None if size is None else b"%x\r\n" % size), total
