"""All books of a router at once, in any interleaving: nothing is lost, nothing counted twice."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tuna_router.admission import Ticket, Waiting
from tuna_router.auth import sha256_hex
from tuna_router.books.meter import Outcome
from tuna_router.control.endpoints import stats
from tuna_router.core import Core
from tuna_router.dataplane.account import Account
from tuna_router.settings import parse_settings
from tuna_router.spot import ProbePassed, ReplicasSeen

OUTCOMES = st.sampled_from(Outcome)
PRICES = {"spot": 3600.0, "serverless": 7200.0}
CONFIG = {
    "keys": [{"name": "alice", "sha256": sha256_hex("alice")}],
    "backends": [
        {"name": name, "kind": name, "url": f"http://{name}.example", "price_per_hour_usd": price}
        for name, price in PRICES.items()
    ],
    "max_concurrency": 3,
    "max_queue": 2,
}


class Life:
    """One admitted request."""

    def __init__(self, ticket: Ticket, account: Account) -> None:
        self.ticket = ticket
        self.account = account


class Books(RuleBasedStateMachine):
    """Requests come, wait, are tried, fail, are tried again, end, and are cancelled at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.core = Core(parse_settings(CONFIG), clock=lambda: self.now, wall=lambda: self.now)
        key = self.core.guard.find(b"alice")
        assert key is not None
        self.key = key
        self.lives: list[Life] = []
        self.waiting: list[Waiting] = []
        self.came = self.left = self.got = 0
        self.due = 0.0

    def _gets_its_place(self, ticket: Ticket) -> None:
        self.got += 1
        self._admitted(ticket)

    def _admitted(self, ticket: Ticket) -> None:
        self.lives.append(Life(ticket, Account(self.core.meter, self.now, ticket.key)))

    @rule(batch=st.booleans())
    def comes(self, batch: bool) -> None:
        ticket = self.core.admission.enter(self.key)
        if ticket is not None:
            self.key.enter()
            self._admitted(ticket)
            return
        waiting = self.core.admission.wait(self._gets_its_place, self.key, batch=batch)
        if waiting is not None:
            self.key.enter()
            self.waiting.append(waiting)
            self.came += 1

    @rule(which=st.integers(0, 9))
    def leaves_the_queue(self, which: int) -> None:
        if which < len(self.waiting):
            self.left += self.waiting.pop(which).cancel()

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), name=st.sampled_from(sorted(PRICES)), ended=OUTCOMES)
    def is_tried(self, which: int, name: str, ended: Outcome) -> None:
        life = self.lives[which % len(self.lives)]
        self._end_attempt(life, ended)
        life.account.tries(self.core.fleet[name], self.now)

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), outcome=OUTCOMES, again=st.booleans())
    def ends(self, which: int, outcome: Outcome, again: bool) -> None:
        life = self.lives.pop(which % len(self.lives))
        for _ in range(1 + again):
            life.account.close(outcome, self.now, "m")
            life.ticket.leave()

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        for name, cost in self.core.ledger.backends.items():
            if cost.in_flight or cost.billed:
                self.due += seconds * PRICES[name] / 3600
        self.now += seconds

    @rule(ready=st.integers(0, 1), draining=st.integers(0, 1))
    def the_fleet_changes(self, ready: int, draining: int) -> None:
        self.core.fleet["spot"].tell(ReplicasSeen(ready, 0, draining))

    @rule()
    def a_probe_passes(self) -> None:
        backend = self.core.fleet["spot"]
        assert backend.machine is not None
        backend.tell(ProbePassed(backend.machine.epoch))

    def _end_attempt(self, life: Life, outcome: Outcome) -> None:
        attempt = life.account.attempt
        if attempt is not None:
            attempt.close(outcome, self.now, "m")
            attempt.close(Outcome.FAILED, self.now, "m")

    @invariant()
    def every_request_and_attempt_is_in_one_counter(self) -> None:
        shown = stats(self.core)
        for level in (shown["requests"], *shown["backends"]):
            assert level["started"] == level["finished"] + level["cancelled"] + level["failed"] + level["running"]
        assert shown["requests"]["running"] == len(self.lives) == shown["in_flight"]
        assert sum(b["running"] for b in shown["backends"]) == sum(b.in_flight for b in self.core.fleet)

    @invariant()
    def places_are_exact(self) -> None:
        assert self.core.admission.waiting == self.came - self.left - self.got
        assert self.key.in_flight == len(self.lives) + self.core.admission.waiting

    @invariant()
    def a_spot_costs_while_it_is_up(self) -> None:
        up = self.core.fleet["spot"].state_name in ("READY", "DRAINING")
        assert self.core.ledger.backends["spot"].billed is up
        assert not self.core.ledger.backends["serverless"].billed

    @invariant()
    def dollars_add_up(self) -> None:
        self.core.ledger.advance()
        costs = self.core.ledger.backends.values()
        running = 0.0
        for life in self.lives:
            attempt = life.account.attempt
            if attempt is not None and attempt._share._cost is not None:
                running += attempt._share._cost.usd_each - attempt._share._usd_from
        paid = sum(c.requests_usd for c in costs)
        assert self.key.spent.total_usd == pytest.approx(paid)
        assert sum(usd for _, usd in self.core.ledger.models) == pytest.approx(paid)
        assert paid + running + sum(c.idle_usd for c in costs) == pytest.approx(self.due)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
