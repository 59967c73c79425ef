"""From the words of a load test to what is asked; what can't be is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from tuna_nb import grammar
from tuna_nb.benchmarks.load.spec import Arrivals, Lengths, LoadSpec, Target
from tuna_nb.benchmarks.measures import Slo
from tuna_nb.commands.benchmark import load_spec
from tuna_nb.errors import UsageError

TARGET = Target("http://x/v1", ("m",))


def options(words: str) -> Any:
    return grammar.parse(grammar.build(), ["benchmark", "load-test", "--service-name", "a", *words.split()])


def spec(words: str) -> LoadSpec:
    given = options(words)
    return load_spec.load_spec(given, TARGET, load_spec.levels(given))


@pytest.mark.parametrize(
    ("words", "arrivals"),
    [
        ("--rate 5", Arrivals("poisson", 5)),
        ("--rate 5 --arrivals constant", Arrivals("constant", 5)),
        ("--rate 5 --arrivals gamma --burstiness 3", Arrivals("gamma", 5, cv=3)),
        ("--rate 5 --low-rate 1 --arrivals day --duration 1h", Arrivals("day", 5, 1, period_s=3600)),
        ("--rate 5 --arrivals day --period 24h", Arrivals("day", 5, period_s=86400)),
        ("--rate 9 --low-rate 1 --arrivals spike --spike-at 30s --spike-for 10s",
         Arrivals("spike", 9, 1, spike_at_s=30, spike_s=10)),
        ("--rate 5 --arrivals gaps --on 20s --off 1.5m", Arrivals("gaps", 5, on_s=20, off_s=90)),
        ("--concurrency 8", Arrivals("closed", concurrency=8)),
        ("--sweep 1,2,4", Arrivals("poisson", 1)),
        ("--concurrency 1 --sweep 2,4", Arrivals("closed", concurrency=2)),
    ],
)  # fmt: skip
def test_arrivals(words: str, arrivals: Arrivals) -> None:
    assert spec(words).arrivals == arrivals


def test_a_trace_gives_times_and_lengths(tmp_path: Any) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp,input_tokens,output_tokens\n0,1,1\n")
    made = spec(f"--trace {trace} --speed 10")
    assert made.arrivals == Arrivals("trace", trace=str(trace), speed=10)
    assert (made.prompts.kind, made.prompts.path) == ("trace", str(trace))
    assert (made.duration_s, made.requests) == (None, None)
    prompts = spec(f"--trace {trace} --prompts {trace}").prompts
    assert prompts.kind == "file", "its times, with prompts of one's own"


def test_lengths_and_ends() -> None:
    made = spec(
        "--rate 1 --input-tokens 256~0.5 --output-tokens 64 --duration 5m --warmup 3 --seed 7 --timeout 30s"
    )
    assert (made.prompts.input_tokens, made.prompts.output_tokens) == (Lengths(256, 0.5), Lengths(64))
    assert (made.duration_s, made.requests, made.warmup_requests, made.seed) == (300, None, 3, 7)
    assert made.request_timeout_s == 30
    assert (spec("--rate 1 --requests 9").requests, spec("--rate 1 --requests 9").duration_s) == (9, None)
    assert spec("--rate 1").duration_s == load_spec.DEFAULT_S


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("ttft=200ms,tpot=50ms,latency=5s", Slo(200, 50, 5000)),
        ("latency=1.5m", Slo(latency_ms=90_000)),
        (None, None),
    ],
)
def test_limits(text: str | None, limits: Slo | None) -> None:
    assert load_spec.slo(text) == limits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "how many requests?"),
        ("--rate 0", "--rate is 0"),
        ("--rate nan", "--rate is nan"),
        ("--concurrency 0", "--concurrency is 0"),
        ("--concurrency 2 --rate 1", "--concurrency goes with no --rate"),
        ("--rate 1 --requests 0", "--requests is 0"),
        ("--rate 1 --requests 5 --duration 5s", "one of them"),
        ("--rate 1 --duration 0s", "no span of time"),
        ("--rate 1 --duration -5s", "argument --duration"),
        ("--rate 1 --warmup -1", "--warmup is -1"),
        ("--rate 1 --input-tokens 0", "no length"),
        ("--rate 1 --input-tokens 5~x", "is no number"),
        ("--rate 1 --burstiness 2", "--burstiness does nothing here"),
        ("--rate 1 --arrivals gamma", "needs --burstiness"),
        ("--rate 1 --arrivals gaps --on 5s", "needs --off"),
        ("--rate 1 --low-rate 2 --arrivals day", "--low-rate is 2"),
        ("--rate 1 --prompts nowhere.txt", "there is no file nowhere.txt"),
        ("--arrivals trace", "needs --trace"),
        ("--sweep 1,x", "is no number"),
        ("--sweep 1,0", "no such load"),
        ("--concurrency 1 --sweep 1,1.5", "no such load"),
        ("--rate 1 --arrivals gaps --on 1s --off 1s --sweep 1,2", "--sweep needs one load at a time"),
    ],
)
def test_what_cannot_be_is_refused(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as e:
        spec(words)
    assert e.value.hint


@pytest.mark.parametrize("text", ["ttft", "ttft=", "ttft=0ms", "tft=1s", "", "ttft=1s,,"])
def test_limits_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="--slo"):
        load_spec.slo(text)


def test_the_key_of_a_url_is_named_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")

    def target(words: str) -> Target:
        return load_spec.url_target(grammar.parse(grammar.build(), ["benchmark", "load-test", *words.split()]))

    made = target("--url http://h:1/ --model m --model n --key-variable MY_KEY --no-stream --api completions")
    assert made == Target("http://h:1/v1", ("m", "n"), {"Authorization": "Bearer sk-secret"}, "completions", False)
    assert "sk-secret" not in repr(made)
    assert target("--url https://h/openai/v1 --model m").base_url == "https://h/openai/v1"
    for words, message in (
        ("--url http://h/v1", "--url needs --model"),
        ("--url h/v1 --model m", "is no address"),
        ("--url http://u:p@h/v1 --model m", "may hold no key"),
        ("--url http://h/v1?key=x --model m", "may hold no key"),
        ("--url http://h/v1 --model m --key-variable NOT_SET", "NOT_SET is not set"),
    ):
        with pytest.raises(UsageError, match=message):
            target(words)
