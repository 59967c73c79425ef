"""The plan for one request."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.fleet.breaker import Breaker
from tuna_router.fleet.learned import Learned
from tuna_router.policy import (
    PLAIN,
    BackendView,
    Priority,
    Rules,
    Wish,
    choose,
    predicted_ttft_s,
    predicted_wait_s,
)
from tuna_router.settings import Kind, ServerlessUse
from tuna_router.spot import SpotState

SPOT, SERVERLESS = Kind.SPOT, Kind.SERVERLESS
BATCH = Wish(Priority.BATCH)
NOW = 1000.0


def serverless(name: str = "serverless", **more: Any) -> BackendView:
    return BackendView(name, SERVERLESS, **more)


def spot(state: SpotState = SpotState.READY, name: str = "spot", **more: Any) -> BackendView:
    return BackendView(name, SPOT, state, **more)


def queued(wait_s: float, name: str = "spot", **more: Any) -> BackendView:
    """A READY spot with one request waiting, which takes this long."""
    return spot(name=name, waiting=1, running=1, learned=Learned(service_s=wait_s), **more)


def warm(name: str = "serverless", **more: Any) -> BackendView:
    return serverless(name, last_answer_at=NOW - 1, **more)


def test_spot_is_first_when_it_is_ready() -> None:
    plan = choose([serverless(), spot()])
    assert plan.names == ("spot", "serverless")
    assert plan.reason == "spot is ready"


def test_serverless_answers_while_spot_boots() -> None:
    assert choose([spot(SpotState.COLD), serverless()]).names == ("serverless",)
    plan = choose([spot(SpotState.WARMING), serverless()])
    assert plan.names == ("serverless", "spot"), "a warming spot is the last resort"
    assert plan.reason == "spot is warming"


def test_a_draining_spot_takes_nothing_new() -> None:
    assert choose([spot(SpotState.DRAINING), serverless()]).names == ("serverless",)


def test_what_spot_can_not_take_overflows_to_serverless() -> None:
    plan = choose([spot(in_flight=8, limit=8), serverless()])
    assert plan.names == ("serverless", "spot")
    assert plan.reason == "spot is at its limit"
    assert choose([spot(in_flight=7, limit=8), serverless()]).names[0] == "spot"
    assert choose([spot(busy_until=NOW + 1), serverless()], PLAIN, NOW).names[0] == "serverless"
    assert choose([spot(busy_until=NOW), serverless()], PLAIN, NOW).names[0] == "spot"


def test_a_queue_on_spot_overflows_to_serverless_that_is_warm() -> None:
    plan = choose([queued(0.6), warm()], PLAIN, NOW)
    assert (plan.names, plan.crowded) == (("serverless", "spot"), {"spot"})
    assert plan.reason == "spot has a queue, and serverless is quicker"
    assert choose([queued(0.4), warm()], PLAIN, NOW).names[0] == "spot"


def test_a_queue_on_spot_does_not_overflow_into_a_cold_container_unless_that_is_quicker() -> None:
    plan = choose([queued(20), serverless()], PLAIN, NOW)
    assert plan.names == ("spot", "serverless")
    assert plan.reason == "spot has a queue, and a cold container would be slower"
    known = Learned(cold_ttft_s=14)
    assert choose([queued(20), serverless(learned=known)], PLAIN, NOW).names[0] == "serverless"
    assert choose([queued(10), serverless(learned=known)], PLAIN, NOW).names[0] == "spot"
    assert choose([queued(90), serverless()], PLAIN, NOW).names[0] == "serverless"


def test_a_container_is_warm_for_its_idle_window_and_while_it_has_been_busy_since_it_answered() -> None:
    assert serverless(last_answer_at=NOW - 59).warm(NOW)
    assert not serverless(last_answer_at=NOW - 61).warm(NOW)
    assert serverless(last_answer_at=NOW - 61, in_flight=1, busy_since=NOW - 70).warm(NOW)
    assert not serverless(last_answer_at=NOW - 61, in_flight=1, busy_since=NOW - 50).warm(NOW)
    assert predicted_ttft_s(warm(learned=Learned(ttft_s=0.3, cold_ttft_s=40)), NOW) == 0.3
    assert predicted_ttft_s(serverless(learned=Learned(ttft_s=0.3, cold_ttft_s=40)), NOW) == 40


def test_the_wait_is_the_queue_by_how_fast_it_goes() -> None:
    service = Learned(service_s=8)
    assert predicted_wait_s(spot(waiting=0, running=64, in_flight=70, in_flight_then=64, learned=service)) == 0
    view = spot(waiting=4, running=8, in_flight=12, in_flight_then=12, learned=service)
    assert predicted_wait_s(view) == 4
    view.in_flight = 16
    assert predicted_wait_s(view) == 8
    view.replicas = 4
    assert predicted_wait_s(view) == 5
    view.in_flight = 0
    view.replicas = 1
    assert predicted_wait_s(view) == 0


def test_without_a_queue_to_be_seen_the_wait_is_what_first_tokens_were_late_by() -> None:
    assert predicted_wait_s(spot(excess_ttft_s=2, in_flight=10, in_flight_then=10)) == 2
    assert predicted_wait_s(spot(excess_ttft_s=2, in_flight=5, in_flight_then=10)) == 1
    assert predicted_wait_s(spot(excess_ttft_s=2, in_flight=0, in_flight_then=10)) == 0


def test_load_never_moves_a_batch_request_off_spot() -> None:
    for view in (queued(99), spot(in_flight=9, limit=8), spot(busy_until=NOW + 1)):
        plan = choose([warm(), view], BATCH, NOW)
        assert plan.names == ("spot", "serverless")
        assert plan.load_stays
        assert plan.reason == "spot is ready, and load does not move a batch request"
    for view in (spot(SpotState.WARMING), spot(open_until=NOW + 1)):
        plan = choose([warm(), view], BATCH, NOW)
        assert plan.names[0] == "serverless"
        assert not plan.load_stays


def test_a_backend_whose_circuit_is_open_goes_to_the_back_but_stays() -> None:
    shut = NOW + 1
    assert choose([spot(open_until=shut), serverless()], PLAIN, NOW).names == ("serverless", "spot")
    assert choose([spot(open_until=shut), serverless()], PLAIN, NOW).reason == "spot just failed"
    assert choose([spot(open_until=shut)], PLAIN, NOW).names == ("spot",)
    views = [serverless("a", open_until=shut), serverless("b", in_flight=50)]
    assert choose(views, PLAIN, NOW).names == ("b", "a")
    plan = choose([spot(open_until=NOW), serverless()], PLAIN, NOW)
    assert plan.names == ("spot", "serverless"), "its time is over: this request tries it"
    assert plan.reason == "spot is being tried again"


def test_a_spot_that_is_not_ready_is_tried_when_there_is_nothing_else() -> None:
    for state in SpotState:
        assert choose([spot(state)]).names == ("spot",)
    views = [spot(SpotState.COLD, "c"), spot(SpotState.DRAINING, "d")]
    assert choose(views).names == ("d", "c"), "where somebody may still be there"


def test_the_one_with_the_least_in_flight_is_first_then_the_cheapest_then_the_order_given() -> None:
    views = [serverless("a", in_flight=2), serverless("b", in_flight=1), serverless("c", in_flight=1)]
    assert choose(views).names == ("b", "c", "a")
    views[2].price_per_hour_usd, views[1].price_per_hour_usd = 0.8, 3.95
    assert choose(views).names == ("c", "b", "a")


def test_a_warm_container_is_before_a_cold_one_and_one_that_fails_often_after_both() -> None:
    assert choose([serverless("a"), warm("b", in_flight=9)], PLAIN, NOW).names == ("b", "a")
    often = Learned(error_share=0.5, error_at=NOW)
    views = [serverless("a"), warm("b", learned=often)]
    assert choose(views, PLAIN, NOW).names == ("a", "b")
    assert choose(views, PLAIN, NOW + 50).names == ("b", "a"), "it is forgiven with time"


def test_of_two_spots_the_one_without_a_queue_is_first() -> None:
    plan = choose([queued(5, "a"), spot(name="b", in_flight=30), serverless()], PLAIN, NOW)
    assert plan.names == ("b", "a", "serverless")
    assert choose([queued(5, "a"), spot(name="b", in_flight=30), warm()], PLAIN, NOW).names[0] == "b"


def test_a_model_that_only_some_serve_goes_only_to_them() -> None:
    views = [spot(models={"small": "s-1"}), serverless("a", models={"large": "l-1"}), serverless("b")]
    assert choose(views, Wish(model="large")).names == ("a", "b"), "a backend without names takes any"
    assert choose(views, Wish(model="small")).names[0] == "spot"
    assert choose(views[:2], Wish(model="large")).names == ("a",)
    assert len(choose(views).names) == 3


def test_a_model_that_nobody_serves_has_a_plan_that_says_so() -> None:
    plan = choose([serverless(models={"large": "l-1"})], Wish(model="huge"))
    assert plan.names == ()
    assert plan.unknown_model
    assert plan.reason == "no backend serves the model 'huge'"


def test_without_backends_there_is_no_plan() -> None:
    assert choose([]).names == ()
    assert choose([]).reason == "no backend is configured"
    assert not choose([], Wish(model="m")).unknown_model


@pytest.mark.parametrize("weights", [(9, 1), (1, 2, 5), (0.5, 0.25), (3, 0)])
def test_shares_converge_to_the_weights_and_are_near_them_from_the_start(weights: tuple[float, ...]) -> None:
    views = [spot(name=str(i), weight=w) for i, w in enumerate(weights)]
    for turns in (50, 2000):
        first = Counter(choose(views, turn=turn).names[0] for turn in range(turns))
        for i, weight in enumerate(weights):
            assert abs(first[str(i)] - turns * weight / sum(weights)) <= 4


def test_a_canary_that_is_slower_than_its_weight_gets_no_more() -> None:
    views = [spot(name="a", weight=9, in_flight=9), spot(name="b", weight=1, in_flight=20)]
    assert {choose(views, turn=turn).names[0] for turn in range(50)} == {"a"}
    views[1].in_flight = 1
    assert {choose(views, turn=turn).names[0] for turn in range(50)} == {"a", "b"}


def first_of(views: list[BackendView], session: bytes) -> str:
    return choose(views, Wish(session=session), NOW).names[0]


SESSIONS = [b"session-%d" % n for n in range(200)]


def test_a_session_stays_on_its_backend_and_only_those_of_a_removed_one_move() -> None:
    views = [spot(name=name, in_flight=n) for n, name in enumerate("abcd")]
    before = {session: first_of(views, session) for session in SESSIONS}
    assert all(count > 20 for count in Counter(before.values()).values())
    assert len(set(before.values())) == 4
    for view in list(views):
        left = [other for other in views if other is not view]
        for session in SESSIONS:
            if before[session] != view.name:
                assert first_of(left, session) == before[session]
        view.limit = view.in_flight  # being full is like being removed
        for session in SESSIONS:
            now = first_of(views, session)
            assert now != view.name if before[session] == view.name else now == before[session]
        view.limit = None


def test_sessions_follow_the_weights() -> None:
    views = [spot(name="a", weight=3), spot(name="b", weight=1), spot(name="c", weight=0)]
    count = Counter(first_of(views, session) for session in SESSIONS)
    assert 125 < count["a"] < 175
    assert count["c"] == 0


# Over all snapshots

averages = st.builds(
    Learned,
    ttft_s=st.none() | st.floats(0, 5),
    usual_ttft_s=st.none() | st.floats(0, 5),
    cold_ttft_s=st.none() | st.floats(0, 90),
    service_s=st.none() | st.floats(0, 60),
    error_share=st.sampled_from([0.0, 0.1, 0.9]),
    error_at=st.floats(NOW - 100, NOW),
)
common: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from("abcdefgh"),
    "in_flight": st.integers(0, 9),
    "limit": st.none() | st.integers(1, 9),
    "open_until": st.sampled_from([0.0, 0.0, NOW - 1, NOW + 1]),
    "busy_until": st.sampled_from([0.0, 0.0, NOW + 1]),
    "weight": st.sampled_from([1.0, 1.0, 0.0, 5.0]),
    "price_per_hour_usd": st.none() | st.floats(0, 9),
    "models": st.sampled_from([None, None, {"m": "M"}, {"n": "N"}]),
    "learned": averages,
}
spots = st.builds(
    BackendView,
    kind=st.just(SPOT),
    state=st.sampled_from(SpotState),
    waiting=st.none() | st.sampled_from([0.0, 1.0, 9.0]),
    running=st.floats(0, 9),
    replicas=st.integers(1, 3),
    excess_ttft_s=st.sampled_from([0.0, 0.0, 3.0]),
    in_flight_then=st.integers(0, 9),
    **common,
)
serverlesses = st.builds(
    BackendView,
    kind=st.just(SERVERLESS),
    last_answer_at=st.none() | st.floats(NOW - 100, NOW),
    busy_since=st.floats(NOW - 100, NOW),
    **common,
)
fleets = st.lists(spots | serverlesses, max_size=6, unique_by=lambda view: view.name)
wishes = st.builds(
    Wish,
    priority=st.sampled_from(Priority),
    model=st.sampled_from([None, None, "m", "x"]),
    session=st.sampled_from([None, b"s"]),
)


@settings(max_examples=200, deadline=None)
@given(fleets, wishes, st.frozensets(st.sampled_from("abcd")), st.integers(0, 99))
def test_every_plan_is_usable_and_in_order(
    backends: list[BackendView], wish: Wish, crowded: frozenset[str], turn: int
) -> None:
    plan = choose(backends, wish, NOW, crowded=crowded, turn=turn)
    assert plan == choose(backends, wish, NOW, crowded=crowded, turn=turn), "the same snapshot, the same plan"
    by_name = {view.name: view for view in backends if wish.model is None or view.serves(wish.model)}
    order = [by_name[name] for name in plan.names]
    assert len(set(plan.names)) == len(plan.names)
    assert bool(order) == bool(by_name), "never empty while a backend serves the model"
    assert plan.unknown_model == (bool(backends) and not by_name)
    assert plan.reason
    assert {view.name for view in by_name.values() if view.kind is SERVERLESS} <= set(plan.names)

    def well(view: BackendView) -> bool:
        return view.open_until <= NOW and (view.kind is SERVERLESS or view.state is SpotState.READY)

    at_ease = [
        v for v in by_name.values() if well(v) and v.kind is SPOT and not v.full(NOW) and not predicted_wait_s(v)
    ]
    if at_ease:
        assert order[0].kind is SPOT, "spot first where nothing is against it"
        assert well(order[0])
    ready = [view for view in by_name.values() if well(view) and view.kind is SPOT]
    if wish.priority is Priority.BATCH and ready:
        assert order[0] in ready, "load never moves a batch request to serverless"
        assert plan.load_stays
    if any(well(view) and not view.full(NOW) for view in by_name.values()):
        assert well(order[0])
        assert wish.priority is Priority.BATCH or not order[0].full(NOW)
    if any(view.kind is SERVERLESS for view in by_name.values()):
        for view in order:
            assert view.kind is SERVERLESS or view.state in (SpotState.READY, SpotState.WARMING)


COVER, NEVER = Rules(serverless_use=ServerlessUse.COVER), Rules(serverless_use=ServerlessUse.NEVER)


def test_to_cover_serverless_comes_after_every_ready_spot_and_before_one_that_is_not() -> None:
    views = [serverless(), spot(), spot(SpotState.WARMING, "other")]
    for trouble in ({}, {"limit": 1, "in_flight": 1}, {"busy_until": NOW + 9}, {"open_until": NOW + 9}):
        views[1] = spot(**trouble)
        plan = choose(views, PLAIN, NOW, rules=COVER)
        assert (plan.names, plan.load_stays) == (("spot", "serverless", "other"), not trouble.get("open_until"))
    long = choose([warm(), queued(1000.0)], PLAIN, NOW, rules=COVER)
    assert long.names[0] == "spot"
    assert "serverless does not relieve it" in long.reason
    for state in (SpotState.WARMING, SpotState.DRAINING, SpotState.COLD):
        assert choose([serverless(), spot(state)], PLAIN, NOW, rules=COVER).names[0] == "serverless"
    other_model = [serverless(models={"m": "m"}), spot(models={"n": "n"})]
    assert choose(other_model, Wish(model="m"), NOW, rules=COVER).names == ("serverless",)


@settings(max_examples=200, deadline=None)
@given(spots, serverlesses, st.sampled_from(Priority))
def test_with_never_serverless_is_in_no_plan(one: BackendView, other: BackendView, priority: Priority) -> None:
    one.name, other.name = "one", "other"
    plan = choose([one, other], Wish(priority), NOW, rules=NEVER)
    assert plan.names == (("one",) if one.state is SpotState.READY else ())
    assert plan.stopped is not (one.state is SpotState.READY)
    alone = choose([other], Wish(priority), NOW, rules=NEVER)
    assert (alone.stopped, alone.reason) == (True, "there is no spot backend")


@settings(max_examples=200, deadline=None)
@given(spots, serverlesses, st.integers(0, 99))
def test_the_quick_way_for_one_spot_and_one_serverless_is_the_same_as_the_long_one(
    one: BackendView, other: BackendView, turn: int
) -> None:
    one.name, other.name = "one", "other"
    for pair in ([one, other], [other, one]):
        # A wish that equals PLAIN but is not PLAIN itself takes the long way.
        assert choose(pair, PLAIN, NOW, turn=turn) == choose(pair, Wish(), NOW, turn=turn)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 3), st.booleans(), st.lists(st.floats(-0.24, 0.24), max_size=30))
def test_under_a_load_near_the_threshold_the_decision_changes_at_most_once(
    wait_s: float, began_crowded: bool, noise: list[float]
) -> None:
    rules = Rules(overflow_wait_s=1.0)
    crowded = frozenset({"spot"}) if began_crowded else frozenset()
    decisions = []
    for wobble in noise:
        view = queued(max(wait_s + wobble, 0.0))
        plan = choose([view, warm()], PLAIN, NOW, rules=rules, crowded=crowded)
        crowded = plan.crowded
        decisions.append(plan.names[0])
    changes = sum(a != b for a, b in pairwise(decisions))
    assert changes <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 20), st.sampled_from(Priority))
def test_a_half_open_circuit_lets_exactly_one_request_through(requests: int, priority: Priority) -> None:
    breaker = Breaker()
    breaker.failed(NOW - 6, NOW - 5, 5, at_once=True)
    view = spot(open_until=breaker.open_until)
    through = 0
    for _ in range(requests):
        name = choose([view, serverless()], Wish(priority), NOW).names[0]
        through += name == "spot"
        if name == "spot":
            breaker.begin(NOW)
            view.open_until = breaker.open_until
    assert through == 1
