"""The plan for one request."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.policy import BackendView, choose
from tuna_router.settings import Kind
from tuna_router.spot import SpotState

SPOT, SERVERLESS = Kind.SPOT, Kind.SERVERLESS


def serverless(name: str = "serverless", **more: object) -> BackendView:
    return BackendView(name, SERVERLESS, **more)  # type: ignore[arg-type]


def spot(state: SpotState = SpotState.READY, name: str = "spot", **more: object) -> BackendView:
    return BackendView(name, SPOT, state, **more)  # type: ignore[arg-type]


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


def test_a_backend_that_just_failed_goes_to_the_back_but_stays() -> None:
    assert choose([spot(cooling=True), serverless()]).names == ("serverless", "spot")
    assert choose([spot(cooling=True)]).names == ("spot",)
    assert choose([serverless("a", cooling=True), serverless("b", in_flight=50)]).names == ("b", "a")


def test_a_spot_that_is_not_ready_is_tried_when_there_is_nothing_else() -> None:
    for state in SpotState:
        assert choose([spot(state)]).names == ("spot",)


def test_the_one_with_the_least_in_flight_is_first_and_ties_keep_their_order() -> None:
    views = [serverless("a", in_flight=2), serverless("b", in_flight=1), serverless("c", in_flight=1)]
    assert choose(views).names == ("b", "c", "a")


def test_without_backends_there_is_no_plan() -> None:
    assert choose([]).names == ()
    assert choose([]).reason == "no backend is configured"


views = st.builds(
    BackendView,
    name=st.uuids().map(str),
    kind=st.sampled_from(Kind),
    state=st.sampled_from(SpotState),
    in_flight=st.integers(0, 5),
    limit=st.none() | st.integers(1, 5),
    cooling=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(views, max_size=6, unique_by=lambda view: view.name))
def test_every_plan_is_usable_and_in_order(backends: list[BackendView]) -> None:
    plan = choose(backends)
    by_name = {view.name: view for view in backends}
    order = [by_name[name] for name in plan.names]
    assert len(set(plan.names)) == len(plan.names)
    assert bool(order) == bool(backends), "never empty where a backend could answer"
    assert plan == choose(backends), "the same snapshot gives the same plan"
    assert plan.reason
    assert {view.name for view in backends if view.kind is SERVERLESS} <= set(plan.names)

    def good(view: BackendView) -> bool:
        return not view.cooling and not view.full and (view.kind is SERVERLESS or view.state is SpotState.READY)

    if any(good(view) for view in backends):
        assert good(order[0])
        if any(good(view) and view.kind is SPOT for view in backends):
            assert order[0].kind is SPOT
    if any(view.kind is SERVERLESS for view in backends):
        for view in order:
            assert view.kind is SERVERLESS or view.state in (SpotState.READY, SpotState.WARMING)
