"""A level fires once in each day, whoever looks, however often, and wherever the clock jumps."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.deployments.leftovers import settings_of
from tuna_nb.costs import budgets
from tuna_nb.costs.ledger import report
from tuna_nb.deployments.keeping.enforce import Enforcer, _serverless_use
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.records import IntervalRecord

ZONE = ZoneInfo("Europe/Berlin")
DAY_ONE = dt.datetime(2026, 10, 24, tzinfo=ZONE).timestamp()
_names = itertools.count()


def zone(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, ZONE)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(settings_of(tmp_path))
    yield made
    made.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 4 * 24), st.integers(0, 1)), min_size=1, max_size=12),
    st.sampled_from(["notify", "destroy", "stop-overflow"]),
)
def test_each_level_fires_once_a_day(workspace: Workspace, looks: list[tuple[float, int]], action: str) -> None:
    """looks: (hours after the first midnight, by which of two processes), in any order: clocks jump."""
    store, name = workspace.store, f"d{next(_names)}"
    row = {"role": "spot", "provider": "p", "name": "n", "price_per_hour_usd": 1.0}
    record = store.add_deployment(name, {}, {}, [row], name)
    (resource,) = store.resources(name)
    store.update_resource(resource.id, state="created")
    report(
        store.books,
        resource.id,
        [IntervalRecord(resource.id, "r", DAY_ONE, None, None, DAY_ONE, ((DAY_ONE, 1.0),))],
    )
    one, _ = store.budgets.put(name, 12, "day", (50,), action, webhook=False, now=DAY_ONE)
    now = [0.0]
    processes = [Enforcer(workspace, lambda: now[0], zone) for _ in range(2)]
    due = set[tuple[str, float, str]]()
    for hours, process in looks:
        now[0] = DAY_ONE + hours * 3600
        at = budgets.standing(store, one, now[0], zone)
        processes[process]._fire(record, at, now[0])
        for level in budgets.reached(at):
            due.add((at.window.key, level, ""))
            if budgets.action_at(one, level):
                due.add((at.window.key, level, name))
    fired = Counter((f.window, f.level, f.deployment_id) for f in store.budgets.fired(one.id))
    assert set(fired) == due, "none is lost"
    assert set(fired.values()) <= {1}, "none is fired twice"
    told = [text for _, text in store.events(name)]
    assert len(told) <= len({(window, level) for window, level, _ in due})
    store.budgets.remove(one)


async def test_what_was_to_be_done_yesterday_is_not_done_today(workspace: Workspace) -> None:
    store = workspace.store
    record = store.add_deployment("x", {"model": "m"}, {}, [], "x1")
    one, _ = store.budgets.put("x1", 5, "day", (), "scale-down", webhook=False, now=DAY_ONE)
    now = [DAY_ONE + 3600]
    enforcer = Enforcer(workspace, lambda: now[0], zone)
    used_up = replace(budgets.standing(store, one, now[0], zone), spent_usd=6)
    enforcer._fire(record, used_up, now[0])
    assert [f.action for f in store.budgets.pending("x1")] == ["scale-down"]
    now[0] += 86400
    today = budgets.standing(store, one, now[0], zone)
    await enforcer._act(record, [today], told=True)
    (pending,) = store.budgets.pending("x1")
    assert pending.trouble == "", "it was not tried"


@pytest.mark.parametrize(
    ("action", "spent", "use"),
    [("stop-overflow", 5.0, "cover"), ("stop-overflow", 5.5, "never"), ("scale-down", 9.0, "cover"),
     ("destroy", 0.0, "never")],
)  # fmt: skip
def test_what_the_router_does_when_nothing_is_left(
    workspace: Workspace, action: str, spent: float, use: str
) -> None:
    one, _ = workspace.store.budgets.put("x1", 5, "day", (), action, webhook=False, now=DAY_ONE)
    at = replace(budgets.standing(workspace.store, one, DAY_ONE, zone), spent_usd=spent)
    assert _serverless_use(at) == use
