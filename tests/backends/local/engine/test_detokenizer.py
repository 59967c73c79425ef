"""Text as it grows: half characters, stop strings, and vLLM's prompt leak."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_nb.backends.local.engine import tokenizer
from tuna_nb.backends.local.engine.detokenizer import Detokenizer
from tuna_nb.backends.local.engine.vocabulary import FIRST_BYTE


def bytes_of(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


@given(st.text())
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    detokenizer, pieces = Detokenizer([]), []
    for token_id in bytes_of(text):
        detokenizer.push(token_id)
        pieces.append(detokenizer.take(finished=False))
    # A text may itself end with the replacement character, which looks like half a character and is held.
    assert "".join(pieces) == text or text.endswith("\N{REPLACEMENT CHARACTER}")


def test_half_a_character_is_held_and_lost_at_the_end() -> None:
    detokenizer = Detokenizer([])
    for token_id in bytes_of("a€")[:-1]:
        detokenizer.push(token_id)
    assert detokenizer.take(finished=True) == "a"


@settings(max_examples=300)
@given(
    text=st.text(alphabet="abc ", max_size=40),
    stop=st.lists(st.text(alphabet="abc ", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_sent_never_holds_a_part_of_the_stop_string_and_ends_before_it(text: str, stop: list[str]) -> None:
    detokenizer, sent, hit = Detokenizer([], stop=stop), "", None
    for token_id in bytes_of(text):
        hit = detokenizer.push(token_id)
        sent += detokenizer.take(finished=hit is not None)
        if hit is not None:
            break
        assert len(sent) == max(0, detokenizer.count - max(map(len, stop)) + 1)
    else:
        sent += detokenizer.take(finished=True)
    ends = [(text.find(s) + len(s), place, s) for place, s in enumerate(stop) if s in text]
    if not ends:
        assert (sent, hit) == (text, None)
    else:
        first = min(ends)
        assert hit == first[2]
        assert sent == text[: first[0] - len(first[2])]


def test_a_stop_string_across_tokens_is_found_and_may_be_kept() -> None:
    ids = tokenizer.encode("The quiet router carries")
    detokenizer = Detokenizer([], stop=["et rou"], include_stop=True)
    hits = [detokenizer.push(i) for i in ids[:3]]
    assert hits == [None, None, "et rou"]
    assert detokenizer.take(finished=True) == "The quiet rou"


def test_a_stop_string_is_not_looked_for_before_min_tokens() -> None:
    detokenizer = Detokenizer([], stop=["a"], min_tokens=2)
    assert [detokenizer.push(i) for i in bytes_of("aaa")] == [None, None, "a"]


def test_a_prompt_that_ends_inside_a_character_leaks_into_the_text_as_in_vllm() -> None:
    prompt = tokenizer.encode("secret ") + bytes_of("€")[:2]
    leaking = Detokenizer(prompt)
    leaking.push(bytes_of("€")[2])
    assert leaking.take(finished=False) == "secret €"


def test_without_the_leak_the_character_is_completed() -> None:
    prompt = tokenizer.encode("secret ") + bytes_of("€")[:2]
    detokenizer = Detokenizer(prompt, leak=False)
    detokenizer.push(bytes_of("€")[2])
    assert detokenizer.take(finished=False) == "€"


def test_a_prompt_that_ends_with_a_whole_character_does_not_leak() -> None:
    detokenizer = Detokenizer(bytes_of("secret €"))
    detokenizer.push(bytes_of("a")[0])
    assert detokenizer.take(finished=False) == "a"
