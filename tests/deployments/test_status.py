"""What is shown is what is there: a dead part is said to be dead, an unknown one unknown, never gone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest

from tests.deployments.lives import (
    CorruptJournal,
    Make,
    ask,
    deploy,
    destroy,
    kill_router,
    local,
    parts,
    planned,
    until,
)  # fmt: skip
from tests.frontends.terminals import Done, Terminal, deploy_words
from tuna_nb.commands.cost import bill_of
from tuna_nb.deployments.status import DeploymentStatus, status
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError

pytestmark = pytest.mark.e2e

Tuna = Callable[..., Done]


async def seen(workspace: Workspace, name: str = "a") -> DeploymentStatus:
    return await status(workspace, workspace.store.deployment(name))


def states(shown: DeploymentStatus) -> dict[str, str]:
    return {c.role: str(c.state) for c in shown.components}


async def test_a_running_deployment(workspace: Workspace, request_of: Make) -> None:
    await deploy(workspace, request_of("a"))
    shown = await seen(workspace)
    assert (shown.state, shown.hint, shown.spot_state) == ("running", None, "READY")
    assert states(shown) == {"serverless": "ready", "router": "ready", "spot": "ready"}
    assert shown.rate_usd_per_hour == pytest.approx(0.80 + 0.22)
    await ask(workspace, "a")
    routing = (await seen(workspace)).routing or {}
    assert (routing["total"], routing["spot"], routing["serverless"]) == (2, 1, 1)
    await destroy(workspace, "a")
    gone = await seen(workspace)
    assert (gone.state, gone.components, gone.rate_usd_per_hour) == ("destroyed", (), 0)


async def test_a_dead_router_is_degraded_with_the_remedy(workspace: Workspace, request_of: Make) -> None:
    await deploy(workspace, request_of("a"))
    kill_router(workspace, "a")
    shown = await seen(workspace)
    assert (shown.state, shown.routing, shown.spot_state) == ("degraded", None, None)
    assert states(shown)["router"] == "gone"
    assert shown.hint == "router not working; deploying the same name again mends it"
    # What it costs is still known, and so is its bill.
    assert shown.rate_usd_per_hour == pytest.approx(0.80 + 0.22)
    bill = await bill_of(workspace, workspace.store.deployment("a"))
    assert bill.usd > 0
    await destroy(workspace, "a")


async def test_a_router_that_hangs_is_unknown(workspace: Workspace, request_of: Make) -> None:
    import signal

    from tests.deployments.lives import router_process

    await deploy(workspace, request_of("a"))
    process = router_process(workspace, "a")
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        shown = await seen(workspace)
        assert time.monotonic() - begun < 15
        assert (shown.state, states(shown)["router"]) == ("degraded", "unknown")
        assert "does not answer" in next(c.detail for c in shown.components if c.role == "router")
    finally:
        process.send_signal(signal.SIGCONT)
    assert (await seen(workspace)).state == "running"
    await destroy(workspace, "a")


async def test_a_provider_that_cant_be_asked_is_unknown_never_gone(workspace: Workspace, request_of: Make) -> None:
    await deploy(workspace, request_of("a"))
    before = await bill_of(workspace, workspace.store.deployment("a"))
    journal = CorruptJournal(workspace)
    shown = await seen(workspace)
    assert states(shown) == {"serverless": "unknown", "router": "ready", "spot": "unknown"}
    assert shown.state == "degraded"
    assert shown.rate_usd_per_hour is None
    # What is known goes on being counted, and it is said how little is sure.
    bill = await bill_of(workspace, workspace.store.deployment("a"))
    assert bill.usd >= before.usd > 0
    one_second = (0.80 + 0.22) / 3600  # both are billed by whole ones
    assert bill.error_usd >= bill.usd - before.usd - one_second - 1e-9
    assert "local could not be asked" in bill.notes[0]
    assert "journal" in bill.notes[0]
    journal.mend()
    await until(lambda: _is(workspace, "running"))
    await destroy(workspace, "a")


async def test_half_a_bill_is_no_bill(workspace: Workspace, request_of: Make) -> None:
    """Of something that may run nothing was ever learned: that is an error, not a small amount."""
    await deploy(workspace, request_of("b"))
    made = await planned(workspace, request_of("a"))
    workspace.store.add_deployment("a", made.request.to_json(), made.to_json(), made.records(), made.deployment_id)
    for resource in workspace.store.resources(made.deployment_id):
        workspace.store.update_resource(resource.id, state="created")
    journal = CorruptJournal(workspace)
    with pytest.raises(BackendError, match="can't be asked what a has cost"):
        await bill_of(workspace, workspace.store.deployment("a"))
    journal.mend()
    await destroy(workspace, "a")
    await destroy(workspace, "b")


async def _is(workspace: Workspace, state: str) -> bool:
    return (await seen(workspace)).state == state


async def test_a_preempted_spot_side_does_not_degrade_the_endpoint(workspace: Workspace, request_of: Make) -> None:
    await deploy(workspace, request_of("a", boot_s=1))
    await local(workspace).cloud.preempt(parts(workspace, "a")["spot"].name, 0)
    shown = await seen(workspace)
    assert shown.state == "running"
    assert await ask(workspace, "a") in ("spot", "serverless")
    await destroy(workspace, "a")


async def test_nothing_created_is_not_created(workspace: Workspace, request_of: Make) -> None:
    made = await planned(workspace, request_of("a"))
    workspace.store.add_deployment("a", made.request.to_json(), made.to_json(), made.records(), made.deployment_id)
    shown = await seen(workspace)
    assert states(shown) == dict.fromkeys(("serverless", "router", "spot"), "not created")
    assert (shown.state, shown.rate_usd_per_hour) == ("interrupted", 0.0)
    assert "deploy the same name again to finish it, or destroy it" in str(shown.hint)
    await destroy(workspace, "a")


def test_the_list_names_a_provider_that_could_not_be_asked(home: Terminal, tuna: Tuna) -> None:
    from tuna_nb.settings import Settings

    tuna(*deploy_words("a"))
    tuna("cost", "--service-name", "a")
    workspace = Workspace(Settings.load())
    journal = CorruptJournal(workspace)
    shown = tuna("list", "-o", "json").json
    assert [d["state"] for d in shown["deployments"]] == ["degraded"]
    assert [provider for provider, _ in shown["unasked"]] == ["local"]
    assert "local could not be asked" in tuna("list").out
    assert "unknown per hour" in tuna("list").out
    assert "local could not be asked" in tuna("cost", "--service-name", "a").out
    journal.mend()
    tuna("destroy", "--all")


async def test_the_bill_is_the_local_clouds_own_while_it_runs_and_after(
    workspace: Workspace, request_of: Make
) -> None:
    options = {
        "cold_start_s": "0",
        "boot_s": "0",
        "serverless_price_per_hour_usd": "3600",
        "spot_price_per_hour_usd": "360",
    }
    await deploy(workspace, request_of("a", options=options))
    names = {r.name for r in parts(workspace, "a").values()}

    async def own() -> float:
        return sum(i.usd for i in (await local(workspace).cloud.bill()).intervals if i.resource in names)

    for _ in range(3):
        await ask(workspace, "a")
        bill, cloud = await bill_of(workspace, workspace.store.deployment("a")), await own()
        # Each replica is billed by the full second, and the two were read a moment apart: a second's worth.
        assert abs(bill.usd - cloud) <= 1 + 0.1 + 1e-6
    await local(workspace).cloud.preempt(parts(workspace, "a")["spot"].name, 0)
    await destroy(workspace, "a")
    bill = await bill_of(workspace, workspace.store.deployment("a"))
    assert bill.usd == pytest.approx(await own())
    assert bill.rate_usd_per_hour == 0
    assert bill.requests == 4
    assert {s.role: s.requests for s in bill.sides} in ({"serverless": 1, "spot": 3}, {"serverless": 2, "spot": 2})
    # The records are enough: the provider may have forgotten it.
    await local(workspace).cloud.shutdown()
    shutil.rmtree(local(workspace).folder)
    assert (await bill_of(workspace, workspace.store.deployment("a"))).usd == pytest.approx(bill.usd)
