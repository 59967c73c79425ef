"""A backend is what happened to it: what the policy sees is kept current by attempts, probes and looks."""

from __future__ import annotations

from typing import Any

import pytest

from tuna_router.books.ledger import Ledger
from tuna_router.books.meter import Meter, Outcome
from tuna_router.fleet.breaker import Circuit
from tuna_router.fleet.live import Attempt, Fleet, LiveBackend
from tuna_router.policy import Priority, Wish
from tuna_router.settings import parse_settings
from tuna_router.spot import Notice, ProbePassed, ReplicasSeen, SpotState

PAIR = [{"kind": "serverless", "url": "http://a"}, {"kind": "spot", "url": "http://b", "max_concurrency": 8}]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fleet(*backends: dict[str, Any], **configured: Any) -> tuple[Fleet, Clock]:
    clock = Clock()
    ledger = Ledger(clock, clock)
    made = Fleet(Meter(clock, clock), ledger)
    settings = parse_settings({"backends": list(backends) or PAIR, **configured})
    ledger.configure(settings.backends, clock.now)
    made.configure(settings)
    for spot in made.spots:
        assert spot.machine is not None
        spot.tell(ProbePassed(spot.machine.begin_probe()))
    return made, clock


def gone(backend: LiveBackend, clock: Clock) -> None:
    attempt = Attempt(backend, clock.now)
    backend.failed(attempt, "connection refused", gone=True, cooldown_s=5)
    attempt.close(Outcome.FAILED, clock.now)


def answered(backend: LiveBackend, clock: Clock, ttft_s: float, length_s: float = 1) -> None:
    attempt = Attempt(backend, clock.now)
    clock.now += ttft_s
    backend.first_byte(ttft_s)
    clock.now += length_s
    backend.served(attempt, clock.now)
    attempt.close(Outcome.FINISHED, clock.now)


def test_a_plan_counts_as_traffic_and_wakes_every_cold_spot() -> None:
    made, clock = fleet()
    spot = made["spot"]
    assert made.plan().names == ("spot", "serverless")
    spot.tell(ReplicasSeen(ready=0))
    assert spot.state is SpotState.COLD
    clock.now += 0.01
    plan = made.plan()
    assert spot.state is SpotState.WARMING, "also when another request came a moment ago"
    assert plan.names == ("serverless", "spot")


def test_a_spot_that_is_gone_is_passed_over_until_one_request_has_tried_it() -> None:
    made, clock = fleet()
    spot = made["spot"]
    gone(spot, clock)
    assert (spot.state, spot.circuit, spot.cooling) == (SpotState.WARMING, Circuit.OPEN, True)
    assert spot.machine is not None
    spot.tell(ProbePassed(spot.machine.begin_probe()))
    assert spot.state is SpotState.READY
    assert made.plan().names[0] == "serverless", "a probe right after is no proof: behind an endpoint are several"
    clock.now += 5
    assert spot.circuit is Circuit.HALF_OPEN
    assert made.plan().names[0] == "spot"
    trial = Attempt(spot, clock.now)
    assert made.plan().names[0] == "serverless", "one at a time"
    spot.first_byte(0.0)
    assert made.plan().names[0] == "spot"
    spot.served(trial, clock.now)
    assert not spot.cooling


def test_a_spot_that_comes_back_later_is_trusted_after_its_probe() -> None:
    made, clock = fleet()
    spot = made["spot"]
    gone(spot, clock)
    clock.now += 60
    assert spot.machine is not None
    spot.tell(ProbePassed(spot.machine.begin_probe()))
    assert spot.circuit is Circuit.CLOSED


def test_one_of_several_replicas_that_is_gone_does_not_send_everybody_into_a_cold_container() -> None:
    made, clock = fleet()
    spot = made["spot"]
    spot.tell(ReplicasSeen(ready=2))
    gone(spot, clock)
    assert made.plan().names[0] == "spot"
    gone(spot, clock)
    gone(spot, clock)
    assert made.plan().names[0] == "serverless"


def test_a_backend_without_room_is_passed_over_for_a_moment_and_not_doubted() -> None:
    made, clock = fleet()
    spot = made["spot"]
    spot.busy("status 429", cooldown_s=1)
    assert (spot.state, spot.circuit) == (SpotState.READY, Circuit.CLOSED)
    assert made.plan().names[0] == "serverless"
    assert made.plan(Wish(Priority.BATCH)).names[0] == "spot"
    clock.now += 1
    assert made.plan().names[0] == "spot"


