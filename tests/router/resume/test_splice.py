"""The events of a continuation in the terms of the stream that broke."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuna_router.resume.plan import THINK_END, Closing, Continuation, plan
from tuna_router.resume.splice import Splice, closing_events
from tuna_router.resume.spoken import Spoken

from .told import told

CHAT, TEXT = b"/v1/chat/completions", b"/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}
BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "temperature": 0, "max_tokens": 9}
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"gone"}}\n\n'


def event(chunk: dict[str, Any]) -> bytes:
    names = {"id": "cmpl-2", "object": "text_completion", "created": 2, "model": "other"}
    return b"data: " + json.dumps({**names, **chunk}).encode() + b"\n\n"


def text(said: str, ids: list[int], finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": said, "finish_reason": finish, "stop_reason": None, "token_ids": ids}
    return event({"choices": [choice]})


def delta(said: dict[str, Any], finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": said, "finish_reason": finish}]})


def usage(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event({"choices": [], "usage": counts, "system_fingerprint": "fp"})


def broken(*deltas: tuple[dict[str, Any], list[int] | None]) -> Spoken:
    """A chat that has said so much."""
    spoken = Spoken(chat=True)
    names = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    spoken.take({**names, "choices": [first], "prompt_token_ids": [1, 2] if deltas[0][1] else None})
    for said, ids in deltas:
        choice = {"index": 0, "delta": said, "finish_reason": None, "token_ids": ids}
        spoken.take({**names, "choices": [choice]})
    return spoken


def splice_of(spoken: Spoken, **fields: Any) -> Splice:
    step = plan(CHAT, json.dumps({**BODY, **fields}).encode(), spoken)
    assert isinstance(step, Continuation), step
    return Splice(spoken, step)


def test_names_are_the_first_streams_and_usage_adds_up() -> None:
    splice = splice_of(broken(({"content": "a"}, [5])), **USAGE)
    said = told(splice.feed(text("b", [6]) + text("c", [7], "stop") + usage(3, 2) + DONE))
    assert said.names == {("chat-1", "chat.completion.chunk", 1, "m")}
    assert (said.text, said.roles, said.finishes, said.done) == ("bc", [], [("stop", None)], 1)
    assert said.usages == [{"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}]
    assert said.chunks[-1]["system_fingerprint"] == "fp"
    assert splice.done


def test_without_usage_the_fingerprint_stands_on_the_finish() -> None:
    splice = splice_of(broken(({"content": "a"}, [5])))
    said = told(splice.feed(text("c", [7], "stop") + usage(3, 1) + DONE))
    assert not said.usages
    assert said.chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert said.chunks[-1]["system_fingerprint"] == "fp"


@pytest.mark.parametrize(
    "marked", [["so", f"{THINK_END}", "yes"], [f"so{THINK_END}yes"], [f"so{THINK_END}", "yes"]]
)
@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_goes_on_under_its_name_until_its_mark(marked: list[str], field: str) -> None:
    splice = splice_of(broken(({field: "hm "}, [5])))
    pieces = b"".join(text(piece, [6]) for piece in marked)
    said = told(splice.feed(pieces + text("", [7], "stop") + usage(3, 4) + DONE))
    deltas = [chunk["choices"][0]["delta"] for chunk in said.chunks]
    assert "".join(d.get(field, "") for d in deltas) == "so"
    assert "".join(d.get("content", "") for d in deltas) == "yes"


def test_what_is_said_again_must_be_what_was_said() -> None:
    first = (({"content": "ab"}, [5, 6]), ({"content": "cd"}, [7, 8]))
    splice = splice_of(broken(*first), stop="xyz")
    assert splice.feed(text("abc", [5, 6])) == b""
    assert b'"content":"e"' in splice.feed(text("de", [7]))
    other = splice_of(broken(*first), stop="xyz")
    assert other.feed(text("abX", [5])) == b""
    assert other.broken == "it says something else than was said"
    assert other.feed(text("more", [6])) == b""


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (ERROR + DONE, "an error event"),
        (DONE, "[DONE] came without a finish"),
        (text("", [9], "abort"), "finish_reason abort"),
        (b"data: nonsense\n\n", "an event that is no chunk"),
        (b"", "the stream ended without a finish"),
    ],
)
def test_a_continuation_breaks_like_a_first_stream_and_can_be_continued(end: bytes, reason: str) -> None:
    spoken = broken(({"content": "a"}, [5]))
    splice = splice_of(spoken)
    seen = splice.feed(text("b", [6]) + end) + splice.end()
    assert splice.broken == reason
    assert b"error" not in seen
    step = plan(CHAT, json.dumps(BODY).encode(), spoken)
    assert isinstance(step, Continuation)
    assert json.loads(step.body)["prompt"] == [1, 2, 5, 6]
    assert json.loads(step.body)["max_tokens"] == 7


@pytest.mark.parametrize("end", [ERROR + DONE, b"", DONE])
def test_what_comes_after_a_finish_does_not_undo_it(end: bytes) -> None:
    splice = splice_of(broken(({"content": "a"}, [5])), **USAGE)
    seen = splice.feed(text("b", [6], "stop") + end)
    said = told(seen + splice.lost("reset"))
    assert (said.text, said.done, splice.broken) == ("b", 1, None)
    assert said.usages == [{"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}]


def test_from_text_the_role_is_said_once_and_tool_calls_pass() -> None:
    spoken = broken(({"content": "a"}, None))
    splice = splice_of(spoken, tools=[{}], **USAGE)
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}
    events = delta({"role": "assistant", "content": ""}) + delta({"content": "b"}) + delta(call)
    said = told(splice.feed(events + delta({}, "tool_calls") + usage(4, 3) + DONE))
    assert (said.text, said.roles, said.finishes) == ("b", [], [("tool_calls", None)])
    assert said.chunks[1]["choices"][0]["delta"] == call
    assert said.usages == [{"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}]


def test_an_end_that_was_lost_is_supplied() -> None:
    spoken = broken(({"content": "a"}, [5]))
    step = plan(CHAT, json.dumps({**BODY, **USAGE, "max_tokens": 1}).encode(), spoken)
    assert isinstance(step, Closing)
    said = told(closing_events(spoken, step))
    assert (said.finishes, said.done) == ([("length", None)], 1)
    assert said.usages == [{"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}]
    spoken.finished = True
    closing = plan(CHAT, json.dumps(BODY).encode(), spoken)
    assert isinstance(closing, Closing)
    assert closing_events(spoken, closing) == DONE


def test_what_comes_behind_the_finish_is_not_told_and_breaks_nothing() -> None:
    splice = splice_of(broken(({"content": "a"}, [7])), **USAGE)
    end = text("b", [8], "stop") + text("", [], "abort") + text("c", [9])
    seen = splice.feed(end + usage(3, 1) + DONE) + splice.end()
    assert splice.broken is None
    said = told(seen)
    assert (said.text, said.finishes, said.done, len(said.usages)) == ("b", [("stop", None)], 1, 1)
