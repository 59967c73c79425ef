"""The scaling rules: a snapshot in, a decision out."""

from __future__ import annotations

import pytest

from tuna_nb.backends.base import Kind, ServerlessScaling, SpotScaling, State
from tuna_nb.backends.local import scaling as rules
from tuna_nb.backends.local.bill import Bill, BilledInterval
from tuna_nb.backends.local.scaling import Decision, FleetTarget, InstanceView


def view(name: str, state: State = State.READY, in_flight: int = 0, idle_since: float = 0) -> InstanceView:
    return InstanceView(name, state, in_flight, idle_since)


SLS = ServerlessScaling(concurrency=2, scaledown_window=10, workers_max=3)


@pytest.mark.parametrize(
    ("instances", "queued", "start"),
    [
        ([], 0, 0),
        ([], 1, 1),
        ([], 3, 2),
        ([], 99, 3),
        ([view("a", State.STARTING)], 2, 0),
        ([view("a", in_flight=2)], 1, 1),
        ([view("a", State.STOPPING)], 1, 1),
        ([view("a", State.FAILED)], 1, 1),
    ],
)
def test_containers_follow_the_requests_at_hand(instances: list[InstanceView], queued: int, start: int) -> None:
    assert rules.serverless(SLS, instances, queued, now=5).start == start


def test_idle_containers_stop_after_the_window_and_the_minimum_stays() -> None:
    idle = [view("a", idle_since=0), view("b", idle_since=3), view("c", idle_since=95)]
    assert rules.serverless(SLS, idle, 0, now=9.9).stop == ()
    assert rules.serverless(SLS, idle, 0, now=100).stop == ("a", "b")
    kept = ServerlessScaling(concurrency=2, scaledown_window=10, workers_min=2, workers_max=3)
    assert rules.serverless(kept, idle, 0, now=100).stop == ("a",)
    assert rules.serverless(kept, [], 0, now=100).start == 2


def test_a_busy_or_booting_container_is_never_stopped() -> None:
    busy = [view("a", in_flight=1), view("b", State.STARTING)]
    assert rules.serverless(SLS, busy, 0, now=1000) == Decision()


FLEET = SpotScaling(min_replicas=0, max_replicas=4, target_qps=10, upscale_delay=5, downscale_delay=60)


def test_from_zero_the_first_request_wakes_a_fleet_at_once() -> None:
    asleep = rules.fleet_target(FleetTarget(0), FLEET, qps=0, last_request=None, now=0)
    assert asleep.replicas == 0
    assert rules.fleet_target(asleep, FLEET, qps=0.1, last_request=1, now=1).replicas == 1


def test_a_fleet_grows_only_after_load_has_lasted_the_delay() -> None:
    one = FleetTarget(1)
    first = rules.fleet_target(one, FLEET, qps=25, last_request=100, now=100)
    assert first.replicas == 1
    dip = rules.fleet_target(first, FLEET, qps=5, last_request=103, now=103)
    again = rules.fleet_target(dip, FLEET, qps=25, last_request=104, now=104)
    assert rules.fleet_target(again, FLEET, qps=25, last_request=106, now=106).replicas == 1
    assert rules.fleet_target(again, FLEET, qps=25, last_request=109, now=109).replicas == 3


def test_a_fleet_shrinks_after_the_delay_and_to_zero_only_without_a_request() -> None:
    three = rules.fleet_target(FleetTarget(3), FLEET, qps=5, last_request=100, now=100)
    assert three.replicas == 3
    one = rules.fleet_target(three, FLEET, qps=5, last_request=160, now=160)
    assert one.replicas == 1
    assert rules.fleet_target(one, FLEET, qps=0, last_request=160, now=219.9).replicas == 1
    assert rules.fleet_target(one, FLEET, qps=0, last_request=160, now=220).replicas == 0


def test_the_bounds_hold_at_once_when_they_are_changed() -> None:
    assert rules.fleet_target(FleetTarget(0), SpotScaling(min_replicas=2), 0, None, 0).replicas == 2
    assert rules.fleet_target(FleetTarget(5), SpotScaling(max_replicas=2), 999, 0, 0).replicas == 2


def test_replicas_that_go_away_are_replaced_and_the_least_useful_go_first() -> None:
    assert rules.fleet(1, [view("a", State.DRAINING)]) == Decision(start=1)
    spare = [view("busy", in_flight=4), view("boots", State.STARTING), view("calm", in_flight=1)]
    assert rules.fleet(1, spare).stop == ("boots", "calm")
    assert rules.fleet(3, spare) == Decision()


def test_a_request_goes_to_the_ready_instance_with_the_least_to_do() -> None:
    some = [view("a", in_flight=2), view("b", in_flight=1), view("c", State.DRAINING), view("d", State.STARTING)]
    assert rules.least_loaded(some) == "b"
    assert rules.least_loaded(some, limit=1) is None
    assert rules.least_loaded([]) is None


def interval(start: float, seen: float, end: float | None, kind: Kind = Kind.SPOT) -> BilledInterval:
    return BilledInterval("r", "n", "u", kind, "L4", start, seen, end, price_per_hour_usd=3.6)


@pytest.mark.parametrize(
    ("start", "seen", "end", "seconds"),
    [(0, 5, None, 5), (0, 5, 7.2, 8), (0, 0, 0, 0), (10, 10.01, None, 1), (0, 3, 3, 3)],
)
def test_time_is_billed_by_the_second_rounded_up(
    start: float, seen: float, end: float | None, seconds: int
) -> None:
    line = interval(start, seen, end)
    assert line.billed_s == seconds
    assert line.usd == pytest.approx(seconds * 0.001)


def test_a_bill_is_the_sum_of_its_intervals_by_side() -> None:
    bill = Bill((interval(0, 10, 10), interval(5, 25, None), interval(0, 3, 3, Kind.SERVERLESS)))
    assert bill.usd == pytest.approx(0.033)
    assert bill.usd_of(Kind.SPOT) == pytest.approx(0.030)
