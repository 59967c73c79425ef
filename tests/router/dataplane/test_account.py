"""Reading along with an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_router.books.meter import Tokens
from tuna_router.dataplane.account import Reader, begins_with_an_error, usage_of
from tuna_router.envelope import error_event

CHAT = b"/v1/chat/completions"
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{"content":"b"},"finish_reason": "length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.integers(1, 300), max_size=8), st.booleans())
def test_the_cuts_of_the_network_do_not_matter(cuts: list[int], with_usage: bool) -> None:
    stream = ROLE + TOKEN + LAST + (USAGE if with_usage else b"") + DONE
    reader, start = Reader(CHAT, 200), 0
    for cut in sorted({*cuts, len(stream)}):
        reader.feed(stream[start:cut])
        start = cut
    assert not reader.cut_short
    assert not reader.error_seen
    assert reader.tokens() == (Tokens(5, 2) if with_usage else Tokens(estimated=2))


@pytest.mark.parametrize("end", [b"", DONE[:-2], b"data: [DO"])
def test_a_stream_without_a_finish_is_cut_short(end: bytes) -> None:
    reader = Reader(CHAT, 200)
    reader.feed(ROLE + TOKEN + end)
    assert reader.cut_short == (end != DONE[:-2])


def test_other_streams_may_end_as_they_like() -> None:
    reader = Reader(b"/events", 200)
    reader.feed(b"data: 1\n\n")
    assert not reader.cut_short


def test_a_text_that_speaks_of_a_finish_is_no_finish() -> None:
    reader = Reader(CHAT, 200)
    reader.feed(
        b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\": \\"stop\\""},"finish_reason":null}]}\n\n'
    )
    assert reader.cut_short


def test_usage_is_read_from_json_and_nonsense_is_ignored() -> None:
    whole = b'{"choices": [{"text": "\\"usage\\": {}"}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
    assert usage_of(whole) == Tokens(3, 4)
    assert usage_of(b'{"usage":{"completion_tokens_details":{"a":9},"completion_tokens":4}}') == Tokens(0, 4)
    for body in (b'{"usage": ', b'{"usage": 3}', b'["usage"]', b'{"usage": null}', b"{}", b""):
        assert usage_of(body) is None
    assert usage_of(b'{"usage": {"prompt_tokens": "x"}}') == Tokens()


def test_a_long_stream_is_read_in_batches_and_not_kept() -> None:
    reader = Reader(CHAT, 200)
    for _ in range(20_000):
        reader.feed(TOKEN)
    assert sum(map(len, reader._unread)) < 70_000
    reader.feed(LAST + DONE)
    assert not reader.cut_short
    assert reader.tokens() == Tokens(estimated=20_001)


def test_a_stream_that_begins_with_an_error_is_recognised() -> None:
    assert begins_with_an_error(b'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n')
    assert begins_with_an_error(b'event: error\ndata: {"error": "x"}\n\n')
    assert not begins_with_an_error(TOKEN)
    assert not begins_with_an_error(b'data: {"error":null,"choices":[]}\n\n')


@pytest.mark.parametrize(
    ("last", "lead"),
    [(b"", b""), (b"}\n\n", b""), (b"\r\n\r\n", b""), (b"}\n", b"\n"), (b"half", b"\n\n")],
)
def test_an_error_event_starts_on_its_own_line_whatever_was_said_before(last: bytes, lead: bytes) -> None:
    event = error_event("m", "c", last)
    assert event.startswith(lead + b'data: {"error":')
    assert event.endswith(b"}\n\n")
