"""What the local cloud's account says: when a replica was ready, and what each resource alone has cost."""

from __future__ import annotations

import time

import pytest

from tests.backends.local.clouds import deploy, spot, until
from tuna_nb.backends.base import Ref, State
from tuna_nb.backends.local.backend import LocalBackend

pytestmark = pytest.mark.usefixtures("unclouded")


async def test_usage_says_since_when_a_replica_serves_and_none_where_it_never_did(shared: LocalBackend) -> None:
    asked = time.time()
    good = await deploy(shared, spot("serves", options={"boot_s": "0.3"}))
    mute = await deploy(shared, spot("mutes", flags="--never-ready", options={"engine_start_timeout_s": "0.4"}))
    await good.becomes(State.READY)
    await mute.becomes(State.FAILED)
    [interval] = await shared.usage(good.ref)
    assert interval.ready_at is not None
    assert asked < interval.started_at + 0.3 <= interval.ready_at <= time.time()
    assert {i.ready_at for i in await shared.usage(mute.ref)} == {None}
    await shared.destroy(good.ref)
    [ended] = await shared.usage(good.ref)
    assert ended.ready_at == interval.ready_at


async def test_its_charges_are_its_bill_and_nobody_elses(shared: LocalBackend) -> None:
    one, two = await deploy(shared, spot("one")), await deploy(shared, spot("two"))
    for side in (one, two):
        await side.becomes(State.READY)
        await shared.destroy(side.ref)
    [charge] = await shared.charges(one.ref, 0, time.time())
    bill = await shared.cloud.bill("one")
    assert charge.usd == pytest.approx(bill.usd)
    assert charge.usd > 0
    [interval] = bill.intervals
    assert interval.replica in charge.what
    assert await shared.charges(one.ref, 0, interval.started_at) == []
    assert interval.ended_at is not None
    assert await shared.charges(one.ref, interval.ended_at, interval.ended_at + 60) == []
    former = Ref("local", one.ref.kind, "one", "another-uid")
    assert await shared.charges(former, 0, time.time()) == []


async def test_a_running_replica_is_charged_up_to_when_it_was_last_seen(shared: LocalBackend) -> None:
    side = await deploy(shared, spot("runs"))
    await side.becomes(State.READY)

    async def charged() -> bool:
        [charge] = await shared.charges(side.ref, 0, time.time())
        return charge.usd > 0 and charge.ended_at <= time.time()

    await until(charged)
    await shared.destroy(side.ref)
