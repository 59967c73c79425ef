"""The spot side: replicas come, are taken away, and are replaced."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.backends.local.clouds import Deployed, deploy, serverless, spot, until
from tuna_nb.backends.base import SpotScaling, State
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.errors import ConflictError, NotFoundError, RequestError

pytestmark = pytest.mark.usefixtures("unclouded")


async def counts(fleet: Deployed) -> dict[str, int]:
    answer = await fleet.http.get("/-/replicas")
    assert answer.status_code == 200
    return dict(answer.json())


async def ready(fleet: Deployed, number: int = 1) -> bool:
    return (await counts(fleet))["ready"] == number


async def test_a_replica_is_billed_from_its_boot_and_ready_only_after_a_real_token(shared: LocalBackend) -> None:
    asked = time.time()
    fleet = await deploy(shared, spot("boot", options={"boot_s": "0.6"}))
    assert await counts(fleet) == {"ready": 0, "starting": 1, "draining": 0, "total": 1}
    assert (await shared.status(fleet.ref)).billing
    refused = await fleet.ask()
    assert refused.status_code == 503
    assert refused.json()["error"].startswith("No ready replicas")
    await fleet.becomes(State.READY)
    assert (await fleet.ask()).status_code == 200
    [replica] = await shared.usage(fleet.ref)
    assert asked <= replica.started_at
    assert replica.ready_at is not None
    assert replica.ready_at - replica.started_at >= 0.6


async def test_the_load_balancer_and_its_replica_count_need_the_key(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("locked", min_replicas=0))
    async with httpx.AsyncClient(base_url=fleet.endpoint.url) as stranger:
        assert (await stranger.get("/-/replicas")).status_code == 401
        assert (await stranger.get("/v1/models")).status_code == 401
    assert fleet.endpoint.replicas_url == f"{fleet.endpoint.url}/-/replicas"


async def test_a_preemption_with_notice_lets_running_streams_finish_and_boots_a_replacement(
    shared: LocalBackend,
) -> None:
    fleet = await deploy(shared, spot("notice"))
    await until(lambda: ready(fleet))
    [before] = (await shared.status(fleet.ref)).replicas
    seen: list[dict[str, int]] = []

    async def preempt() -> None:
        assert await shared.cloud.preempt(fleet.ref.name, notice_s=2) == before.id
        seen.append(await counts(fleet))

    events = await fleet.stream(40, on_first=preempt)
    assert events[-1] == "data: [DONE]"
    assert len(events) == 41
    assert seen == [{"ready": 0, "starting": 1, "draining": 1, "total": 2}]
    await until(lambda: ready(fleet))
    await until(lambda: _gone(shared, fleet, before.id))
    old, new = await shared.usage(fleet.ref)
    assert old.ended_at is not None
    assert new.started_at < old.ended_at, "the replacement boots when notice is given"
    assert new.ended_at is None


async def _gone(backend: LocalBackend, fleet: Deployed, replica: str) -> bool:
    return replica not in [r.id for r in (await backend.status(fleet.ref)).replicas]


async def test_a_draining_replica_gets_no_new_request(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("draining"))
    await until(lambda: ready(fleet))
    await shared.cloud.preempt(fleet.ref.name, notice_s=20)
    assert (await fleet.ask()).status_code == 503
    await until(lambda: ready(fleet))
    assert (await fleet.ask()).status_code == 200
    assert (await counts(fleet))["draining"] == 1


async def test_a_preemption_without_notice_cuts_the_stream_and_is_replaced(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("sudden"))
    await until(lambda: ready(fleet))
    with pytest.raises(httpx.RemoteProtocolError):
        await fleet.stream(5000, on_first=lambda: shared.cloud.preempt(fleet.ref.name, notice_s=0))
    await until(lambda: ready(fleet))
    assert len(await shared.usage(fleet.ref)) == 2


async def test_a_replica_that_is_preempted_while_it_boots_never_serves(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("young", options={"boot_s": "0.5"}))
    [first] = (await shared.status(fleet.ref)).replicas
    await shared.cloud.preempt(fleet.ref.name, notice_s=5)
    await until(lambda: ready(fleet))
    states = {r.id: r.state for r in (await shared.status(fleet.ref)).replicas}
    assert states[first.id] is State.DRAINING


async def test_preempting_what_is_not_there_is_an_error(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("nobody", min_replicas=0))
    with pytest.raises(ConflictError, match="no replica to preempt"):
        await shared.cloud.preempt(fleet.ref.name)
    with pytest.raises(NotFoundError, match="no-such"):
        await shared.cloud.preempt(fleet.ref.name, replica="no-such")
    with pytest.raises(NotFoundError):
        await shared.cloud.preempt("no-such-fleet")
    with pytest.raises(RequestError, match="notice_s"):
        await shared.cloud.preempt(fleet.ref.name, notice_s=-1)
    side = await deploy(shared, serverless("not-a-fleet"))
    with pytest.raises(ConflictError, match="serverless"):
        await shared.cloud.preempt(side.ref.name)


async def test_a_request_wakes_a_fleet_at_zero_and_quiet_puts_it_back(shared: LocalBackend) -> None:
    fleet = await deploy(
        shared, spot("sleeper", min_replicas=0, downscale_delay=1.5, options={"qps_window_s": "1"})
    )
    assert await fleet.state() is State.IDLE
    assert (await fleet.ask()).status_code == 503
    await until(lambda: ready(fleet))
    await fleet.becomes(State.IDLE)
    assert not (await shared.status(fleet.ref)).billing
    await counts(fleet)
    assert await fleet.state() is State.IDLE, "looking at the count is no traffic"


async def test_load_adds_replicas_and_each_gets_requests(shared: LocalBackend) -> None:
    fleet = await deploy(
        shared, spot("busy", max_replicas=2, target_qps=5, upscale_delay=0.2, options={"qps_window_s": "1"})
    )
    await until(lambda: ready(fleet))
    pids: set[int] = set()

    async def served_by_two() -> bool:
        answers = await asyncio.gather(*(fleet.ask(sleep=0.05) for _ in range(4)))
        pids.update(a.json()["pid"] for a in answers if a.status_code == 200)
        return len(pids) == 2

    await until(served_by_two)


async def test_random_preemptions_come_by_themselves(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("dice", options={"preemption_mean_s": "1", "seed": "3", "notice_s": "0"}))

    async def replaced() -> bool:
        return len(await shared.usage(fleet.ref)) >= 3

    await until(replaced, within=30)


async def test_scaling_down_lets_a_running_stream_finish(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("shrink", downscale_delay=0, options={"qps_window_s": "0.5"}))
    await until(lambda: ready(fleet))
    await fleet.ask()

    async def shrink() -> None:
        await shared.scale(fleet.ref, SpotScaling(min_replicas=0, max_replicas=1, downscale_delay=0))

    events = await fleet.stream(40, on_first=shrink)
    assert events[-1] == "data: [DONE]"
    await fleet.becomes(State.IDLE)
