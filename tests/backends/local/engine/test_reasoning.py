"""A model that thinks first: reasoning deltas as vLLM's deepseek_r1 parser makes them, raw text for completions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tuna_nb.backends.local.engine.reasoning import ReasoningParser, split
from tuna_nb.backends.local.engine.vocabulary import THINK_END

from .engine_process import AT_ONCE, EngineProcess, client_of
from .sse import CHAT, TEXT, chat, stream


@pytest.fixture(scope="module")
def thinker() -> Iterator[httpx.Client]:
    with EngineProcess(*AT_ONCE, "--reasoning-parser", "deepseek_r1") as engine, client_of(engine) as client:
        yield client


def test_thoughts_come_first_under_a_name_of_their_own_and_their_mark_is_not_shown(thinker: httpx.Client) -> None:
    result = stream(thinker, CHAT, **chat(max_tokens=80))
    deltas = [choice["delta"] for choice in result.choices]
    assert deltas[0] == {"role": "assistant", "content": ""}
    kinds = [next(iter(delta)) for delta in deltas[1:]]
    first = kinds.index("content")
    assert first > 5
    assert set(kinds[:first]) == {"reasoning"}
    assert set(kinds[first:]) == {"content"}
    assert "think" not in json.dumps(result.chunks)


def test_with_ids_the_mark_has_a_chunk_that_says_nothing(thinker: httpx.Client) -> None:
    result = stream(thinker, CHAT, **chat(max_tokens=80, return_token_ids=True))
    empty = [choice for choice in result.choices if choice["delta"] == {}]
    assert [choice["token_ids"] for choice in empty] == [[THINK_END]]
    assert result.chunks[0]["prompt_token_ids"]


def test_a_completion_of_the_ids_says_the_same_with_the_mark(thinker: httpx.Client) -> None:
    result = stream(thinker, CHAT, **chat(max_tokens=80, return_token_ids=True))
    prompt = result.chunks[0]["prompt_token_ids"]
    raw = stream(thinker, TEXT, prompt=prompt, temperature=0, max_tokens=80, return_token_ids=True)
    reasoning = "".join(choice["delta"].get("reasoning") or "" for choice in result.choices)
    assert raw.ids == result.ids
    assert raw.text == f"{reasoning}</think>{result.text}"
    assert split(raw.text) == (reasoning, result.text)


def test_a_whole_answer_tells_them_apart_too(thinker: httpx.Client) -> None:
    answer = thinker.post(CHAT, json=chat(max_tokens=80)).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning"]
    assert message["content"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    cut = thinker.post(CHAT, json=chat(max_tokens=4)).json()["choices"][0]["message"]
    assert cut["reasoning"]
    assert cut["content"] is None


def test_several_ids_at_once_are_parted_at_the_mark() -> None:
    parser = ReasoningParser([1])
    assert parser.delta("so", [400]) == '{"reasoning":"so"}'
    assert parser.delta("</think>", [THINK_END]) is None
    assert parser.delta("yes", [401]) == '{"content":"yes"}'
    assert (
        ReasoningParser([1]).delta("so</think>yes", [400, THINK_END, 401]) == '{"content":"yes","reasoning":"so"}'
    )
    assert ReasoningParser([1]).delta("so</think>", [400, THINK_END]) == '{"content":null,"reasoning":"so"}'
    assert ReasoningParser([THINK_END]).delta("yes", [401]) == '{"content":"yes"}'
