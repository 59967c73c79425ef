"""One grammar for magic and terminal: it says what is wrong, and what was probably meant."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from tuna_nb import grammar
from tuna_nb.errors import UsageError


def parse(line: str) -> Any:
    return grammar.parse(grammar.build("tuna"), line.split())


def test_every_verb_has_a_command_that_can_be_imported() -> None:
    for verb in grammar.VERBS:
        module, _, name = verb.handler.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), Callable)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("deplyo", "unknown verb 'deplyo'", "did you mean 'deploy'?"),
        ("deploy --modl x", "deploy: unknown argument '--modl'", "did you mean --model?"),
        ("deploy --model x --gpu L4 --gpu-cuont 2", "deploy: unknown argument '--gpu-cuont'", "did you mean --gpu-count?"),
        ("deploy --model x", "deploy: the following arguments are required: --gpu", "`tuna deploy --help` shows"),
        ("deploy --model x --gpu L4 --gpu-count two", "invalid int value: 'two'", "`tuna deploy --help`"),
        ("deploy --model x --gpu L4 --cold-start-mode fast", "unknown value for --cold-start-mode: 'fast'", "fast_boot"),
        ("list --status activ", "list: unknown value for --status: 'activ'", "did you mean 'active'?"),
        ("local premt", "local: unknown action 'premt'", "did you mean 'preempt'?"),
        ("benchmark load-tst", "benchmark: unknown action 'load-tst'", "did you mean 'load-test'?"),
        ("benchmark load-test --url x --rat 3", "unknown argument '--rat'", "did you mean --rate?"),
        ("benchmark load-test --rate 3", "one of the arguments --service-name --url is required", "--help"),
        ("destroy", "one of the arguments", "`tuna destroy --help`"),
        ("destroy --all --service-name x", "not allowed with", "`tuna destroy --help`"),
        ("status --mod x --service-name a", "status: unknown argument '--mod'", ""),
    ],
)  # fmt: skip
def test_a_wrong_line_is_answered_with_the_right_word(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as e:
        parse(line)
    assert message in e.value.message
    assert hint in str(e.value.hint)
    assert e.value.exit_code == 2


def test_abbreviated_flags_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown argument '--mod'"):
        parse("deploy --mod x --gpu L4")


@pytest.mark.parametrize("line", ["", "--help", "deploy --help", "local preempt --help", "--version"])
def test_help_is_text_and_not_an_exit(line: str) -> None:
    with pytest.raises(grammar.HelpShown) as shown:
        parse(line)
    assert "tuna" in shown.value.text


def test_help_of_deploy_has_every_flag_of_the_founding_table() -> None:
    with pytest.raises(grammar.HelpShown) as shown:
        parse("deploy --help")
    for flag in (
        "model gpu gpu-count serverless-provider spots-cloud region tp-size max-model-len concurrency workers-max"
        " cold-start-mode no-scale-to-zero scaling-policy service-name serverless-only public"
        " use-different-vm-for-lb gcp-project gcp-region azure-subscription azure-resource-group azure-region"
        " azure-environment"
    ).split():
        assert f"--{flag}" in shown.value.text


@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        ("", {"deploy", "destroy", "status"}, {"--model"}),
        ("deploy", {"--model", "--gpu"}, {"deploy", "status"}),
        ("deploy --model x", {"--gpu"}, {"--model"}),
        ("deploy --gpu", {"L4", "H100"}, {"--model"}),
        ("list --status", {"active", "failed"}, {"--status"}),
        ("local", {"preempt", "bill"}, {"deploy"}),
        ("local preempt", {"--service-name"}, {"preempt"}),
        ("status --service-name", {"mine"}, {"L4"}),
        ("budget", {"set", "list", "remove"}, {"status"}),
        ("budget set --action", {"notify", "stop-overflow", "scale-down", "destroy"}, {"day"}),
        ("budget remove --service-name", {"mine"}, {"L4"}),
        ("benchmark", {"load-test", "compare", "list", "show"}, {"status"}),
        ("benchmark load-test --service-name", {"mine"}, {"L4"}),
        ("benchmark load-test --arrivals", {"poisson", "gamma", "trace"}, {"--rate"}),
        ("deploy --budget-per", {"total", "day", "month"}, set()),
    ],
)
def test_suggestions_follow_the_grammar(words: str, offered: set[str], not_offered: set[str]) -> None:
    known = {"gpu": ["L4", "H100"], "service_name": ["mine"]}
    got = {text for text, _ in grammar.suggestions(grammar.build("tuna"), words.split(), known)}
    assert offered <= got
    assert not not_offered & got
