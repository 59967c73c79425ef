"""Budgets as a person types them, in a terminal and a notebook; and what they refuse."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.deployments.receiver import receiving
from tests.frontends.shells import TestingShell
from tests.frontends.terminals import Done, Terminal, deploy_words, until
from tuna_nb.deployments.keeping import companion
from tuna_nb.settings import Settings
from tuna_nb.store import Store

pytestmark = pytest.mark.e2e

Tuna = Callable[..., Done]
DEAR = ("--option", "serverless_price_per_hour_usd=36000")
"""Ten dollars a second."""


def rows(tuna: Tuna, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tuna("budget", "list", *words, "-o", "json").json["rows"]
    return found


def test_budgets_are_set_listed_replaced_and_removed(tuna: Tuna) -> None:
    assert "no budgets" in tuna("budget", "list").out
    done = tuna("budget", "set", "--limit", "20", "--per", "day", "--warn", "25,75", "--action", "stop-overflow")
    assert "all deployments: a budget of $20.00 a day" in done.out
    (row,) = rows(tuna)
    assert {k: row[k] for k in ("name", "per", "limit_usd", "spent_usd", "left_usd", "warn", "action", "fired")} == {
        "name": "all deployments", "per": "day", "limit_usd": 20, "spent_usd": 0, "left_usd": 20,
        "warn": [25, 75], "action": "stop-overflow", "fired": [],
    }  # fmt: skip
    assert row["resets_at"] > row["since"]
    again = tuna("budget", "set", "--limit", "30", "--per", "day")
    assert "in place of $20.00 a day (stop-overflow)" in again.out
    assert "nothing has changed" in tuna("budget", "set", "--limit", "30", "--per", "day").out
    tuna("budget", "set", "--limit", "100")
    assert [(r["per"], r["limit_usd"]) for r in rows(tuna)] == [("day", 30), ("total", 100)]
    assert "removed: $30.00 a day" in tuna("budget", "remove", "--per", "day").out
    assert [r["per"] for r in rows(tuna)] == ["total"]
    tuna("budget", "remove")
    assert rows(tuna) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "--limit", "-3"), "a budget of $-3 is none"),
        (("set", "--limit", "0"), "a budget of $0 is none"),
        (("set", "--limit", "nan"), "a budget of $nan is none"),
        (("set", "--limit", "much"), "invalid float value"),
        (("set",), "the following arguments are required: --limit"),
        (("set", "--limit", "5", "--warn", "50,oft"), "--warn '50,oft' is no list of per cents"),
        (("set", "--limit", "5", "--warn", "150"), "a warning at 150 % can't be"),
        (("set", "--limit", "5", "--per", "dya"), "unknown value for --per: 'dya'"),
        (("set", "--limit", "5", "--action", "detsroy"), "unknown value for --action: 'detsroy'"),
        (("set", "--limit", "5", "--service-name", "nobody"), "no deployment named 'nobody'"),
        (("remove",), "all deployments: there is no such budget"),
        (("remove", "--per", "month"), "all deployments: there is no such budget per month"),
        (("lst",), "unknown action 'lst'"),
        (("set", "--limit", "5", "--webhook", "NO_SUCH_NAME"), "there is no variable NO_SUCH_NAME"),
    ],
)
def test_what_is_no_budget_is_answered_with_what_to_do(tuna: Tuna, words: tuple[str, ...], message: str) -> None:
    done = tuna("budget", *words, code=None)
    said, hint = done.refusal
    assert done.code
    assert message in said
    assert hint.startswith("hint: ")
    assert rows(tuna) == []


def test_a_webhooks_address_is_kept_where_secrets_are_and_shown_by_its_host(
    tuna: Tuna, monkeypatch: pytest.MonkeyPatch, own_data_folder: Path
) -> None:
    monkeypatch.setenv("MY_HOOK", "https://hooks.example/T0/very-secret")
    done = tuna("budget", "set", "--limit", "5", "--webhook", "MY_HOOK")
    assert "https://hooks.example/..." in done.out
    assert "very-secret" not in done.out + tuna("budget", "list", "-o", "json").out
    assert "very-secret" not in (own_data_folder / "tuna.db").read_bytes().decode("latin-1")
    kept = own_data_folder / "secrets" / "all.json"
    assert json.loads(kept.read_text())["webhook_url"].endswith("very-secret")
    assert kept.stat().st_mode & 0o077 == 0
    tuna("budget", "remove")
    assert not kept.exists()


def test_looking_at_a_plan_makes_no_records(tuna: Tuna, own_data_folder: Path) -> None:
    out = tuna(*deploy_words("x", "--serverless-only", "--budget", "5", "--dry-run")).out
    assert "budget of $5.00 in total for x" in out
    assert not (own_data_folder / "tuna.db").exists()


def test_a_deploy_that_a_budget_does_not_hold_is_refused_before_anything_is(tuna: Tuna) -> None:
    tuna("budget", "set", "--limit", "20", "--per", "day", "--action", "destroy")
    dear = deploy_words("x", "--serverless-only", *DEAR)
    for words in (dear, [*dear, "--dry-run"]):
        message, hint = tuna(*words, code=2).refusal
        assert "deploy x: its worst case is $36,000.00 an hour, and of $20.00 a day for all deployments" in message
        assert "tuna budget set --per day --limit" in hint
    own = tuna(*deploy_words("x", "--serverless-only", "--budget", "0.1"), code=2).refusal[0]
    assert "of $0.10 in total for x $0.10 is left" in own
    assert tuna("list", "-o", "json").json["deployments"] == []
    assert [r["name"] for r in rows(tuna)] == ["all deployments"]
    plan = tuna(*deploy_words("x", "--serverless-only", "--budget", "2", "--dry-run")).out
    assert "budget of $20.00 a day for all deployments: $20.00 left; the worst case reaches it in" in plan
    assert "then: it is told, and nothing else happens" in plan
    assert [r["name"] for r in rows(tuna)] == ["all deployments"], "a dry run sets nothing"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--budget-per", "day"), "--budget-per without --budget"),
        (("--budget", "-1"), "--budget: a budget of $-1 is none"),
        (("--budget", "5", "--budget-action", "stop-overflow"), "no overflow to stop"),
        (("--quiet-minutes", "0"), "--quiet-minutes is 0"),
        (("--budget", "5", "--budget-webhook", "NO_SUCH_NAME"), "there is no variable NO_SUCH_NAME"),
    ],
)
def test_a_deploys_own_budget_is_checked_before_it_begins(tuna: Tuna, flags: tuple[str, ...], message: str) -> None:
    done = tuna(*deploy_words("x", "--serverless-only", *flags), code=2)
    assert message in done.refusal[0]
    assert tuna("list", "-o", "json").json["deployments"] == []


def test_a_budget_comes_with_the_deploy_and_holds_a_scaling_up(tuna: Tuna, own_data_folder: Path) -> None:
    tuna(*deploy_words(
        "x", "--serverless-only", "--budget", "1.5", "--budget-per", "day", "--budget-action", "scale-down",
        "--quiet-minutes", "5", "--stop-unserving",
    ))  # fmt: skip
    (row,) = rows(tuna, "--service-name", "x")
    assert (row["name"], row["limit_usd"], row["per"], row["action"]) == ("x", 1.5, "day", "scale-down")
    store = Store(Settings.load())
    record = store.deployment("x")
    first = store.events(record.id)[0][1]
    assert first.startswith("budget: "), "before anything else happened"
    rule = store.budgets.quiet(record.id)
    assert rule is not None
    assert (rule.quiet_s, rule.stop) == (300, True)
    store.close()
    companion.stop(record.id)
    (note,) = tuna("budget", "list", "-o", "json").json["notes"]
    assert note == "nobody looks after x now: `tuna status --service-name x` sees to it"
    for words in (
        ("status", "--service-name", "x"),
        ("list",),
        ("budget", "set", "--service-name", "x", "--limit", "1.5", "--per", "day", "--action", "scale-down"),
    ):
        companion.stop(record.id)  # as where the machine was off
        tuna(*words)
        until(lambda: companion.find(record.id, companion.KEEPER) is not None)
    refused = tuna("scale", "--service-name", "x", "--workers-max", "9", code=2).refusal[0]
    assert "scale x: its worst case is $" in refused
    tuna("scale", "--service-name", "x", "--concurrency", "8")
    assert (
        "there is no overflow to stop"
        in (
            tuna(
                "budget", "set", "--service-name", "x", "--limit", "5", "--action", "stop-overflow", code=2
            ).refusal[0]
        )
    )
    tuna("destroy", "--service-name", "x")
    assert rows(tuna) == [], "it goes with its deployment"
    assert "x was destroyed" in tuna("budget", "set", "--service-name", "x", "--limit", "5", code=1).refusal[0]


@pytest.fixture
def shell(own_data_folder: Path) -> Iterator[TestingShell]:
    made = TestingShell.instance()
    made.run_cell("%load_ext tuna_nb")
    yield made
    made.run_cell("%unload_ext tuna_nb")
    TestingShell.clear_instance()
    InteractiveShell.clear_instance()


def test_in_a_notebook_a_list_is_a_dataframe(shell: TestingShell) -> None:
    assert type(shell.run("%tuna budget list")) is pd.DataFrame
    shell.run("%tuna budget set --limit 20 --per month")
    table = shell.run("budgets = %tuna budget list\nbudgets")
    assert list(table["limit_usd"]) == [20.0]
    assert str(table["resets_at"].dt.tz) == "UTC"
    _error, seen = shell.failed("%tuna budget set --limit -1")
    assert "hint" in seen
    shell.run("%tuna budget remove")


def test_it_holds_when_whoever_deployed_was_killed(home: Terminal, own_data_folder: Path) -> None:
    """The process that deploys dies without a word; what it left goes by its budget, and somebody is told."""
    with receiving() as receiver:
        words = deploy_words("x", "--wait", *DEAR, "--option", "spot_price_per_hour_usd=0", boot_s=600)
        deploying = home.start(*words)
        store = Store(Settings.load())
        until(lambda: (live := store.live_deployment("x")) is not None and live.endpoint_url is not None)
        os.kill(deploying.pid, signal.SIGKILL)
        deploying.communicate()
        hook = {"TUNA_WEBHOOK_KEY": "k", "MY_HOOK": receiver.url}
        os.environ.update(hook)
        try:
            home(
                "budget",
                "set",
                "--service-name",
                "x",
                "--limit",
                "1",
                "--action",
                "destroy",
                "--webhook",
                "MY_HOOK",
            )
        finally:
            for name in hook:
                del os.environ[name]
        until(lambda: store.live_deployment("x") is None, within_s=40)
        until(lambda: receiver.got)
        assert [got["tuna"]["level"] for got in receiver.got] == [100]
        assert receiver.wrong == []
        record = store.deployment("x")
        assert "budget of $1.00 in total was used up" in str(record.error)
        assert {r.state for r in store.resources(record.id)} == {"gone"}
        store.close()
    assert "very-secret" not in home.said
    for log in own_data_folder.rglob("*.log"):
        assert "very-secret" not in log.read_text(), log
