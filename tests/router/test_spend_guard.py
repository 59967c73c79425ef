"""Spending is held beside the router: serverless only covers, or takes nothing new; by hand, or by a budget."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tuna_router.app import Router
from tuna_router.settings import parse_settings
from tuna_router.state_file import state_file

from .backends import Backend, Seen, Wire
from .conftest import KEY, Running, StartBackend, StartRouter, until
from .dataplane.breaking import ask, breaks, broken
from .dataplane.scripted import TEXT
from .test_process import Process, started
from .told.test_events import listen

PRICED = {"price_per_hour_usd": 3600.0}
"""A dollar a second."""


def entries(**backends: Backend | str) -> list[dict[str, Any]]:
    return [
        {"name": kind, "kind": kind, "url": each if isinstance(each, str) else each.url, **PRICED}
        for kind, each in backends.items()
    ]


async def full(wire: Wire, seen: Seen) -> None:
    await wire.json({"error": {"message": "slow down"}}, 429)


async def silent(wire: Wire, seen: Seen) -> None:
    await wire.closed_by_peer()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    return answer.json()["error"]  # type: ignore[no-any-return]


async def test_to_cover_there_is_no_overflow_while_a_spot_is_ready(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    serverless, spot = await start_backend(), await start_backend(full)
    router = await start_router(serverless, spot, serverless_use="cover")
    for _ in range(3):
        answer = await router.complete()
        assert (answer.status_code, answer.headers["x-tuna-backend"]) == (429, "spot")
    assert not serverless.seen
    await router.client.post("/router/config", json={"serverless_use": "always"})
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"


async def test_to_cover_a_slow_spot_is_waited_for_and_not_gone_round(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    serverless, spot = await start_backend(), await start_backend(silent)
    router = await start_router(serverless, spot, serverless_use="cover", spot_first_byte_timeout_s=0.1)
    for _ in range(5):  # its circuit opens on the way
        assert (await router.complete(stream=True)).status_code == 504
    assert router.state() == "READY"
    assert not serverless.seen


async def test_to_cover_serverless_answers_when_the_spot_is_gone(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    serverless, spot = await start_backend(), await start_backend()
    router = await start_router(serverless, spot, serverless_use="cover")
    assert (await router.complete()).headers["x-tuna-backend"] == "spot"
    await spot.stop()
    for _ in range(2):  # the one that finds out, and the next
        answer = await router.complete()
        assert (answer.status_code, answer.headers["x-tuna-backend"]) == (200, "serverless")


async def test_with_never_a_request_without_a_spot_is_refused_at_once_and_told_why(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    serverless = await start_backend()
    router = await start_router(serverless, "http://127.0.0.1:9", ready=False, serverless_use="never")
    answer = await router.complete()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    error = error_of(answer)
    assert error["code"] == "serverless_stopped"
    assert "spot is" in error["message"]
    assert not serverless.seen
    told = (await router.client.get("/router/load")).json()
    assert told["minutes"] == [], "what was tried nowhere is no load"
    metrics = (await router.client.get("/metrics")).text
    assert 'reason="serverless_stopped"' in metrics


async def test_with_never_spots_are_used_and_nothing_else_when_they_fail(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    serverless, spot = await start_backend(), await start_backend()
    router = await start_router(serverless, spot, serverless_use="never")
    assert (await router.complete()).headers["x-tuna-backend"] == "spot"
    await spot.stop()
    assert (await router.complete()).status_code == 502
    await until(lambda: router.state() != "READY")
    assert (await router.complete()).status_code == 503
    assert not serverless.seen


async def test_a_stream_on_serverless_ends_well_after_it_was_stopped(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    go_on = asyncio.Event()

    async def slow(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await go_on.wait()
        await wire.token("two", "stop")
        await wire.done()

    router = await start_router(await start_backend(slow))
    asking = asyncio.create_task(router.complete(stream=True))
    await until(lambda: len(router.router.core.streams) == 1)
    await router.client.post("/router/config", json={"serverless_use": "never"})
    assert (await router.complete()).status_code == 503
    go_on.set()
    assert (await asking).text.endswith("data: [DONE]\n\n")
    assert router.tally.finished == 1


async def test_a_broken_stream_is_not_continued_on_serverless_with_never_and_ends_well_formed(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    told = asyncio.Event()

    async def wait(wire: Wire) -> None:
        told.set()
        await wire.closed_by_peer()

    serverless, spot = await start_backend(), await start_backend(breaks(3, wait))
    router = await start_router(serverless, spot, serverless_use="never", resume_wait_s=0.3)
    asking = asyncio.create_task(ask(router))
    await told.wait()
    await spot.stop()
    assert "serverless takes nothing new" in broken(await asking)
    assert not serverless.seen


async def test_a_broken_stream_is_continued_on_serverless_to_cover(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    from .dataplane.breaking import good, whole

    told = asyncio.Event()

    async def wait(wire: Wire) -> None:
        told.set()
        await wire.closed_by_peer()

    serverless, spot = await start_backend(good), await start_backend(breaks(3, wait))
    router = await start_router(serverless, spot, serverless_use="cover")
    asking = asyncio.create_task(ask(router))
    await told.wait()
    await spot.stop()
    assert whole(await asking) == TEXT
    assert len(serverless.seen) == 1


# Budgets


async def put(router: Running, budget: Any) -> httpx.Response:
    return await router.client.put("/router/budget", content=json.dumps(budget))


async def test_when_so_much_was_counted_serverless_is_stopped_and_it_is_told_once(
    start_backend: StartBackend, start_router: StartRouter, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.3)
        await wire.json({"usage": {"prompt_tokens": 1, "completion_tokens": 2}})

    router = await start_router(backends=entries(serverless=await start_backend(slow)))
    events = await listen(router)
    shown = (await put(router, {"left_usd": 0.2, "serverless_use": "never", "note": "of today"})).json()
    assert (shown["serverless_use"], shown["budget"]["exhausted_at"]) == ("always", None)
    assert (await router.complete()).status_code == 200
    told = await events.until("budget")
    assert told["counted_usd"] >= 0.3
    assert (told["left_usd"], told["serverless_use"], told["note"]) == (0.2, "never", "of today")
    refused = await router.complete()
    assert refused.status_code == 503
    assert error_of(refused)["code"] == "budget_exhausted"
    assert "$0.20" in error_of(refused)["message"]
    assert "of today" in error_of(refused)["message"]
    assert "serverless_use is never" in caplog.text
    assert (await router.client.get("/router/config")).json()["serverless_use"] == "always", "as it was configured"
    assert (await router.client.get("/router/budget")).json()["serverless_use"] == "never"
    await router.client.post("/router/config", json={"queue_timeout_s": 5})
    assert (await router.complete()).status_code == 503, "another configuration is no way round it"
    await asyncio.sleep(1.2)
    assert len(events.events("budget")) == 1
    await put(router, {"left_usd": 100, "serverless_use": "never"})
    assert (await router.complete()).status_code == 200, "a new budget replaces it"
    await events.close()


async def test_a_budget_is_removed_by_null_and_by_delete(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(), serverless_use="cover")
    for remove in (lambda: put(router, None), lambda: router.client.delete("/router/budget")):
        shown = (await put(router, {"left_usd": 0, "serverless_use": "never"})).json()
        assert shown["serverless_use"] == "never"
        assert (await router.complete()).status_code == 503
        assert (await remove()).json() == {"budget": None, "serverless_use": "cover"}
        assert (await router.complete()).status_code == 200


@pytest.mark.parametrize(
    "budget",
    [
        {},
        [],
        {"left_usd": 1},
        {"left_usd": -1, "serverless_use": "cover"},
        {"left_usd": True, "serverless_use": "cover"},
        {"left_usd": 1, "serverless_use": "always"},
        {"left_usd": 1, "serverless_use": "nevr"},
        {"left_usd": 1, "serverless_use": "never", "note": 3},
        {"left_usd": 1, "serverless_use": "never", "notes": ""},
    ],
)
async def test_what_is_no_budget_changes_nothing(start_router: StartRouter, budget: Any) -> None:
    router = await start_router("http://127.0.0.1:9")
    answer = await put(router, budget)
    assert answer.status_code == 422
    assert error_of(answer)["hint"]
    assert (await router.client.get("/router/budget")).json()["budget"] is None


def test_what_was_counted_before_the_budget_and_before_a_restart_is_no_part_of_it_or_is_exactly(
    tmp_path: Path,
) -> None:
    now = [0.0]

    def life() -> Router:
        config = {"backends": entries(serverless="http://127.0.0.1:9")}
        return Router(parse_settings(config), clock=lambda: now[0], wall=lambda: 1000.0 + now[0])

    def used(router: Router, seconds: float) -> None:
        core = router.core
        share = core.ledger.begin("serverless", now[0])
        now[0] += seconds
        core.ledger.close(share, now[0], None)

    from tuna_router.books.budget import parse_limit

    first = life()
    used(first, 5.0)
    first.core.budget.put(parse_limit({"left_usd": 10, "serverless_use": "never"}, 1000.0))
    used(first, 4.0)
    state_file(first.core, tmp_path / "a").save()
    second = life()
    state_file(second.core, tmp_path / "a").load()
    assert second.core.budget.counted()[0] == pytest.approx(4.0)
    used(second, 5.9)
    assert second.core.budget.check() is False
    used(second, 0.2)
    assert second.core.budget.check() is True
    assert second.core.budget.check() is False
    assert second.core.serverless_use == "never"
    state_file(second.core, tmp_path / "a").save()
    third = life()
    state_file(third.core, tmp_path / "a").load()
    assert third.core.serverless_use == "never"
    assert third.core.budget.check() is False, "it was told before"


async def test_a_budget_holds_after_the_router_was_killed(tmp_path: Path, start_backend: StartBackend) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"backends": entries(serverless=await start_backend())}))
    flags = ("--no-auth", "--config", str(config))

    def ask_it(router: Process) -> httpx.Response:
        return httpx.post(router.url + "/v1/completions", json={"model": "m"}, trust_env=False, timeout=10)

    def talk() -> None:
        with started(tmp_path, *flags) as router:
            assert ask_it(router).status_code == 200
            budget = {"left_usd": 50.0, "serverless_use": "cover", "note": "this week"}
            assert httpx.put(router.url + "/router/budget", json=budget, trust_env=False).status_code == 200
            router.end(signal.SIGKILL)
        (tmp_path / "port.json").unlink()
        with started(tmp_path, *flags) as router:
            assert router.get("/router/budget", KEY).json()["budget"]["note"] == "this week"
            budget = {"left_usd": 0.0, "serverless_use": "never", "note": "all spent"}
            answer = httpx.put(router.url + "/router/budget", json=budget, trust_env=False)
            assert answer.json()["serverless_use"] == "never"
            assert ask_it(router).status_code == 503
            router.end(signal.SIGKILL)
        (tmp_path / "port.json").unlink()
        with started(tmp_path, *flags) as router:
            answer = ask_it(router)
            assert (answer.status_code, error_of(answer)["code"]) == (503, "budget_exhausted")
            shown = router.get("/router/budget", KEY).json()["budget"]
            assert (shown["note"], shown["exhausted_at"] is not None) == ("all spent", True)
            router.end()

    await asyncio.to_thread(talk)
