"""Retries stay a part of the load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuna_router.retry import RetryBudget

from .backends import Seen, Wire
from .conftest import StartBackend, StartRouter


@given(st.floats(0, 1), st.integers(1, 50), st.lists(st.integers(0, 20), max_size=60))
def test_retries_never_exceed_the_burst_and_the_ratio(ratio: float, burst: int, arrivals: list[int]) -> None:
    budget = RetryBudget(ratio, burst)
    requests = taken = 0
    for some in arrivals:
        requests += some
        while budget.take(requests):
            taken += 1
        assert taken <= burst + ratio * requests + 1e-6


def test_a_lost_backend_under_full_load_is_covered_and_what_was_spent_is_earned_again() -> None:
    budget = RetryBudget(0.5, 10)
    assert [budget.take(0) for _ in range(11)] == [True] * 10 + [False]
    assert not budget.take(1)
    assert budget.take(2)
    assert [budget.take(1000) for _ in range(11)] == [True] * 10 + [False]
    assert budget.refused == 3


async def failing(wire: Wire, seen: Seen) -> None:
    await wire.json({"error": {"message": "out of order"}}, 500)


async def resetting(wire: Wire, seen: Seen) -> None:
    wire.reset()


async def test_when_the_budget_is_spent_a_failure_is_passed_on(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot, serverless = await start_backend(failing), await start_backend(failing)
    router = await start_router(serverless, spot, retry_burst=2, retry_ratio=0.001)
    answers = [await router.complete() for _ in range(4)]
    assert [answer.status_code for answer in answers] == [500] * 4
    assert [answer.headers["x-tuna-attempts"] for answer in answers] == ["2", "2", "1", "1"]
    assert router.router.core.retries.refused == 2


async def test_no_more_than_so_many_attempts_for_one_request(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backends = [await start_backend(failing) for _ in range(4)]
    entries = [{"name": f"s{n}", "kind": "serverless", "url": b.url} for n, b in enumerate(backends)]
    router = await start_router(backends=entries, max_attempts=3)
    answer = await router.complete()
    assert (answer.status_code, answer.headers["x-tuna-attempts"]) == (500, "3")


async def test_a_request_with_side_effects_is_sent_once(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    for fault, status in ((failing, 500), (resetting, 502)):
        spot, serverless = await start_backend(fault), await start_backend()
        router = await start_router(serverless, spot)
        answer = await router.client.post(
            "/v1/completions", json={"prompt": "p"}, headers={"x-tuna-side-effects": "true"}
        )
        assert (answer.status_code, answer.headers["x-tuna-attempts"]) == (status, "1")
        assert not serverless.seen
        assert "x-tuna-side-effects" not in spot.seen[-1].headers


async def test_a_request_with_side_effects_that_reached_nobody_is_sent_elsewhere(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot, serverless = await start_backend(), await start_backend()
    router = await start_router(serverless, spot)
    await spot.stop()
    answer = await router.client.post(
        "/v1/completions", json={"prompt": "p"}, headers={"x-tuna-side-effects": "true"}
    )
    assert (answer.status_code, answer.headers["x-tuna-backend"]) == (200, "serverless")
