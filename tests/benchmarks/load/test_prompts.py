"""What is asked."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tuna_nb.benchmarks.load.prompts import asks
from tuna_nb.benchmarks.load.spec import Arrivals, Lengths, LoadSpec, Prompts, Target
from tuna_nb.errors import RequestError


def spec(prompts: Prompts, *, seed: int = 0, models: tuple[str, ...] = ("m",), **target: Any) -> LoadSpec:
    return LoadSpec(Target("http://127.0.0.1:9/v1", models, **target), prompts=prompts, requests=1, seed=seed)


def bodies(given: LoadSpec, count: int) -> list[dict[str, Any]]:
    return [json.loads(ask.body) for ask in itertools.islice(asks(given), count)]


def text(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def test_a_seed_gives_these_very_bytes_on_every_machine() -> None:
    given = spec(Prompts(input_tokens=Lengths(80, 0.5), output_tokens=Lengths(30, 1)), seed=3, models=("a", "b"))
    found = b"".join(ask.body for ask in itertools.islice(asks(given), 100))
    assert found == b"".join(ask.body for ask in itertools.islice(asks(given), 100))
    assert hashlib.sha256(found).hexdigest()[:16] == "9a545d38dc39639f"


def test_a_prompt_has_as_many_words_as_tokens_were_asked_for() -> None:
    assert all(len(text(body).split()) == 256 for body in bodies(spec(Prompts()), 20))
    assert len(text(bodies(spec(Prompts(input_tokens=Lengths(40_000))), 1)[0]).split()) == 40_000


def test_lengths_have_the_mean_and_the_variation_and_the_range_that_were_asked_for() -> None:
    given = Prompts(input_tokens=Lengths(100, 0.5), output_tokens=Lengths(50, 1.0, 5, 60))
    found = bodies(spec(given), 4000)
    words = [len(text(body).split()) for body in found]
    assert statistics.fmean(words) == pytest.approx(100, rel=0.05)
    assert statistics.pstdev(words) / statistics.fmean(words) == pytest.approx(0.5, rel=0.1)
    assert {min(b["max_tokens"] for b in found), max(b["max_tokens"] for b in found)} == {5, 60}


def test_no_two_prompts_begin_alike_unless_a_prefix_is_shared() -> None:
    begins = [text(body)[:24] for body in bodies(spec(Prompts()), 500)]
    assert len(set(begins)) == 500
    shared = bodies(spec(Prompts(input_tokens=Lengths(60), shared_prefix_tokens=40, prefixes=3)), 100)
    assert len({" ".join(text(body).split()[:40]) for body in shared}) == 3
    assert len({text(body) for body in shared}) == 100
    assert all(len(text(body).split()) == 60 for body in shared)


def test_a_stream_asks_for_its_usage_and_an_unstreamed_request_does_not() -> None:
    streamed = bodies(spec(Prompts(ignore_eos=True)), 1)[0]
    assert streamed["stream"] is True
    assert streamed["stream_options"] == {"include_usage": True}
    assert streamed["ignore_eos"] is True
    plain = bodies(spec(Prompts(), stream=False, api="completions", extra={"temperature": 0}), 1)[0]
    assert set(plain) == {"model", "prompt", "max_tokens", "temperature"}


def test_several_models_are_asked() -> None:
    models = [body["model"] for body in bodies(spec(Prompts(), models=("a", "b")), 400)]
    assert 150 < models.count("a") < 250


def test_a_file_of_prompts_is_asked_in_its_order_and_again(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé?"}]
    file.write_text(f"{json.dumps({'prompt': 'one', 'max_tokens': 7})}\n\n{json.dumps({'messages': chat})}\n")
    found = bodies(spec(Prompts("file", str(file), output_tokens=Lengths(9))), 3)
    assert [(body["messages"][-1]["content"], body["max_tokens"]) for body in found] == [
        ("one", 7),
        ("Hé?", 9),
        ("one", 7),
    ]
    assert found[1]["messages"] == chat
    file.write_text("plain one\nplain two\n")
    assert [text(b) for b in bodies(spec(Prompts("file", str(file))), 2)] == ["plain one", "plain two"]


def test_sharegpt_asks_what_people_asked_first(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    talks = [
        {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a"}]} for n in range(9)
    ]
    file.write_text(json.dumps([*talks, {"conversations": []}]))
    found = [text(body) for body in bodies(spec(Prompts("sharegpt", str(file))), 9)]
    assert sorted(found) == [f"q{n}" for n in range(9)]


def test_a_trace_gives_the_lengths_of_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("timestamp,input_tokens,output_tokens\n0,5,50\n1,700,3\n")
    given = LoadSpec(Target("http://h/v1", ("m",)), Arrivals("trace", trace=str(file)), Prompts("trace"))
    assert [(len(text(b).split()), b["max_tokens"]) for b in bodies(given, 2)] == [(5, 50), (700, 3)]


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ('{"prompt": "x"}\n{"nothing": 1}', "file", "line 2: it has no prompt"),
        ('{"prompt": "x"}\n{oops', "file", "line 2: it is no JSON"),
        ('{"prompt": "x", "max_tokens": 0}', "file", "max_tokens is 0"),
        ('{"messages": [{"role": "user"}]}', "file", "messages are a chat"),
        ("\n", "file", "has no prompts"),
        ("{}", "sharegpt", "no conversation"),
        ("oops", "sharegpt", "is no JSON"),
    ],
)
def test_a_bad_file_is_refused_with_a_hint(tmp_path: Path, content: str, kind: Any, words: str) -> None:
    (tmp_path / "p").write_text(content)
    with pytest.raises(RequestError) as caught:
        asks(spec(Prompts(kind, str(tmp_path / "p")), api="completions"))
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "prompts",
    [
        Prompts("file"),
        Prompts("file", "/nowhere"),
        Prompts("trace"),
        Prompts("novel"),  # type: ignore[arg-type]
        Prompts(input_tokens=Lengths(0)),
        Prompts(output_tokens=Lengths(5, least=9, most=3)),
        Prompts(shared_prefix_tokens=-1),
        Prompts(prefixes=0),
    ],
)
def test_prompts_that_can_not_be_are_refused_with_a_hint(prompts: Prompts) -> None:
    with pytest.raises(RequestError) as caught:
        asks(spec(prompts))
    assert caught.value.hint
