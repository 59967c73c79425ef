"""The load, minute by minute: every request is in the minutes in which it began, ran and ended, and in no other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tuna_router.books.load import MOST_MINUTES, MOST_NAMES, Minute, Used, joined_spans, merged
from tuna_router.books.meter import Outcome, Tokens
from tuna_router.core import Core
from tuna_router.dataplane.account import Account
from tuna_router.settings import parse_settings

BEGIN = 1_700_000_040.0
"""A whole minute."""
CONFIG = {
    "keys": [{"name": name, "sha256": character * 64} for name, character in (("alice", "a"), ("bob", "b"))],
    "backends": [
        {"name": "spot", "kind": "spot", "url": "http://spot.example"},
        {"name": "serverless", "kind": "serverless", "url": "http://serverless.example"},
    ],
}


class Clocks:
    """A router's books on two clocks of ours."""

    def __init__(self, begin: float = BEGIN) -> None:
        self.now = 1000.0
        self.unix_s = begin
        self.core = Core(parse_settings(CONFIG), clock=lambda: self.now, wall=lambda: self.unix_s)
        self.load = self.core.meter.load
        self.keys = {key.settings.name: key for key in self.core.guard}

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.unix_s += seconds

    def request(self, key: str | None = "alice", backend: str = "spot", model: str = "m") -> Account:
        account = Account(self.core.meter, self.now, None if key is None else self.keys[key])
        account.tries(self.core.fleet[backend], self.now, model)
        return account

    def ends(self, account: Account, prompt: int = 0, completion: int = 0, model: str = "m") -> None:
        account.tokens = Tokens(prompt, completion)
        account.close(Outcome.FINISHED, self.now, model)

    def minutes(self) -> list[Minute]:
        mine = self.load.told()
        return [*mine.minutes, *([mine.running] if mine.running is not None else [])]


def test_a_request_is_in_every_minute_in_which_it_began_ran_or_ended() -> None:
    clocks = Clocks()
    clocks.passes(10.5)
    request = clocks.request()
    clocks.passes(120)
    clocks.ends(request, 9, 64)
    first, second, third = clocks.minutes()
    assert (first.at, first.in_flight, first.arrivals, first.ends) == (int(BEGIN), 0, ((10, 1),), ())
    assert (second.at, second.in_flight, second.arrivals, second.ends) == (int(BEGIN) + 60, 1, (), ())
    assert (third.at, third.in_flight, third.arrivals, third.ends) == (int(BEGIN) + 120, 1, (), ((10, 1),))
    for names in ("backends", "models", "keys"):
        name = {"backends": "spot", "models": "m", "keys": "alice"}[names]
        assert getattr(first, names)[name] == Used(0, 0.0, 49.5, 0, 0)
        assert getattr(second, names)[name] == Used(0, 0.0, 60.0, 0, 0)
        assert getattr(third, names)[name] == Used(1, 120.0, 10.5, 9, 64)


def test_a_quiet_minute_is_left_out_and_a_quiet_week_is_not_gone_through() -> None:
    clocks = Clocks()
    clocks.ends(clocks.request())
    clocks.passes(7 * 86400)
    clocks.ends(clocks.request())
    assert [minute.at for minute in clocks.minutes()] == [int(BEGIN), int(BEGIN) + 7 * 86400]
    clocks.passes(60)
    assert len(clocks.minutes()) == 2


def test_a_request_that_was_tried_nowhere_is_no_load() -> None:
    clocks = Clocks()
    Account(clocks.core.meter, clocks.now).close(Outcome.FAILED, clocks.now)
    assert clocks.minutes() == []


def test_a_request_is_counted_where_it_was_tried_last_and_its_seconds_where_they_were_spent() -> None:
    clocks = Clocks()
    request = clocks.request(backend="spot")
    clocks.passes(2)
    assert request.attempt is not None
    request.attempt.close(Outcome.FAILED, clocks.now)
    request.tries(clocks.core.fleet["serverless"], clocks.now, "m")
    clocks.passes(3)
    clocks.ends(request, 5, 7)
    [minute] = clocks.minutes()
    assert minute.backends == {"spot": Used(0, 2.0, 2.0, 0, 0), "serverless": Used(1, 3.0, 3.0, 5, 7)}
    assert minute.keys == {"alice": Used(1, 5.0, 5.0, 5, 7)}


def test_when_the_wall_clock_jumps_back_counting_goes_on_in_the_latest_minute() -> None:
    clocks = Clocks()
    clocks.passes(30)
    clocks.ends(clocks.request())
    clocks.unix_s -= 3600
    clocks.passes(600)
    request = clocks.request()
    clocks.passes(10)
    clocks.ends(request)
    [minute] = clocks.minutes()
    assert (minute.at, minute.arrivals, minute.ends) == (int(BEGIN), ((30, 2),), ((30, 2),))
    assert minute.backends["spot"].request_s == 10.0
    clocks.passes(2990 + 30)
    clocks.ends(clocks.request())
    assert [m.at for m in clocks.minutes()] == [int(BEGIN), int(BEGIN) + 60]
    assert len(clocks.load.told().spans) == 1


def test_when_the_wall_clock_jumps_forward_the_next_minute_begins_and_a_gap_is_told() -> None:
    clocks = Clocks()
    clocks.passes(30)
    request = clocks.request()
    clocks.passes(10)
    clocks.unix_s += 86400
    clocks.passes(2)
    clocks.ends(request)
    first, last = clocks.minutes()
    assert (first.at, last.at) == (int(BEGIN), int(BEGIN) + 86400)
    assert first.backends["spot"].busy_s + last.backends["spot"].busy_s == pytest.approx(12.0)
    assert last.backends["spot"].request_s == 12.0, "durations are not the wall clock's"
    assert (last.in_flight, last.ends) == (1, ((42, 1),))
    assert clocks.load.told().spans == ((BEGIN, BEGIN + 42), (BEGIN + 86442, BEGIN + 86442))


