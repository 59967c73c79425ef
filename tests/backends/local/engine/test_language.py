"""The words: a pure function of the tokens before."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_nb.backends.local.engine import tokenizer
from tuna_nb.backends.local.engine.chat_template import render
from tuna_nb.backends.local.engine.language import Language, Prefix
from tuna_nb.backends.local.engine.vocabulary import TURN_END


def write(language: Language, prompt: list[int], count: int) -> list[int]:
    prefix = Prefix(prompt)
    ids = []
    for _ in range(count):
        ids.append(language.next_id(prefix))
        prefix.push(ids[-1])
    return ids


@pytest.mark.parametrize("raw_bytes", [False, True])
@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=30))
def test_a_text_continues_from_any_cut_as_if_it_had_not_been_cut(raw_bytes: bool, text: str) -> None:
    language = Language(raw_bytes=raw_bytes)
    prompt = tokenizer.encode(render([{"role": "user", "content": text}]))
    ids = write(language, prompt, 40)
    for cut in range(1, 40):
        assert write(language, prompt + ids[:cut], 40 - cut) == ids[cut:]


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=30))
def test_generated_text_is_printable_ascii_that_tokenises_to_the_ids_it_came_from(text: str) -> None:
    prompt = tokenizer.encode(render([{"role": "user", "content": text}]))
    ids = write(Language(min_answer_tokens=10_000), prompt, 60)
    written = tokenizer.decode(ids)
    assert written.isascii()
    assert written.isprintable()
    assert tokenizer.encode(written) == ids


def test_an_answer_is_a_few_sentences_and_ends_by_itself() -> None:
    lengths = []
    for number in range(50):
        prompt = tokenizer.encode(render([{"role": "user", "content": f"question {number}"}]))
        ids = write(Language(), prompt, 1000)
        assert TURN_END in ids
        lengths.append(ids.index(TURN_END))
        answer = tokenizer.decode(ids[: lengths[-1]])
        assert answer[0].isupper()
        assert answer.endswith(".")
    assert min(lengths) >= 40
    assert sum(lengths) / len(lengths) < 150


def test_different_questions_get_different_answers() -> None:
    answers = {
        tuple(write(Language(), tokenizer.encode(render([{"role": "user", "content": str(n)}])), 20))
        for n in range(50)
    }
    assert len(answers) == 50


def test_raw_bytes_write_characters_over_several_tokens() -> None:
    ids = write(Language(raw_bytes=True), tokenizer.encode("hello"), 200)
    text = tokenizer.decode(ids)
    assert not text.isascii()
    assert "\N{REPLACEMENT CHARACTER}" not in text.removesuffix("\N{REPLACEMENT CHARACTER}")
    assert any(128 <= i - 3 < 256 for i in ids)


def test_an_ignored_end_is_followed_by_a_new_sentence() -> None:
    ids = write(Language(min_answer_tokens=0), tokenizer.encode("hello"), 400)
    after = [ids[place + 1] for place, i in enumerate(ids[:-1]) if i == TURN_END]
    assert after
    assert all(tokenizer.decode([i]).startswith(" ") for i in after)
