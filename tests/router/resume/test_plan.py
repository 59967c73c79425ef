"""Where a stream is cut back to: for random tokenizers, stops and steps, the client's text is the undisturbed one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.resume.ask import ask
from tuna_router.resume.plan import Closing, Continuation, How, Refusal, plan
from tuna_router.resume.recorder import Recorder
from tuna_router.resume.splice import Splice, closing_events
from tuna_router.resume.spoken import Spoken

from .told import Told, told
from .vllm_model import PROMPT, PROMPT_IDS, Engine

CHAT, TEXT = b"/v1/chat/completions", b"/v1/completions"


@st.composite
def engines(draw: st.DrawFn) -> Engine:
    """Text cut into tokens at any byte."""
    text = draw(st.text(alphabet='ab\n" é€😀', min_size=1, max_size=24)).encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=24)))
    tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if text[a:b]]
    if draw(st.integers(0, 9)) == 0:
        tokens.insert(draw(st.integers(0, len(tokens))), b"\xff")
    steps = draw(st.sampled_from([[1], [1], [2], [3], [1, 3, 2]]))
    return Engine(tokens, range(len(tokens)), steps, together=draw(st.booleans()))


def body_of(engine: Engine, draw: Any, *, chat: bool, temperature: float = 0) -> bytes:
    """A request, with stops that are likely to be met."""
    text = b"".join(engine.tokens).decode("utf-8", "replace")
    stops = st.integers(0, len(text) - 1).flatmap(
        lambda a: st.integers(1, 6).map(lambda size: text[a : a + size])
    ) | st.text(alphabet="abé", min_size=1, max_size=5)
    prompt = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    body: dict[str, Any] = {**prompt, "stream": True, "temperature": temperature}
    body["stream_options"] = {"include_usage": True}
    body["max_tokens"] = draw(st.integers(1, len(engine.tokens) + 2))
    if draw(st.booleans()):
        body["stop"] = draw(st.lists(stops, min_size=1, max_size=3))
        body["include_stop_str_in_output"] = draw(st.integers(0, 3)) == 0
        body["min_tokens"] = draw(st.integers(0, body["max_tokens"]))
    return json.dumps(body).encode()


def broken_at(events: list[bytes], cut: int, *, chat: bool) -> tuple[bytes, Spoken]:
    recorder = Recorder(hides_ids=True)
    seen = b"".join(map(recorder.feed, events[:cut]))
    recorder.lost("reset")
    return seen, Spoken.read(recorder.events(), chat=chat)


def to_the_end(engine: Engine, path: bytes, body: bytes, broken: tuple[bytes, Spoken], cuts: list[int]) -> Told:
    """Continue, breaking after so many events of each continuation, until one ends well."""
    seen, spoken = broken
    for attempt in range(len(cuts) + 3):
        step = plan(path, body, spoken)
        if isinstance(step, Closing):
            return told(seen + closing_events(spoken, step))
        assert isinstance(step, Continuation), step
        assert step.how is not How.TEXT
        events = engine.stream(step.body, chat=step.path == CHAT)
        splice = Splice(spoken, step)
        here = cuts[attempt] if attempt < len(cuts) else len(events)
        seen += b"".join(map(splice.feed, events[:here]))
        seen += splice.lost("reset") if here < len(events) else b""
        if splice.done:
            return told(seen)
        assert splice.broken in ("reset", "it told the prompt")
    raise AssertionError("it went on breaking")


@pytest.mark.parametrize("chat", [True, False])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_greedy_stream_cut_anywhere_ends_as_if_it_had_not_been(chat: bool, data: st.DataObject) -> None:
    engine = data.draw(engines())
    path = CHAT if chat else TEXT
    body = body_of(engine, data.draw, chat=chat)
    cuts = data.draw(st.lists(st.integers(0, 6), max_size=2))
    events = engine.stream(body, chat=chat)
    undisturbed = told(b"".join(events))
    for cut in range(1, len(events)):
        said = to_the_end(engine, path, body, broken_at(events, cut, chat=chat), cuts)
        assert said.essence == undisturbed.essence, cut


@pytest.mark.parametrize("chat", [True, False])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_what_a_sampled_stream_showed_is_kept_and_never_said_twice(chat: bool, data: st.DataObject) -> None:
    """The other draw is played by another script behind the ids that are kept."""
    engine = data.draw(engines())
    path = CHAT if chat else TEXT
    body = body_of(engine, data.draw, chat=chat, temperature=1)
    events = engine.stream(body, chat=chat)
    for cut in range(2, len(events)):
        seen, spoken = broken_at(events, cut, chat=chat)
        shown = spoken.text
        step = plan(path, body, spoken)
        if not isinstance(step, Continuation) or step.how is not How.IDS:
            continue
        kept = len(json.loads(step.body)["prompt"]) - len(PROMPT_IDS)
        other = Engine([*engine.tokens, b"Z"], [*range(kept), *[len(engine.tokens)] * 9], [1])
        splice = Splice(spoken, step)
        said = b"".join(map(splice.feed, other.stream(step.body, chat=False)))
        if splice.broken == "it told the prompt":
            continue
        assert splice.done, splice.broken
        text = told(seen + said).text
        assert text.startswith(shown)
        assert set(text[len(shown) :]) <= {"Z"}


@pytest.mark.parametrize(
    ("tokens", "steps", "fields"),
    [
        # The prompt that is told holds the stop string, which cuts it short.
        ([b'"', b"\xff", b"a"], [2], {"stop": "a", "include_stop_str_in_output": True}),
        # A stop string that has begun in what was shown.
        ([b"b", b"a", b"a"], [1], {"stop": "baa", "include_stop_str_in_output": True}),
        # Half a character behind a whole one.
        ([b"a", b"\xc3", b"\xa9", b"b"], [2], {}),
        ([b"a", b"\xc3", b"\xa9", b"b"], [1], {"stop": ["\u00e9b", "xyz"]}),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_cuts_that_were_wrong_once(
    chat: bool, tokens: list[bytes], steps: list[int], fields: dict[str, Any]
) -> None:
    engine = Engine(tokens, range(len(tokens)), steps, together=False)
    prompt = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    body = json.dumps({**prompt, "stream": True, "temperature": 0, "max_tokens": 9, **fields}).encode()
    events = [*engine.stream(body, chat=chat)[:-2], b"data: [DONE]\n\n"]
    for cut in range(1, len(events)):
        said = to_the_end(engine, CHAT if chat else TEXT, body, broken_at(events, cut, chat=chat), [])
        assert said.essence == told(b"".join(events)).essence, cut


def spoken_of(body: dict[str, Any], *chunks: dict[str, Any], chat: bool = True) -> Any:
    """The plan for a stream of these deltas (chat) or choices."""
    spoken = Spoken(chat=chat)
    for chunk in chunks:
        spoken.take({"id": "x", "created": 1, "model": "m", **chunk})
    return plan(CHAT if chat else TEXT, json.dumps(body).encode(), spoken)


def said(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]}


CHAT_BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
ROLE = {**said({"role": "assistant", "content": ""}), "prompt_token_ids": [1, 2]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n": 2}, "n is more than 1"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "guided"),
        ({"structured_outputs": {"regex": "a"}}, "guided"),
        ({"guided_json": {}}, "guided"),
        ({"tools": [{}], "tool_choice": "required"}, "tool call"),
        ({"max_tokens": "5"}, "max_tokens is no whole number"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ],
)
def test_what_cannot_be_continued_honestly_is_refused_with_a_reason(fields: dict[str, Any], reason: str) -> None:
    step = spoken_of({**CHAT_BODY, **fields}, ROLE, said({"content": "a"}, token_ids=[5]))
    assert isinstance(step, Refusal)
    assert reason in step.reason
    asked = ask(CHAT, json.dumps({**CHAT_BODY, **fields}).encode())
    assert asked is not None
    assert asked.refusal == step.reason
    assert not asked.hides_ids


def test_a_tool_call_that_has_begun_is_not_continued() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": "{"}}
    step = spoken_of({**CHAT_BODY, "tools": [{}]}, ROLE, said({"content": "a"}), said({"tool_calls": [call]}))
    assert step == Refusal("tool_calls had begun")


def test_reasoning_without_ids_or_with_text_held_back_is_refused() -> None:
    thought = said({"reasoning": "hm"})
    assert isinstance(spoken_of(CHAT_BODY, ROLE, thought), Refusal)
    thought = said({"reasoning": "hm"}, token_ids=[5])
    assert isinstance(spoken_of({**CHAT_BODY, "stop": "long"}, ROLE, thought), Refusal)
    step = spoken_of(CHAT_BODY, ROLE, thought)
    assert isinstance(step, Continuation)
    assert (step.how, step.thinks, step.path) == (How.IDS, True, TEXT)


def test_with_tools_or_pictures_a_chat_goes_on_from_its_text() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    for fields in ({"tools": [{}]}, {"messages": picture}):
        step = spoken_of({**CHAT_BODY, **fields, "max_tokens": 9}, ROLE, said({"content": "a b"}, token_ids=[5]))
        assert isinstance(step, Continuation)
        body = json.loads(step.body)
        assert (step.how, step.path, step.exact) == (How.TEXT, CHAT, False)
        assert body["messages"][-1] == {"role": "assistant", "content": "a b"}
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
        assert body["max_tokens"] == 8


def test_the_request_for_the_rest_samples_like_the_first() -> None:
    sampling = {"top_p": 0.5, "top_k": 7, "min_p": 0.1, "logit_bias": {"3": 1}, "stop_token_ids": [8],
                "ignore_eos": True, "repetition_penalty": 1.1, "skip_special_tokens": False, "seed": 4}  # fmt: skip
    hidden = {"max_completion_tokens": 9, "max_tokens": 3, "min_tokens": 4, "user": "u", "request_id": "r"}
    step = spoken_of(
        {**CHAT_BODY, **sampling, **hidden, "model": "m"}, ROLE,
        said({"content": "a"}, token_ids=[5]), said({"content": "b"}, token_ids=[6]),
    )  # fmt: skip
    assert isinstance(step, Continuation)
    assert json.loads(step.body) == {
        **sampling, "model": "m", "user": "u", "prompt": [1, 2, 5, 6], "max_tokens": 7, "min_tokens": 2, "seed": 6,
        "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True,
    }  # fmt: skip
    assert not step.exact


def test_a_chat_without_a_limit_does_not_get_the_sixteen_tokens_of_a_completion() -> None:
    step = spoken_of(CHAT_BODY, ROLE, said({"content": "a"}, token_ids=[5]))
    assert isinstance(step, Continuation)
    assert json.loads(step.body)["max_tokens"] > 1_000_000
    spoken = Spoken(chat=False)
    spoken.take({"choices": [{"text": "a", "token_ids": [5], "prompt_token_ids": [1, 2]}]})
    bounded = plan(TEXT, b'{"prompt": "x", "stream": true}', spoken)
    assert isinstance(bounded, Continuation)
    assert json.loads(bounded.body)["max_tokens"] == 15
    assert isinstance(plan(TEXT, b'{"prompt": "x", "max_tokens": 90}', spoken, context_length=3), Closing)


def test_nothing_left_to_generate_is_never_sent() -> None:
    step = spoken_of({**CHAT_BODY, "max_tokens": 1}, ROLE, said({"content": "a"}, token_ids=[5]))
    assert isinstance(step, Closing)
    assert step.finish_reason == "length"


def test_a_stream_of_which_nothing_was_shown_is_asked_for_again() -> None:
    step = spoken_of({**CHAT_BODY, "max_tokens": 4}, ROLE)
    assert isinstance(step, Continuation)
    assert (step.how, step.exact) == (How.AGAIN, True)
    assert json.loads(step.body)["messages"] == CHAT_BODY["messages"]
