"""What an answer's bytes say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuna_nb.benchmarks.load.answers import BodyTold, EventsTold, Told, reader_of


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return f"data: {json.dumps({'id': 'c', 'choices': choices, **more}, separators=(',', ':'))}\n\n".encode()


ROLE = event({"role": "assistant", "content": ""})
USAGE = event(usage={"prompt_tokens": 11, "completion_tokens": 3})
DONE = b"data: [DONE]\n\n"


def told(*pieces: bytes) -> EventsTold:
    """Each piece a second after the one before, from 1 on."""
    reader = EventsTold()
    for at, piece in enumerate(pieces, 1):
        reader.feed(piece, float(at))
    return reader


def test_a_whole_stream_is_counted_by_its_events_with_text() -> None:
    reader = told(
        ROLE,
        event({"content": "a"}),
        event({"content": "b"}),
        event({"content": 'c"\n'}),
        event({}, "stop"),
        USAGE,
        DONE,
    )
    assert reader.judge() == (None, "")
    assert (reader.first_at, reader.chunks, reader.gaps_us) == (2, 3, [1_000_000, 1_000_000])
    assert (reader.input_tokens, reader.output_tokens, reader.finish_reason) == (11, 3, "stop")


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    ],
)
def test_reasoning_and_tool_calls_are_text(delta: dict[str, Any]) -> None:
    assert told(ROLE, event(delta)).first_at == 2


def test_completions_have_their_text_in_the_choice() -> None:
    reader = told(
        b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n',
        b'data: {"choices":[{"text":"","finish_reason":"length"}]}\n\n',
        DONE,
    )
    assert (reader.chunks, reader.judge()) == (1, (None, ""))


def test_it_does_not_matter_how_reads_cut_the_stream() -> None:
    stream = (
        ROLE
        + b": ping\n\n"
        + event({"content": "a b"}) * 5
        + event({"content": "\\"})
        + event({}, "stop")
        + USAGE
        + DONE
    )
    for size in (1, 3, 7, 50, 300, len(stream)):
        reader = told(*[stream[at : at + size] for at in range(0, len(stream), size)])
        assert (reader.chunks, reader.output_tokens, reader.judge()) == (6, 3, (None, "")), size
    crlf = told(stream.replace(b"\n", b"\r\n"))
    assert (crlf.chunks, crlf.judge()) == (6, (None, ""))


def test_an_event_of_a_known_shape_with_a_finish_or_without_text_is_not_taken_for_text() -> None:
    reader = told(
        event({"content": "a"}),
        event({"content": "b"}),
        event({"content": ""}),
        event({"content": "c"}, "stop"),
        DONE,
    )
    assert (reader.chunks, reader.finish_reason, reader.judge()) == (3, "stop", (None, ""))
    text = event({"content": "a"}, note="x")
    assert told(text, text, event({"content": 'a","x":"b'}, note="x")).chunks == 3


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((ROLE, event({"content": "a"}), event({}, "stop"), USAGE), "cut"),  # no [DONE]
        ((ROLE, event({"content": "a"}), DONE), "cut"),  # no finish reason
        ((), "cut"),
        ((event({"content": "a"}), b'data: {"error":{"message":"out of memory"}}\n\n', DONE), "error event"),
        ((event({"content": "a"}), b"event: error\ndata: {}\n\n"), "error event"),
        ((event({"content": "a"}), b"data: {oops}\n\n"), "malformed"),
        ((b"data: 17\n\n",), "malformed"),
    ],
)
def test_a_stream_that_is_not_whole_is_an_error(pieces: tuple[bytes, ...], error: str) -> None:
    assert told(*pieces).judge()[0] == error


def test_an_error_is_told_in_its_own_words() -> None:
    assert told(b'data: {"error":{"message":"out of memory"}}\n\n').judge() == ("error event", "out of memory")
    failure = reader_of(503, b"application/json", stream=True)
    failure.feed(b'{"error":{"message":"overloaded"}}', 1.0)
    assert failure.judge() == ("status", "status 503: overloaded")


def test_a_last_blank_line_may_be_missing() -> None:
    assert told(event({"content": "a"}), event({}, "stop"), b"data: [DONE]").judge() == (None, "")


def body(answer: Any) -> Told:
    reader = BodyTold()
    text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    reader.feed(text[:5], 4.0)
    reader.feed(text[5:], 5.0)
    return reader


def test_an_unstreamed_answer_has_its_first_byte_and_its_usage() -> None:
    reader = body(
        {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}
    )
    assert reader.judge() == (None, "")
    assert (reader.first_at, reader.chunks, reader.output_tokens, reader.finish_reason) == (4, 1, 9, "stop")


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"<html>", "malformed"), ([], "malformed"), ({"choices": []}, "malformed"), ({"error": "no"}, "malformed"),
     ({"choices": [{"message": {"content": "x"}, "finish_reason": None}]}, "cut")],
)  # fmt: skip
def test_an_unstreamed_answer_that_is_none_is_an_error(answer: Any, error: str) -> None:
    assert body(answer).judge()[0] == error
