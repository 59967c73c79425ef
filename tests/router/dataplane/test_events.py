"""Events are whole or not yet, wherever the reads have cut them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.dataplane.events import EventSplitter, data_of, is_error_event

LINES = st.sampled_from(
    [b"data: {}", b"data:x", b": ping", b"event: error", b"data: two", b"id: 1", b"data: [DONE]"]
)


@settings(deadline=None, max_examples=200)
@given(
    events=st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    ends=st.sampled_from([b"\n", b"\r\n"]),
    tail=st.sampled_from([b"", b"data: {", b"data: {}\n", b"\r"]),
    data=st.data(),
)
def test_events_are_the_same_however_they_are_read(
    events: list[list[bytes]], ends: bytes, tail: bytes, data: st.DataObject
) -> None:
    whole = [ends.join(lines) + ends + ends for lines in events]
    stream = b"".join(whole) + tail
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=8)))
    splitter = EventSplitter()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += splitter.feed(stream[start:end])
    assert got == whole
    assert splitter.tail == tail


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\r\n\r\n", b"{}"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: x\nid: 2\ndata: a\n\n", b"a"),
        (b": ping\n\n", None),
        (b"\n\n", None),
    ],
)
def test_the_data_of_an_event_is_its_data_lines(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data


def test_an_event_may_be_called_an_error() -> None:
    assert is_error_event(b"event: error\ndata: {}\n\n")
    assert not is_error_event(b"data: event: error\n\n")
