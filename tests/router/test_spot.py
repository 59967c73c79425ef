"""The spot machine, over time that the tests hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.spot import (
    Event,
    Notice,
    ProbeFailed,
    ProbePassed,
    ReplicasSeen,
    RequestFailed,
    RequestServed,
    SpotMachine,
    SpotState,
    Started,
    Tick,
    Timing,
    Traffic,
    Transition,
)

COLD, WARMING, READY, DRAINING = SpotState
TIMING = Timing(probe_interval_s=2, idle_after_s=60, drain_limit_s=300)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def machine() -> tuple[SpotMachine, Clock]:
    clock = Clock()
    return SpotMachine(clock, TIMING), clock


def ready() -> tuple[SpotMachine, Clock]:
    spot, clock = machine()
    spot.apply(Traffic())
    spot.apply(ProbePassed(spot.begin_probe()))
    assert spot.state is READY
    return spot, clock


def test_the_first_request_wakes_a_cold_spot_and_it_is_probed_at_once() -> None:
    spot, _ = machine()
    assert not spot.probe_due()
    spot.apply(Traffic())
    assert spot.state is WARMING
    assert spot.probe_due()


def test_it_is_ready_only_after_a_generation() -> None:
    spot, clock = machine()
    spot.apply(Traffic())
    spot.apply(ReplicasSeen(ready=3))
    assert spot.state is WARMING
    spot.apply(ProbeFailed(spot.begin_probe(), "500"))
    assert spot.state is WARMING
    assert not spot.probe_due()
    clock.now += 2
    assert spot.probe_due()
    spot.apply(ProbePassed(spot.begin_probe()))
    assert spot.state is READY


def test_a_cold_spot_without_traffic_is_looked_at_once_and_then_left_alone() -> None:
    spot, clock = machine()
    spot.apply(Started())
    assert spot.probe_due()
    spot.apply(ProbeFailed(spot.begin_probe(), "connection refused"))
    assert spot.state is COLD
    for _ in range(100):
        clock.now += 60
        spot.apply(Tick())
        assert not spot.probe_due()


def test_probes_keep_a_warming_spot_awake_while_clients_came_lately_and_stop_after() -> None:
    spot, clock = machine()
    spot.apply(Traffic())
    probes = 0
    for _ in range(200):
        if spot.probe_due():
            probes += 1
            spot.apply(ProbeFailed(spot.begin_probe(), "503"))
        clock.now += 1
    assert 25 <= probes <= 35, "every two seconds for a minute"
    assert spot.state is COLD


def test_a_spot_with_a_ready_replica_is_probed_without_traffic() -> None:
    spot, _ = machine()
    spot.apply(ReplicasSeen(ready=1))
    assert spot.state is WARMING
    assert spot.probe_due()


def test_a_replica_that_becomes_ready_is_probed_at_once() -> None:
    spot, clock = machine()
    spot.apply(Traffic())
    spot.apply(ReplicasSeen(ready=0, starting=1))
    spot.apply(ProbeFailed(spot.begin_probe(), "503"))
    clock.now += 0.1
    assert not spot.probe_due()
    spot.apply(ReplicasSeen(ready=1))
    assert spot.probe_due()


def test_a_woken_fleet_that_has_not_begun_stays_warming_while_it_is_wanted() -> None:
    spot, clock = machine()
    spot.apply(Traffic())
    spot.apply(ReplicasSeen(ready=0))
    assert spot.state is WARMING
    clock.now += 61
    spot.apply(ReplicasSeen(ready=0))
    assert spot.state is COLD


def test_a_lost_connection_takes_it_out_of_ready_at_once_and_it_is_probed() -> None:
    spot, _ = ready()
    spot.apply(RequestFailed(spot.epoch, "connection lost", gone=True))
    assert spot.state is WARMING
    assert spot.probe_due()


def test_one_of_several_replicas_that_is_gone_is_checked_before_the_rest_is_doubted() -> None:
    spot, _ = ready()
    spot.apply(ReplicasSeen(ready=2))
    spot.apply(RequestFailed(spot.epoch, "connection lost", gone=True))
    assert spot.state is READY
    assert spot.probe_due()
    spot.apply(ProbeFailed(spot.begin_probe(), "503"))
    assert spot.state is WARMING


def test_a_failure_that_says_little_is_checked_before_it_is_believed() -> None:
    spot, _ = ready()
    spot.apply(RequestServed())
    spot.apply(RequestFailed(spot.epoch, "status 500", gone=False))
    spot.apply(Tick())
    assert spot.state is READY
    assert spot.probe_due()


def test_the_late_end_of_an_old_connection_does_not_touch_a_new_replica() -> None:
    spot, _ = ready()
    old = spot.epoch
    spot.apply(RequestFailed(old, "connection lost", gone=True))
    spot.apply(ProbePassed(spot.begin_probe()))
    spot.apply(RequestFailed(old, "connection lost", gone=True))
    assert spot.state is READY


def test_a_probe_from_before_a_failure_proves_nothing() -> None:
    spot, _ = machine()
    spot.apply(Traffic())
    old = spot.begin_probe()
    spot.apply(ReplicasSeen(ready=0, draining=1))
    spot.apply(ReplicasSeen(ready=1))
    spot.apply(ProbePassed(old))
    assert spot.state is WARMING


def test_it_drains_when_its_last_replicas_go_and_comes_back_with_a_new_one() -> None:
    spot, clock = ready()
    spot.apply(ReplicasSeen(ready=0, draining=1))
    assert spot.state is DRAINING
    spot.apply(Traffic())
    assert spot.state is DRAINING
    spot.apply(ReplicasSeen(ready=1))
    assert spot.state is WARMING
    clock.now += 1
    spot.apply(ReplicasSeen(ready=0, draining=1))
    clock.now += TIMING.drain_limit_s
    spot.apply(Tick())
    assert spot.state is COLD, "draining ends even when nobody says so"


def test_a_ready_spot_without_replicas_is_cold_or_warming() -> None:
    spot, _ = ready()
    spot.apply(ReplicasSeen(ready=0, starting=1))
    assert spot.state is WARMING
    spot, _ = ready()
    spot.apply(ReplicasSeen(ready=0))
    assert spot.state is COLD


def test_a_busy_ready_spot_is_not_probed_and_an_idle_one_is_left_alone() -> None:
    spot, clock = ready()
    for _ in range(100):
        clock.now += 1
        spot.apply(Traffic())
        spot.apply(RequestServed())
        spot.apply(Tick())
        assert not spot.probe_due()
    probes = 0
    for _ in range(1000):
        clock.now += 1
        spot.apply(Tick())
        if spot.probe_due():
            probes += 1
            spot.apply(ProbePassed(spot.begin_probe()))
    assert probes <= 7, "only while clients came in the last minute"


def test_ready_time_adds_up() -> None:
    spot, clock = ready()
    clock.now += 10
    spot.apply(RequestFailed(spot.epoch, "x", gone=True))
    clock.now += 10
    spot.apply(ProbePassed(spot.begin_probe()))
    clock.now += 5
    assert spot.ready_seconds == 15
    assert "READY" in repr(spot)


def test_a_notice_for_the_last_replica_drains_until_its_deadline_and_moves_shortly_before() -> None:
    spot, clock = ready()
    spot.apply(Notice(120))
    assert spot.state is DRAINING
    assert spot.drain_deadline == clock.now + 120
    assert not spot.begin_move()
    assert (spot.move_at, spot.next_at) == (clock.now + 115, clock.now + 120)
    clock.now += 115
    assert spot.begin_move()
    assert not spot.begin_move(), "once"
    assert (spot.move_at, spot.next_at) == (None, clock.now + 5)
    spot.apply(Traffic())
    assert spot.state is DRAINING
    clock.now += 5
    spot.apply(Tick())
    assert (spot.state, spot.drain_deadline) == (COLD, None)
    spot.apply(Traffic())
    assert spot.probe_due()


def test_a_short_notice_moves_at_once() -> None:
    spot, _ = ready()
    spot.apply(Notice(3))
    assert spot.begin_move()
    spot, _ = ready()
    spot.apply(Notice(0))
    assert spot.begin_move()
    spot.apply(Tick())
    assert spot.state is COLD


def test_a_notice_for_one_of_several_replicas_leaves_the_others_working() -> None:
    spot, clock = ready()
    spot.apply(ReplicasSeen(ready=2))
    spot.apply(Notice(120, "1"))
    spot.apply(Notice(110, "1"))
    assert spot.state is READY, "the same one twice"
    clock.now += 10
    spot.apply(Notice(120, "2"))
    assert spot.state is DRAINING
    assert spot.drain_deadline == clock.now + 120
    assert spot.move_at == clock.now + 95, "nothing runs on the first one when it goes"
    spot, _ = ready()
    spot.apply(ReplicasSeen(ready=2))
    spot.apply(Notice(120, "1", last=True))
    assert spot.state is DRAINING, "who sends it knows better"
    spot, _ = ready()
    spot.apply(Notice(120, last=False))
    assert spot.state is READY


def test_a_controller_that_has_not_heard_of_the_notice_does_not_end_the_drain_and_a_new_replica_does() -> None:
    spot, _ = ready()
    spot.apply(ReplicasSeen(ready=1))
    spot.apply(Notice(120))
    spot.apply(ReplicasSeen(ready=1))
    assert spot.state is DRAINING
    spot.apply(ReplicasSeen(ready=2))
    assert spot.state is WARMING
    assert spot.drain_deadline is None
    assert not spot.begin_move()


def test_a_replica_after_an_empty_fleet_is_not_taken_for_the_one_that_was_to_go() -> None:
    spot, _ = ready()
    spot.apply(Notice(120))
    spot.apply(ReplicasSeen(ready=0))
    assert spot.state is COLD
    spot.apply(ReplicasSeen(ready=1))
    assert spot.state is WARMING


def test_a_notice_for_a_cold_spot_changes_nothing() -> None:
    spot, _ = machine()
    spot.apply(Notice(120))
    assert spot.state is COLD


counts = st.integers(0, 3)
events: st.SearchStrategy[object] = st.one_of(
    st.sampled_from([Traffic(), Started(), RequestServed(), Tick(), "probe passes", "probe fails", "wait"]),
    st.builds(ReplicasSeen, counts, counts, counts),
    st.builds(Notice, st.sampled_from([0.0, 3.0, 120.0]), st.sampled_from(["", "1"]), st.none() | st.booleans()),
    st.builds(RequestFailed, st.integers(0, 3), st.just("x"), st.booleans()),
    st.builds(ProbePassed, st.integers(0, 3)),
    st.builds(ProbeFailed, st.integers(0, 3), st.just("x")),
)
ALLOWED = {
    (COLD, WARMING),
    (COLD, DRAINING),
    (WARMING, READY),
    (WARMING, COLD),
    (WARMING, DRAINING),
    (READY, WARMING),
    (READY, DRAINING),
    (READY, COLD),
    (DRAINING, WARMING),
    (DRAINING, COLD),
}


@settings(max_examples=300, deadline=None)
@given(st.lists(events, max_size=40))
def test_whatever_happens_it_is_ready_only_through_a_probe_of_its_own_epoch(sequence: list[object]) -> None:
    clock = Clock()
    changes: list[Transition] = []
    spot = SpotMachine(clock, TIMING, changes.append)
    for item in sequence:
        before, epoch, logged, ready_s = spot.state, spot.epoch, len(changes), spot.ready_seconds
        event: Event
        if item == "wait":
            clock.now += 7
            event = Tick()
        elif item == "probe passes":
            event = ProbePassed(spot.begin_probe())
        elif item == "probe fails":
            event = ProbeFailed(spot.begin_probe(), "x")
        else:
            event = item  # type: ignore[assignment]
        change = spot.apply(event)
        assert (change is not None) == (spot.state is not before) == (len(changes) > logged)
        if change is not None:
            assert (change.source, change.target) in ALLOWED
            if change.target is READY:
                assert isinstance(event, ProbePassed)
                assert event.epoch == epoch
        if spot.state is COLD or spot.state is DRAINING:
            assert not spot.probe_due(), "nothing is sent to a spot that is not wanted"
        if spot.state is WARMING and not isinstance(event, ProbePassed) and item != "probe fails":
            assert spot.next_probe_at is not None or spot.epoch == epoch
        assert ready_s <= spot.ready_seconds <= clock.now - 1000
        assert (spot.drain_deadline is None) or spot.state is DRAINING
        if spot.begin_move():
            assert spot.state is DRAINING
        if spot.state is not COLD and (spot.state is not READY or spot.wanted):
            assert spot.next_at is not None or item in ("probe passes", "probe fails"), "it is never forgotten"


@settings(max_examples=100, deadline=None)
@given(st.lists(events, max_size=30))
def test_every_state_is_left_when_clients_and_replicas_are_gone(sequence: list[object]) -> None:
    clock = Clock()
    spot = SpotMachine(clock, TIMING)
    for item in sequence:
        if isinstance(item, str):
            clock.now += 7
        else:
            spot.apply(item)  # type: ignore[arg-type]
    spot.apply(ReplicasSeen(ready=0))
    for _ in range(10):
        clock.now += TIMING.drain_limit_s
        spot.apply(Tick())
        spot.apply(ReplicasSeen(ready=0))
        if spot.probe_due():
            spot.apply(ProbeFailed(spot.begin_probe(), "refused"))
    assert spot.state is COLD
    spot.apply(Traffic())
    assert spot.state is WARMING


@settings(max_examples=100, deadline=None)
@given(st.lists(events, max_size=30))
def test_from_anywhere_a_living_replica_and_passing_probes_lead_to_ready(sequence: list[object]) -> None:
    clock = Clock()
    spot = SpotMachine(clock, TIMING)
    for item in sequence:
        if isinstance(item, str):
            clock.now += 7
        else:
            spot.apply(item)  # type: ignore[arg-type]
    for _ in range(5):
        spot.apply(ReplicasSeen(ready=1))
        if spot.probe_due():
            spot.apply(ProbePassed(spot.begin_probe()))
        clock.now += TIMING.slow_probe_s
        spot.apply(Tick())
    assert spot.state is READY


def test_while_the_old_replica_drains_its_replacement_does_not_hide_that() -> None:
    spot, _ = ready()
    spot.apply(ReplicasSeen(ready=0, starting=1, draining=1))
    assert spot.state is DRAINING
    spot.apply(ReplicasSeen(ready=0, starting=1))
    assert spot.state is WARMING
