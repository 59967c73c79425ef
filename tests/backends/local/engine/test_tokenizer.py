"""Text to ids and back, and the chat template."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_nb.backends.local.engine import tokenizer, vocabulary
from tuna_nb.backends.local.engine.chat_template import render


@given(st.text())
def test_every_text_comes_back_from_its_tokens(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(alphabet="the routr,. \nAé€😀<|im_end>"))
def test_text_near_words_half_characters_and_special_marks_comes_back_too(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_plain_english_costs_about_a_token_per_word() -> None:
    assert len(tokenizer.encode("The quiet router carries every request.")) == 7


def test_names_of_special_tokens_in_a_text_become_those_tokens() -> None:
    assert tokenizer.encode("<|im_start|>the<|im_end|>") == [1, vocabulary.IDS[b"the"], 2]


def test_specials_can_be_left_out_of_the_text() -> None:
    assert tokenizer.decode([1, vocabulary.IDS[b"the"], 2], skip_special=True) == "the"


@pytest.mark.parametrize("character", ["é", "€", "日", "😀"])
def test_a_character_written_byte_by_byte_is_not_what_encoding_its_text_gives_where_merges_exist(
    character: str,
) -> None:
    one_by_one = [vocabulary.FIRST_BYTE + byte for byte in character.encode()]
    assert tokenizer.decode(one_by_one) == character
    merged = any(character.encode().startswith(half) for half in (b"\xe2\x82", b"\xf0\x9f", b"\xe6\x97"))
    assert (tokenizer.encode(character) != one_by_one) is merged


def test_every_byte_is_a_token_and_no_two_tokens_are_equal() -> None:
    assert {bytes([b]) for b in range(256)} <= set(vocabulary.TOKENS)
    assert len(set(vocabulary.TOKENS)) == vocabulary.SIZE


def test_the_chat_template_opens_a_turn_for_the_assistant() -> None:
    assert render([{"role": "user", "content": "hi"}]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_continued_message_is_left_open_with_its_blanks() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " so far "}]
    rendered = render(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered.endswith("<|im_start|>assistant\n so far ")


def test_content_may_be_parts_or_missing() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in render([{"role": "user", "content": parts}, {"role": "tool"}])
