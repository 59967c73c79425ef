"""What the client is let see of a stream, what is kept of it, and how it ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.resume.hide import hide_ids
from tuna_router.resume.recorder import Recorder
from tuna_router.resume.spoken import Spoken

DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"EngineCore encountered an issue","code":500}}\n\n'


def event(text: str, ids: list[int] | None = None, *, finish: str | None = None, key: str = "content") -> bytes:
    choice = {"index": 0, "delta": {key: text}, "logprobs": None, "finish_reason": finish, "token_ids": ids}
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def role(ids: list[int] | None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return (
        b"data: "
        + json.dumps({"choices": [choice], "prompt_token_ids": ids}, separators=(",", ":")).encode()
        + b"\n\n"
    )


TEXTS = st.text(max_size=6) | st.sampled_from(
    ['"token_ids":[1]', '"error"', "[DONE]", "\\", '\\"', "[", "]", "\n\n"]
)


@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(st.tuples(TEXTS, st.lists(st.integers(0, 999), min_size=1, max_size=3)), max_size=40),
    data=st.data(),
)
def test_however_it_is_read_the_client_gets_whole_events_without_ids_and_all_is_kept(
    texts: list[tuple[str, list[int]]], data: st.DataObject
) -> None:
    events = [role([1, 2]), *(event(text, ids) for text, ids in texts), event("", [7], finish="stop")]
    plain = [role(None), *(event(text) for text, _ in texts), event("", finish="stop")]
    stream = b"".join([*events, DONE])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)) | st.sampled_from(_ends(events)), max_size=12)))
    recorder = Recorder(hides_ids=True)
    seen = b"".join(
        recorder.feed(stream[start:end]) for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    )
    assert seen + recorder.end() == b"".join([*plain, DONE])
    assert (recorder.done, recorder.finished, recorder.broken) == (True, True, None)
    assert recorder.events() == b"".join(events)
    spoken = Spoken.read(recorder.events(), chat=True)
    assert spoken.text == "".join(text for text, _ in texts)
    assert list(spoken.ids) == [i for _, ids in texts for i in ids] + [7]
    assert list(spoken.prompt_ids or ()) == [1, 2]


def _ends(events: list[bytes]) -> list[int]:
    return [sum(map(len, events[:n])) for n in range(len(events) + 1)]


@given(text=TEXTS)
@settings(deadline=None, max_examples=200)
def test_a_text_that_looks_like_ids_is_left_alone(text: str) -> None:
    assert hide_ids(event(text, [1, 2])) == event(text)
    untouched = event(text)
    assert hide_ids(untouched) is untouched or hide_ids(untouched) == untouched


@pytest.mark.parametrize(
    ("end", "broken"),
    [
        (ERROR + DONE, "an error event"),
        (b'event: error\ndata: {"message":"x"}\n\n', "an error event"),
        (b'data: {"error":"gone"}\n\n' + DONE, "an error event"),
        (DONE, "[DONE] came without a finish"),
        (b"", "the stream ended without a finish"),
        (b'data: {"choices":[{"delta"', "the stream ended without a finish"),
        (event("", [3], finish="abort") + DONE, "finish_reason abort"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_breaks_a_stream_is_known_before_the_client_sees_it(end: bytes, broken: str, at_once: bool) -> None:
    events = [role([1]), event("a", [1]), event("b", [2])]
    stream = b"".join(events) + end
    recorder = Recorder(hides_ids=False)
    pieces = [stream] if at_once else [bytes([byte]) for byte in stream]
    seen = b"".join(map(recorder.feed, pieces)) + recorder.end()
    assert seen == b"".join(events)
    assert recorder.broken == broken
    assert recorder.feed(event("more", [9])) == b""


def test_a_finish_without_done_is_a_good_end_and_a_loss_after_it_is_not() -> None:
    recorder = Recorder(hides_ids=False)
    recorder.feed(event("a", [1], finish="stop"))
    assert recorder.end() == b""
    assert recorder.broken is None
    recorder.lost("reset")
    assert recorder.broken == "reset"


def test_a_stream_may_end_without_its_last_blank_line() -> None:
    recorder = Recorder(hides_ids=False)
    last = event("a", [1], finish="stop").rstrip()
    assert recorder.feed(last) == b""
    assert recorder.end() == last
    assert recorder.broken is None


def test_a_chunk_that_only_carries_ids_is_not_shown() -> None:
    only_ids = event("", [5]).replace(b'{"content":""}', b"{}")
    recorder = Recorder(hides_ids=True)
    assert recorder.feed(event("a", [1])) == event("a")
    assert recorder.feed(only_ids) == b""
    assert recorder.feed(event("", [2])) == event("")
    assert list(Spoken.read(recorder.events(), chat=True).ids) == [1, 5, 2]


def test_an_ordinary_piece_without_ids_is_passed_on_as_the_same_object() -> None:
    recorder = Recorder(hides_ids=True)
    recorder.feed(event("a"))
    piece = event("b")
    assert recorder.feed(piece) is piece
    pair = event("c") + event("d")
    assert recorder.feed(pair) is pair


def test_ten_thousand_tokens_take_a_tenth_of_their_bytes_and_too_many_are_given_up() -> None:
    recorder = Recorder(hides_ids=True)
    events = [event(f" word{number}", [number]) for number in range(10_000)]
    for piece in events:
        recorder.feed(piece)
    assert recorder.memory_bytes < sum(map(len, events)) / 8
    assert recorder.events() == b"".join(events)
    small = Recorder(hides_ids=True, cap_bytes=20_000)
    seen = b"".join(map(small.feed, events))
    assert seen == hide_ids(b"".join(events))
    assert small.given_up == "more than 20000 bytes were said"
    assert small.events() is None
    assert small.memory_bytes < 20_000
    assert small.feed(DONE) == b""
    assert small.broken == "[DONE] came without a finish"


def test_nothing_is_told_behind_done() -> None:
    recorder = Recorder(hides_ids=True)
    end = event("a", finish="stop") + DONE
    assert recorder.feed(end + event("", finish="abort") + ERROR + DONE) == end
    assert recorder.broken is None
    assert recorder.done


def test_half_an_event_that_somebody_has_closed_is_not_told() -> None:
    recorder = Recorder(hides_ids=True)
    assert recorder.feed(event("a") + b'data: {"choices":[{"te\n\n') == event("a")
    assert recorder.broken == "an event that is no chunk"
