"""Budgets beside a running deployment: told once, carried out, tried again, with nobody at the notebook."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.deployments.lives import CorruptJournal, ask, deploy, destroy, parts, until
from tests.deployments.receiver import receiving
from tuna_nb.deployments.keeping import companion, webhook
from tuna_nb.deployments.keeping.allowance import standings
from tuna_nb.deployments.keeping.keeper import Keeper
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.scale import scale
from tuna_nb.deployments.status import status
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.records import EVERYTHING, BudgetRecord, DeploymentRecord, QuietRecord
from tuna_nb.views.sheets import sheet

pytestmark = pytest.mark.e2e

Make = Callable[..., DeployRequest]
DEAR = {"serverless_price_per_hour_usd": "36000", "spot_price_per_hour_usd": "0"}
"""Ten dollars a second."""


async def alone(workspace: Workspace, request: DeployRequest) -> DeploymentRecord:
    """Deployed, with nobody beside it but the test."""
    record = await deploy(workspace, request, until_spot=False)
    companion.stop(record.id)
    return record


@pytest.fixture
def dear(request_of: Make) -> Make:
    def make(name: str, **change: Any) -> DeployRequest:
        cheap = request_of(name, **change)
        more = dict(cheap.options) | DEAR
        return request_of(name, **change | {"options": more})

    return make


def put(
    workspace: Workspace, scope: str, limit: float, action: str, *, per: str = "total", webhook: bool = False
) -> BudgetRecord:
    made, _ = workspace.store.budgets.put(scope, limit, per, (50,), action, webhook=webhook, now=time.time() - 3600)
    return made


def told(workspace: Workspace, record: DeploymentRecord) -> list[str]:
    return [text for _, text in workspace.store.events(record.id)]


def client(workspace: Workspace, record: DeploymentRecord) -> RouterClient:
    return RouterClient(str(record.endpoint_url), workspace.secrets.get(record.id, "admin_key"))


def alive(workspace: Workspace, name: str) -> bool:
    return workspace.store.live_deployment(name) is not None


async def look(keeper: Keeper) -> bool:
    """Now, however long the last one took."""
    keeper._look_at = 0.0
    return await keeper.look()


async def spent(workspace: Workspace, record: DeploymentRecord, usd: float) -> None:
    """Until so much is in the ledger."""
    put(workspace, record.id, 1e6, "notify", per="month")
    keeper = Keeper(workspace, record.id)

    async def enough() -> bool:
        await look(keeper)
        return standings(workspace, record.id, time.time())[0].spent_usd >= usd

    await until(enough)


async def test_a_used_up_budget_destroys_and_says_why(workspace: Workspace, dear: Make) -> None:
    record = await alone(workspace, dear("x", serverless_only=True))
    await spent(workspace, record, 2)
    one = put(workspace, record.id, 1, "destroy")
    assert not await look(Keeper(workspace, record.id))
    assert not alive(workspace, "x")
    assert "budget of $1.00 in total was used up" in str(workspace.store.deployment("x").error)
    said = [text for text in told(workspace, record) if "budget" in text]
    assert "it is used up. At 100 %: it is destroyed" in said[0], "told before it was done"
    assert [(f.level, f.action, f.done_at is None) for f in workspace.store.budgets.fired(one.id)] == [
        (50, "", True), (100, "", True), (100, "destroy", False),
    ]  # fmt: skip


async def test_a_destroy_that_fails_is_tried_again_at_the_next_looks(workspace: Workspace, dear: Make) -> None:
    record = await alone(workspace, dear("x", serverless_only=True))
    keeper = Keeper(workspace, record.id)
    await spent(workspace, record, 2)
    put(workspace, record.id, 1, "destroy")
    broken = CorruptJournal(workspace)
    for _ in range(2):
        assert await look(keeper), "it goes on while something is left"
        assert alive(workspace, "x")
    (pending,) = workspace.store.budgets.pending(record.id)
    assert pending.trouble
    assert sum("destroy failed" in text for text in told(workspace, record)) == 1, "the same trouble is told once"
    broken.mend()

    async def ended() -> bool:
        return not await look(keeper)

    await until(ended)
    assert not alive(workspace, "x")
    assert workspace.store.budgets.pending(record.id) == []


async def test_overflow_is_stopped_by_the_router_and_then_serverless_altogether(
    workspace: Workspace, dear: Make
) -> None:
    record = await alone(workspace, dear("x"))
    router, keeper = client(workspace, record), Keeper(workspace, record.id)
    await spent(workspace, record, 2)
    put(workspace, record.id, 1e5, "stop-overflow")
    await look(keeper)
    there = await router._call("GET", "/router/budget")
    assert there["serverless_use"] == "always"
    assert there["budget"]["serverless_use"] == "cover"
    assert there["budget"]["left_usd"] == pytest.approx(1e5, rel=0.01), "the router knows, should nobody look"
    now = standings(workspace, record.id, time.time())[0].spent_usd
    put(workspace, record.id, now, "stop-overflow")
    await look(keeper)
    assert (await router._call("GET", "/router/budget"))["serverless_use"] in ("cover", "never")
    put(workspace, record.id, now / 1.2, "stop-overflow")
    await look(keeper)
    assert (await router._call("GET", "/router/budget"))["serverless_use"] == "never"
    assert workspace.store.budgets.pending(record.id) == []
    for left in workspace.store.budgets.applying(record.id):
        workspace.store.budgets.remove(left)
    await look(keeper)
    after = await router._call("GET", "/router/budget")
    assert (after["budget"], after["serverless_use"]) == (None, "always"), "a budget that is removed holds nothing"
    await destroy(workspace, "x")


async def test_a_deployment_is_scaled_down_to_one_at_most_and_none_when_idle(
    workspace: Workspace, dear: Make
) -> None:
    record = await alone(workspace, dear("x", serverless_only=True))
    request = DeployRequest.from_json(record.request)
    await scale(workspace, record, replace(request.serverless, workers_min=1, workers_max=3), request.spot)
    await spent(workspace, record, 2)
    put(workspace, record.id, 1, "scale-down")
    keeper = Keeper(workspace, record.id)
    assert await look(keeper)
    after = DeployRequest.from_json(workspace.store.deployment("x").request)
    assert (after.serverless.workers_min, after.serverless.workers_max) == (0, 1)
    assert "done: scale-down" in told(workspace, record)
    # Who scales it up again, knowing that, is not overruled.
    await scale(workspace, workspace.store.deployment("x"), replace(after.serverless, workers_max=2), after.spot)
    assert await look(keeper)
    assert DeployRequest.from_json(workspace.store.deployment("x").request).serverless.workers_max == 2
    await destroy(workspace, "x")


async def test_a_total_over_all_is_told_once_and_each_acts_on_its_own(workspace: Workspace, dear: Make) -> None:
    with receiving() as receiver:
        first = await alone(workspace, dear("x", serverless_only=True))
        second = await alone(workspace, dear("y", serverless_only=True))
        await spent(workspace, first, 2)
        webhook.keep(workspace.secrets, EVERYTHING, receiver.url, {webhook.KEY_VARIABLE: "k"})
        one = put(workspace, EVERYTHING, 1, "destroy", webhook=True)
        for record, other in ((first, "y"), (second, "")):
            keeper = Keeper(workspace, record.id)
            assert not await look(keeper)
            await keeper.close()
            assert not alive(workspace, record.name)
            assert not other or alive(workspace, other), "only its own"
        assert len(receiver.got) == 1
        assert "all deployments: $" in receiver.got[0]["text"]
        about = receiver.got[0]["tuna"]
        assert (about["event"], about["level"], about["action"]) == ("budget", 100, "destroy")
        done = [f.deployment_id for f in workspace.store.budgets.fired(one.id) if f.action and f.done_at]
        assert sorted(done) == sorted([first.id, second.id])
    workspace.store.budgets.remove(one)
    workspace.secrets.forget(EVERYTHING)


async def test_a_slow_or_broken_webhook_holds_no_look_up(workspace: Workspace, dear: Make) -> None:
    with receiving() as receiver:
        record = await alone(workspace, dear("x", serverless_only=True))
        await spent(workspace, record, 2)
        receiver.answers = [(503, {})] * 2
        webhook.keep(workspace.secrets, record.id, receiver.url, {webhook.KEY_VARIABLE: "k"})
        put(workspace, record.id, 1, "notify", webhook=True)
        keeper = Keeper(workspace, record.id)
        assert await look(keeper)
        assert receiver.got == []
        assert await look(keeper)
        await keeper.close()
        assert len(receiver.got) == 1, "two looks, one message"
        assert await look(Keeper(workspace, record.id)), "nor does another process tell it again"
        assert receiver.wrong == []
        await destroy(workspace, "x")
        assert len(receiver.got) == 1


async def test_a_provider_that_can_not_be_asked_stops_no_budget(workspace: Workspace, dear: Make) -> None:
    """What ran when it was last seen is counted on."""
    record = await alone(workspace, dear("x", serverless_only=True))
    await spent(workspace, record, 2)
    broken = CorruptJournal(workspace)
    put(workspace, record.id, 1, "notify")
    await look(Keeper(workspace, record.id))
    assert any("it is used up" in text for text in told(workspace, record))
    broken.mend()
    await destroy(workspace, "x")


async def test_a_spot_side_that_never_comes_up_is_told_once_and_stopped_where_asked(
    workspace: Workspace, request_of: Make
) -> None:
    with receiving() as receiver:
        record = await alone(workspace, request_of("x", boot_s=3600))
        webhook.keep(workspace.secrets, record.id, receiver.url, {webhook.KEY_VARIABLE: "k"})
        keeper = Keeper(workspace, record.id)

        async def noticed() -> Any:
            await look(keeper)
            return workspace.store.budgets.fired(f"unserving:{parts(workspace, 'x')['spot'].id}")

        workspace.store.budgets.put_quiet(QuietRecord(record.id, 1, 86400, stop=False))
        (firing,) = await until(noticed)
        assert (firing.action, firing.told["kind"], firing.told["role"]) == ("", "stuck loading", "spot")
        await look(keeper)
        await keeper.close()
        assert [g["tuna"]["event"] for g in receiver.got] == ["unserving"]
        (one,) = (await status(workspace, record)).unserving
        assert one.kind == "stuck loading"
        shown = sheet(await status(workspace, record))
        assert shown.tone == "bad"
        assert "spot on local bills but has not served" in shown.notes[0]
        await destroy(workspace, "x")


async def test_what_never_serves_is_stopped_where_that_was_asked(workspace: Workspace, request_of: Make) -> None:
    record = await alone(workspace, request_of("x", boot_s=3600))
    workspace.store.budgets.put_quiet(QuietRecord(record.id, 1, 86400, stop=True))
    keeper = Keeper(workspace, record.id)

    async def stopped() -> bool:
        assert await look(keeper)
        return parts(workspace, "x")["spot"].state == "gone"

    await until(stopped)
    assert "billed and did not serve" in str(parts(workspace, "x")["spot"].error)
    assert await ask(workspace, "x") == "serverless", "the other side goes on"
    await destroy(workspace, "x")