def test_a_loop_that_stood_still_for_minutes_loses_none_of_them() -> None:
    clocks = Clocks()
    request = clocks.request()
    clocks.passes(200)
    clocks.ends(request)
    assert [m.keys["alice"].busy_s for m in clocks.minutes()] == [60.0, 60.0, 60.0, 20.0]


def test_names_without_end_are_other() -> None:
    clocks = Clocks()
    for number in range(MOST_NAMES + 10):
        clocks.ends(clocks.request(model=f"m{number}"), 1, 1)
    [minute] = clocks.minutes()
    assert len(minute.models) == MOST_NAMES + 1
    assert minute.models["other"].requests == 10
    clocks.passes(60)
    clocks.ends(clocks.request(model="another"))
    assert set(clocks.minutes()[-1].models) == {"another"}, "each minute has room for its own"


def test_memory_is_bounded_and_says_from_when_it_knows() -> None:
    clocks = Clocks()
    for _ in range(MOST_MINUTES + 5):
        clocks.ends(clocks.request())
        clocks.passes(60)
    mine = clocks.load.told()
    assert len(mine.minutes) == MOST_MINUTES
    assert clocks.load.dropped_until == mine.minutes[0].at


def test_two_lives_of_one_minute_are_added_up() -> None:
    used = Used(1, 2.0, 45.0, 3, 4)
    one = Minute(60, 1, ((3, 1),), ((4, 2),), {"a": used}, {}, {"alice": used})
    other = Minute(60, 0, ((3, 2), (9, 1)), (), {"a": used, "b": used}, {"m": used}, {})
    both = merged(one, other)
    assert both == merged(other, one)
    assert both == Minute(
        60,
        1,
        ((3, 3), (9, 1)),
        ((4, 2),),
        {"a": Used(2, 4.0, 60.0, 6, 8), "b": used},
        {"m": used},
        {"alice": used},
    )


def test_lives_that_overlap_are_one_and_a_gap_stays_one() -> None:
    assert joined_spans([(5, 9), (0, 3), (2, 4), (9, 10)], 1) == [(1, 4), (5, 10)]


class Books(RuleBasedStateMachine):
    """Requests begin, move and end at any time; minutes are written down at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.clocks = Clocks()
        self.running: list[tuple[Account, str]] = []
        self.kept: list[Minute] = []
        self.completed: Counter[str] = Counter()

    @rule(
        key=st.sampled_from(["alice", "bob", None]),
        backend=st.sampled_from(["spot", "serverless"]),
        model=st.sampled_from(["m", "n", ""]),
    )
    def begins(self, key: str | None, backend: str, model: str) -> None:
        self.running.append((self.clocks.request(key, backend, model), model))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), backend=st.sampled_from(["spot", "serverless"]))
    def moves(self, which: int, backend: str) -> None:
        account, model = self.running[which % len(self.running)]
        assert account.attempt is not None
        account.attempt.close(Outcome.FAILED, self.clocks.now)
        account.tries(self.clocks.core.fleet[backend], self.clocks.now, model)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), tokens=st.tuples(st.integers(0, 99), st.integers(0, 99)))
    def ends(self, which: int, tokens: tuple[int, int]) -> None:
        account, model = self.running.pop(which % len(self.running))
        self.clocks.ends(account, *tokens, model=model)
        self.completed[model] += tokens[1]

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.clocks.passes(seconds)

    @rule(seconds=st.sampled_from([-5000.0, -20.0, -0.5, 0.5, 90.0, 5000.0]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.clocks.unix_s += seconds

    @rule()
    def it_is_written_down(self) -> None:
        mine = self.clocks.load.told()
        self.kept += mine.minutes
        self.clocks.load.written(mine.minutes)

    @invariant()
    def minutes_add_up_to_the_counters(self) -> None:
        minutes = [*self.kept, *self.clocks.minutes()]
        meter, now = self.clocks.core.meter, self.clocks.now
        assert [m.at for m in minutes] == sorted({m.at for m in minutes}), "never backwards"
        running = 0
        for minute in minutes:
            assert minute.in_flight == running
            running += sum(n for _, n in minute.arrivals) - sum(n for _, n in minute.ends)
        assert running == len(self.running)
        assert sum(n for m in minutes for _, n in m.ends) == meter.requests.finished
        for name, tally in meter.backends.items():
            of = [m.backends[name] for m in minutes if name in m.backends]
            assert sum(u.busy_s for u in of) == pytest.approx(tally.busy_seconds(now), abs=1e-3)
            assert sum(u.request_s for u in of) == pytest.approx(tally.request_s, abs=1e-3)
            assert sum(u.prompt_tokens for u in of) == tally.prompt_tokens
            assert sum(u.completion_tokens for u in of) == tally.completion_tokens
        everywhere = [u for m in minutes for u in m.backends.values()]
        assert sum(u.requests for u in everywhere) == meter.requests.finished
        for name, key in self.clocks.keys.items():
            mine = [m.keys[name] for m in minutes if name in m.keys]
            assert sum(u.completion_tokens for u in mine) == key.completion_tokens
        for model in ("m", "n"):
            found = [m.models[model] for m in minutes if model in m.models]
            assert sum(u.completion_tokens for u in found) == self.completed[model]


Books.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True)
TestBooks: Any = Books.TestCase
