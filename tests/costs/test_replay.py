"""Other policies with the traffic that there was: each by the rules by which it is really run and billed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.catalog.offers import Billing
from tuna_nb.costs.load import Load, Minute
from tuna_nb.costs.replay import Machine, Request, fleet, requests_of, serverless

ONE_DOLLAR_A_SECOND = 3600.0


def machine(boot_s: float = 10.0, **billing: object) -> Machine:
    return Machine(ONE_DOLLAR_A_SECOND, boot_s, Billing(**billing))  # type: ignore[arg-type]


def scaling(**change: object) -> ServerlessScaling:
    return ServerlessScaling(**{"concurrency": 2, "scaledown_window": 30, "workers_max": 2, **change})  # type: ignore[arg-type]


def minute(at: int, arrivals: list[tuple[int, int]], ends: list[tuple[int, int]], in_flight: int = 0) -> Minute:
    return Minute(at, in_flight, tuple(arrivals), tuple(ends))


def test_requests_end_in_the_order_in_which_they_came() -> None:
    load = Load(((0, 180),), (minute(60, [(0, 1), (2, 2)], [(5, 1)]), minute(120, [], [(1, 2)], in_flight=2)))
    assert requests_of(load) == [
        Request(60.5, 5.0), Request(62.25, pytest.approx(59.0)), Request(62.75, pytest.approx(59.0)),
    ]  # fmt: skip


def test_what_ran_before_the_load_begins_is_not_taken_for_what_came_after() -> None:
    load = Load(((0, 120),), (minute(60, [(10, 1)], [(1, 1), (20, 1)], in_flight=1),))
    assert requests_of(load) == [Request(70.5, 10.0)]


def test_what_ran_when_the_router_died_ended_with_it() -> None:
    load = Load(
        ((0, 100), (130, 200)),
        (minute(60, [(10, 2)], []), minute(180, [(1, 1)], [(3, 1)])),
    )
    found = requests_of(load)
    assert [r.arrived_at for r in found] == [70.25, 70.75, 181.5]
    assert [r.took_s for r in found] == [pytest.approx(29.75), pytest.approx(29.25), 2.0]


counts = st.lists(st.tuples(st.integers(0, 59), st.integers(1, 5)), unique_by=lambda one: one[0], max_size=10)


@given(st.lists(st.tuples(counts, counts), max_size=5))
def test_no_request_is_lost_or_invented_whatever_the_load_says(told: list[tuple[list, list]]) -> None:  # type: ignore[type-arg]
    minutes = tuple(minute(60 * n, sorted(a), sorted(e)) for n, (a, e) in enumerate(told, 1))
    found = requests_of(Load(((0, 400),), minutes))
    assert len(found) == sum(count for m in minutes for _, count in m.arrivals)
    assert all(r.took_s >= 0 for r in found)


def test_a_container_is_billed_from_its_start_through_boot_and_idle_window() -> None:
    out = serverless([Request(100, 4)], scaling(), machine(), 0, 1000)
    assert (out.usd, out.starts) == (pytest.approx(10 + 4 + 30), 1)
    warm = serverless([Request(100, 4), Request(120, 4)], scaling(), machine(), 0, 1000)
    assert (warm.usd, warm.starts) == (pytest.approx(24 + 30), 1), "a warm container is used again"
    again = serverless([Request(100, 4), Request(400, 4)], scaling(), machine(), 0, 1000)
    assert (again.usd, again.starts) == (pytest.approx(88), 2)


def test_who_waited_for_a_cold_start_when_it_was_recorded_does_not_wait_twice() -> None:
    asked = [Request(100, 14), Request(400, 4), Request(405, 4)]
    assert serverless(asked, scaling(), machine(), 0, 1000).usd == pytest.approx((14 + 30) + (14 + 30))


def test_a_boot_or_an_idle_window_that_is_free_is_not_billed() -> None:
    ask = [Request(100, 5)]
    assert serverless(ask, scaling(), machine(boot=False), 0, 1000).usd == pytest.approx(35)
    assert serverless(ask, scaling(), machine(idle=False), 0, 1000).usd == pytest.approx(15)
    assert serverless(ask, scaling(), machine(granularity_s=60.0), 0, 1000).usd == pytest.approx(60)


def test_as_many_containers_as_there_are_requests_at_once_and_no_more_than_allowed() -> None:
    crowd = [Request(100, 40)] * 9
    out = serverless(crowd, scaling(), machine(boot_s=0), 0, 1000)
    assert out.starts == 2
    alone = serverless(crowd, scaling(concurrency=32), machine(boot_s=0), 0, 1000)
    assert (alone.starts, alone.usd) == (1, pytest.approx(70)), "at real concurrency, not one request at a time"


def test_a_container_that_is_kept_is_billed_all_the_time() -> None:
    assert serverless([], scaling(workers_min=1), machine(), 0, 1000).usd == pytest.approx(1000)


def test_a_fleet_follows_the_autoscaler() -> None:
    spot = SpotScaling(min_replicas=0, max_replicas=3, target_qps=0.1, upscale_delay=5, downscale_delay=60)
    asked = [Request(100 + 2 * n, 1) for n in range(30)]
    out = fleet(asked, spot, machine(), 0, 1000, qps_window_s=20)
    assert out.starts == 3
    assert out.unserved == 5, "those that came while the first machine booted"
    quiet = fleet(asked[:1], spot, machine(), 0, 1000, qps_window_s=20)
    assert quiet.usd == pytest.approx(60, abs=2), "to zero after the delay without a request"
    kept = fleet([], SpotScaling(min_replicas=1), machine(), 0, 1000)
    assert (kept.usd, kept.unserved) == (pytest.approx(1000), 0)


@given(st.lists(st.floats(0, 5000), max_size=40), st.integers(0, 2))
def test_a_replay_never_costs_less_than_nothing_or_more_than_everything_all_the_time(
    times: list[float], kept: int
) -> None:
    asked = [Request(at, 3) for at in sorted(times)]
    out = serverless(asked, scaling(workers_min=kept), machine(), 0, 6000)
    assert kept * 6000 <= out.usd + 1e-6 <= 2 * 6000 + 100
    spot = SpotScaling(min_replicas=kept, max_replicas=3, target_qps=0.5)
    one = fleet(asked, spot, machine(), 0, 6000)
    assert kept * 6000 <= one.usd + 1e-6 <= 3 * 6000 + 100
