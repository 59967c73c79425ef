"""What sampling parameters make of the model's choice."""

from __future__ import annotations

from tuna_nb.backends.local.engine import tokenizer
from tuna_nb.backends.local.engine.language import Language, Prefix
from tuna_nb.backends.local.engine.sampler import Sampler, SamplingParams
from tuna_nb.backends.local.engine.vocabulary import TURN_END

PROMPT = tokenizer.encode("hello world")


def draw(params: SamplingParams, seed: int = 0, prompt: list[int] = PROMPT, count: int = 20) -> list[int]:
    sampler, prefix, ids = Sampler(Language(), params, seed), Prefix(prompt), []
    for _ in range(count):
        ids.append(sampler.next_id(prefix))
        prefix.push(ids[-1])
    return ids


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, "temperature": 1.0} | changes)  # type: ignore[arg-type]


def test_greedy_drawing_does_not_depend_on_the_seed() -> None:
    assert draw(params(temperature=0), seed=1) == draw(params(temperature=0), seed=2)
    assert draw(params(temperature=0)) == draw(params(top_k=1))


def test_a_seed_repeats_and_another_differs() -> None:
    assert draw(params(), seed=1) == draw(params(), seed=1)
    assert draw(params(), seed=1) != draw(params(), seed=2)


def test_a_sampled_answer_that_is_continued_goes_on_differently() -> None:
    ids = draw(params(), seed=7)
    assert draw(params(), seed=7, prompt=PROMPT + ids[:5], count=15) != ids[5:]


def test_a_high_bias_forces_a_token_and_a_low_one_forbids_it() -> None:
    assert set(draw(params(logit_bias={TURN_END: 100}))) == {TURN_END}
    natural = draw(params(temperature=0))
    without = draw(params(temperature=0, logit_bias={natural[0]: -100}))
    assert natural[0] not in without


def test_an_answer_cannot_end_before_min_tokens() -> None:
    ids = draw(params(logit_bias={TURN_END: 100}, min_tokens=5))
    assert TURN_END not in ids[:5]
    assert ids[5] == TURN_END


def test_only_allowed_tokens_are_drawn() -> None:
    assert set(draw(params(allowed_token_ids=(300, 301, 302)))) <= {300, 301, 302}