def test_the_only_backend_is_tried_whatever_its_circuit_says() -> None:
    made, clock = fleet({"kind": "serverless", "url": "http://a"})
    for _ in range(5):
        gone(made["serverless"], clock)
        assert made.plan().names == ("serverless",)
    assert made["serverless"].state_name == "COOLING"


def test_cold_starts_and_warm_answers_are_learned_apart() -> None:
    made, clock = fleet()
    serverless = made["serverless"]
    waiting = Attempt(serverless, clock.now)
    clock.now += 1
    late = Attempt(serverless, clock.now)
    clock.now += 39
    serverless.first_byte(40)
    clock.now += 1
    serverless.first_byte(40)  # it began while there was no container yet
    assert serverless.learned.cold_ttft_s == 40
    assert serverless.learned.ttft_s is None
    for attempt in (waiting, late):
        attempt.close(Outcome.FINISHED, clock.now)
    clock.now += 50
    answered(serverless, clock, 0.5)
    assert serverless.learned.ttft_s == 0.5
    clock.now += 61
    answered(serverless, clock, 30)
    assert serverless.learned.cold_ttft_s == pytest.approx(38)


def test_a_queue_that_was_seen_sends_new_requests_to_a_warm_container_and_lets_go_below_half() -> None:
    made, clock = fleet(overflow_wait_s=2)
    spot, serverless = made["spot"], made["serverless"]
    answered(spot, clock, 0.1, 3.9)
    answered(serverless, clock, 0.1)
    spot.queue_seen(running=2, waiting=2)
    plan = made.plan()
    assert (plan.names[0], plan.crowded) == ("serverless", {"spot"})
    assert made.plan(Wish(Priority.BATCH)).names[0] == "spot"
    spot.queue_seen(running=4, waiting=2)
    assert made.plan().names[0] == "serverless", "two seconds is no more than the limit, and more than half of it"
    spot.queue_seen(running=8, waiting=1)
    assert made.plan().names[0] == "spot"
    spot.queue_seen(running=4, waiting=2)
    assert made.plan().names[0] == "spot"
    spot.queue_unknown()
    assert made.plan().crowded == frozenset()


def test_of_several_replicas_a_look_sees_one_so_looks_are_averaged() -> None:
    made, _ = fleet()
    spot = made["spot"]
    spot.tell(ReplicasSeen(ready=3))
    spot.queue_seen(8, 4)
    spot.queue_seen(4, 0)
    assert (spot.replicas, spot.running, spot.waiting) == (3, 6, 2)


def test_late_first_tokens_tell_of_a_queue_that_can_not_be_seen() -> None:
    made, clock = fleet({"kind": "serverless", "url": "http://a"}, {"kind": "spot", "url": "http://b"})
    spot = made["spot"]
    answered(spot, clock, 0.2)
    answered(made["serverless"], clock, 0.2)
    running = [Attempt(spot, clock.now) for _ in range(20)]
    for _ in running:
        spot.first_byte(4.0)
    assert made.plan().names[0] == "serverless"
    for attempt in running:
        attempt.close(Outcome.FINISHED, clock.now)
    assert made.plan().names[0] == "spot", "it is empty now"


def test_what_was_learned_is_kept_by_a_new_configuration() -> None:
    made, clock = fleet()
    answered(made["spot"], clock, 0.5)
    spot = made["spot"]
    changed = [PAIR[0], {**PAIR[1], "max_concurrency": 9, "weight": 2, "models": {"m": "own"}}]
    made.configure(parse_settings({"backends": changed}))
    assert made["spot"] is spot
    assert (spot.limit, spot.weight, spot.own_model("m"), spot.own_model("x")) == (9, 2, "own", "x")
    assert spot.learned.ttft_s == 0.5
    assert made["serverless"].own_model("m") == "m"


def test_a_replica_that_comes_after_another_begins_without_its_queue() -> None:
    made, clock = fleet()
    spot = made["spot"]
    spot.queue_seen(8, 30)
    gone(spot, clock)
    assert spot.waiting is None


def test_a_spot_under_notice_takes_nothing_new() -> None:
    made, _ = fleet()
    made["spot"].tell(Notice(120))
    assert made.plan().names == ("serverless",)
    assert made.plan().reason == "spot is draining"
