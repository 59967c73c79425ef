"""`cost`: since when, by what, for whom; in a terminal and as a table in a notebook."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from zoneinfo import ZoneInfo

import pytest

from tests.frontends.terminals import Done, deploy_words
from tuna_nb.commands.cost import parse_since
from tuna_nb.costs.bill import Bill, Group
from tuna_nb.errors import UsageError
from tuna_nb.grammar.flags import BILL_GROUPS
from tuna_nb.views import data

pytestmark = pytest.mark.e2e

Tuna = Callable[..., Done]
BERLIN = ZoneInfo("Europe/Berlin")
NOON = dt.datetime(2026, 3, 29, 12, tzinfo=BERLIN).timestamp()
"""Of a day of 23 hours."""


def berlin(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, BERLIN)


@pytest.mark.parametrize(
    ("text", "hours_ago"),
    [("90m", 1.5), ("24h", 24), ("7d", 168), ("1.5h", 1.5), ("today", 11), ("month", 28 * 24 + 11),
     ("2026-03-28", 35), ("2026-03-29T06:00:00+02:00", 6)],
)  # fmt: skip
def test_since_when(text: str, hours_ago: float) -> None:
    assert NOON - parse_since(text, NOON, berlin) == pytest.approx(hours_ago * 3600)


@pytest.mark.parametrize("text", ["yesterday", "", "7", "h", "-3d", "2026-13-01"])
def test_a_time_that_makes_no_sense_is_refused_with_what_would(text: str) -> None:
    with pytest.raises(UsageError, match="is no time") as e:
        parse_since(text, NOON, berlin)
    assert "24h" in str(e.value.hint)


def test_a_bill_by_something_is_a_table_in_a_notebook() -> None:
    made = Bill("a", (), 3.0, 0.0, 5, 1, 1, by="key", groups=(Group("ann", 2.0, 4, 9), Group("(idle)", 1.0, 0, 0)))
    table = data.frame(made)
    assert table is not None
    assert list(table.columns) == ["key", "usd", "requests", "tokens"]
    assert table["usd"].sum() == 3.0
    assert data.frame(Bill("a", (), 3.0, 0.0, 5, 1, 1)) is None


def test_the_cost_of_one_and_of_all(tuna: Tuna) -> None:
    tuna(*deploy_words("a"))
    tuna(*deploy_words("b"))
    one, both = tuna("cost", "--service-name", "a", "-o", "json").json, tuna("cost", "-o", "json").json
    assert 0 < one["usd"] < both["usd"]
    assert (one["name"], both["name"]) == ("a", "all deployments")
    assert [v["policy"] for v in one["versus"]] == ["serverless only", "on-demand only", "spot only"]
    assert both["versus"] == [], "each has a policy of its own"
    for by in BILL_GROUPS:
        told = tuna("cost", "--by", by, "-o", "json").json
        if by == "backend":
            continue
        assert sum(group["usd"] for group in told["groups"]) == pytest.approx(told["usd"]), by
    assert {g["name"] for g in tuna("cost", "--by", "deployment", "-o", "json").json["groups"]} == {"a", "b"}
    assert tuna("cost", "--since", "noon", code=2).refusal == (
        "tuna: --since 'noon' is no time", "hint: write 90m, 24h, 7d, today, month, or a date like 2026-11-01",
    )  # fmt: skip
    assert tuna("cost", "--live", code=2).refusal[0] == "tuna: cost --live shows one deployment"
    tuna("destroy", "--all")
    gone = tuna("cost", "--service-name", "a").out
    assert "$0.000 per hour" in gone
    assert "by midnight" not in gone
    assert "serverless only for the same traffic" in gone
