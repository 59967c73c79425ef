"""Making a plan real: finished when interrupted, undone when it can't be, repaired without harm."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.deployments.conftest import Told
from tests.deployments.leftovers import assert_nothing_left, processes_of
from tests.deployments.lives import (
    Make,
    ask,
    deploy,
    destroy,
    kill_cloud,
    kill_router,
    local,
    parts,
    planned,
    router_process,
    until,
)  # fmt: skip
from tests.deployments.providers import SoldOut
from tuna_nb.deployments.apply import apply
from tuna_nb.deployments.status import status
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import CancelledError, ConflictError, EngineError, RouterError, TunaError

pytestmark = pytest.mark.e2e


async def test_the_endpoint_answers_from_serverless_before_spot_is_there(
    workspace: Workspace, request_of: Make
) -> None:
    record = await deploy(workspace, request_of("a", boot_s=60), until_spot=False)
    assert record.state == "running"
    assert await ask(workspace, "a") == "serverless"
    assert {r.state for r in parts(workspace, "a").values()} == {"created"}
    await destroy(workspace, "a")


async def test_spot_takes_the_traffic_once_it_is_ready(workspace: Workspace, request_of: Make, told: Told) -> None:
    record = await deploy(workspace, request_of("a"), told)
    assert "spot is ready and takes the traffic" in told
    assert await ask(workspace, "a") == "spot"
    assert next(text for _, text in workspace.store.events(record.id)).startswith("serving at http://127.0.0.1:")
    await destroy(workspace, "a")


async def test_records_are_there_before_anything_is_created(workspace: Workspace, request_of: Make) -> None:
    """At the first word of the provider's, the store knows every resource by name."""
    seen: list[dict[str, str]] = []

    class Watching(Told):
        def _publish(self, *, log: str | None = None, **change: object) -> None:
            if log is not None and log.startswith("serverless: creating"):
                seen.append({r.name: r.state for r in parts(workspace, "a").values()})

    await deploy(workspace, request_of("a"), Watching())
    assert len(seen) == 1
    assert set(seen[0]) == {r.name for r in parts(workspace, "a").values()}
    assert seen[0][parts(workspace, "a")["serverless"].name] == "creating"
    await destroy(workspace, "a")


async def test_applying_again_finishes_what_was_interrupted(workspace: Workspace, request_of: Make) -> None:
    """The record and one side exist, as after a crash: the same name, found by the same names, is completed."""
    request = request_of("a")
    half = await planned(workspace, request)
    workspace.store.add_deployment("a", half.request.to_json(), half.to_json(), half.records(), half.deployment_id)
    await local(workspace).deploy(half.serverless, lambda *_: None)
    before = await local(workspace).list_owned()
    assert (await status(workspace, workspace.store.deployment("a"))).state == "interrupted"
    record = await deploy(workspace, request)
    assert (record.id, record.state) == (half.deployment_id, "running")
    assert {r.id for r in before} < {r.id for r in await local(workspace).list_owned()}
    assert len(await local(workspace).list_owned()) == 2
    await destroy(workspace, "a")


async def test_applying_again_changes_nothing_that_runs(workspace: Workspace, request_of: Make) -> None:
    first = await deploy(workspace, request_of("a"))
    process = router_process(workspace, "a")
    ids = {r.provider_id for r in parts(workspace, "a").values()}
    again = await deploy(workspace, request_of("a"))
    assert (again.id, again.endpoint_url) == (first.id, first.endpoint_url)
    assert {r.provider_id for r in parts(workspace, "a").values()} == ids
    assert router_process(workspace, "a") == process
    await destroy(workspace, "a")


async def test_without_a_spot_gpu_serverless_carries_the_traffic(
    workspace: Workspace, request_of: Make, told: Told
) -> None:
    workspace._backends["sold-out"] = SoldOut(local(workspace).folder)
    record = await deploy(workspace, request_of("a", spots_cloud="sold-out"), told)
    assert record.state == "running"
    assert record.error is None
    assert "spot: sold-out has no L4 free" in told
    assert "deploying the same name again tries once more" in told
    assert parts(workspace, "a")["spot"].state == "failed"
    assert await ask(workspace, "a") == "serverless"
    shown = await status(workspace, record)
    assert shown.state == "running"
    (spot,) = [c for c in shown.components if c.role == "spot"]
    assert (spot.billing, spot.rate_usd_per_hour) == (False, 0.0)
    await destroy(workspace, "a")


async def test_a_killed_router_is_repaired_at_the_same_address(workspace: Workspace, request_of: Make) -> None:
    first = await deploy(workspace, request_of("a"))
    key = workspace.secrets.get(first.id, "api_key")
    kill_router(workspace, "a")
    assert (await status(workspace, first)).state == "degraded"
    again = await deploy(workspace, request_of("a"))
    assert (again.id, again.endpoint_url, again.state) == (first.id, first.endpoint_url, "running")
    assert workspace.secrets.get(first.id, "api_key") == key
    assert await ask(workspace, "a") == "spot"
    await destroy(workspace, "a")


async def test_a_killed_cloud_is_started_again_by_whoever_asks(workspace: Workspace, request_of: Make) -> None:
    await deploy(workspace, request_of("a"))
    kill_cloud(workspace)
    again = await deploy(workspace, request_of("a"))
    assert again.state == "running"
    await until(lambda: _serves(workspace, "a"))
    await destroy(workspace, "a")


async def _serves(workspace: Workspace, name: str) -> bool:
    try:
        return await ask(workspace, name) in ("spot", "serverless")
    except AssertionError:
        return False


async def test_a_repair_that_fails_leaves_the_deployment_and_says_why(
    workspace: Workspace, request_of: Make
) -> None:
    first = await deploy(workspace, request_of("a"))
    port = int(str(first.endpoint_url).rpartition(":")[2])
    kill_router(workspace, "a")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(RouterError, match=str(port)):
            await deploy(workspace, request_of("a"))
    record = workspace.store.deployment("a")
    assert (record.state, record.destroyed_at) == ("running", None)
    assert str(port) in str(record.error)
    assert len(await local(workspace).list_owned()) == 2
    # With the port free again, the next try mends it.
    mended = await deploy(workspace, request_of("a"))
    assert (mended.endpoint_url, mended.error) == (first.endpoint_url, None)
    await destroy(workspace, "a")


async def test_a_repair_that_is_cancelled_leaves_the_deployment(workspace: Workspace, request_of: Make) -> None:
    await deploy(workspace, request_of("a", boot_s=60), until_spot=False)
    waiting = asyncio.create_task(deploy(workspace, request_of("a", boot_s=60)))
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(CancelledError, match="stopped waiting; the deployment goes on"):
        await waiting
    assert await ask(workspace, "a") == "serverless"
    assert workspace.store.deployment("a").state == "running"
    await destroy(workspace, "a")


async def test_a_cancelled_first_deploy_is_undone_whole(workspace: Workspace, request_of: Make, told: Told) -> None:
    building = asyncio.create_task(deploy(workspace, request_of("a", boot_s=60), told))
    await until(lambda: "spot is booting" in told)
    building.cancel()
    # Impatience does not stop the undoing half way.
    await asyncio.sleep(0.1)
    building.cancel()
    with pytest.raises(CancelledError, match="everything it had created is gone"):
        await building
    record = workspace.store.deployment("a")
    assert (record.state, record.error) == ("destroyed", "cancelled")
    assert {r.state for r in parts(workspace, "a").values()} == {"gone"}
    await assert_nothing_left(workspace.settings.data_dir)


async def test_a_failed_first_deploy_is_undone_whole(workspace: Workspace, request_of: Make) -> None:
    with pytest.raises(EngineError, match="can't start"):
        await deploy(workspace, request_of("a", engine_cmd="no-such-engine"))
    record = workspace.store.deployment("a")
    assert record.state == "failed"
    assert "no-such-engine" in str(record.error)
    # The name is free again.
    await deploy(workspace, request_of("a"), until_spot=False)
    await destroy(workspace, "a")


async def test_undoing_that_fails_too_is_said_and_can_be_tried_again(
    workspace: Workspace, request_of: Make
) -> None:
    from tests.deployments.providers import Stubborn

    stubborn = Stubborn(local(workspace).folder)
    workspace._backends["stubborn"] = stubborn
    request = request_of("a", serverless_provider="stubborn", engine_cmd="no-such-engine")
    with pytest.raises(TunaError, match="and taking it down failed: stubborn: 503") as e:
        await deploy(workspace, request)
    assert "tuna destroy --service-name a" in str(e.value.hint)
    record = workspace.store.deployment("a")
    assert record.destroyed_at is None
    assert "503" in str(record.error)
    stubborn.refuses = False
    await destroy(workspace, "a")


async def test_two_deployments_of_one_name_cant_be_recorded(workspace: Workspace, request_of: Make) -> None:
    one, two = [await planned(workspace, request_of("a")) for _ in range(2)]
    workspace.store.add_deployment("a", one.request.to_json(), one.to_json(), one.records(), one.deployment_id)
    with pytest.raises(ConflictError):
        workspace.store.add_deployment("a", two.request.to_json(), two.to_json(), two.records(), two.deployment_id)
    await destroy(workspace, "a")


async def test_a_fixed_port_is_kept(workspace: Workspace, request_of: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    record = await deploy(workspace, request_of("a", port=port), until_spot=False)
    assert record.endpoint_url == f"http://127.0.0.1:{port}"
    await destroy(workspace, "a")


async def test_the_routers_configuration_is_for_its_owner_alone(workspace: Workspace, request_of: Make) -> None:
    record = await deploy(workspace, request_of("a"), until_spot=False)
    folder = workspace.settings.data_dir / "routers" / record.id
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o600
    for name in ("api_key", "admin_key"):
        key = workspace.secrets.get(record.id, name)
        assert key
        assert all(key.encode() not in p.read_bytes() for p in Path(folder).rglob("*") if p.is_file())
    await destroy(workspace, "a")
    assert not folder.exists()
    assert workspace.secrets.get(record.id, "api_key") is None


async def test_a_deployment_outlives_the_process_that_made_it(workspace: Workspace, request_of: Make) -> None:
    """Its processes are nobody's children: ending a terminal's whole group ends none of them."""
    import os

    await deploy(workspace, request_of("a"))
    for process in processes_of(workspace.settings.data_dir):
        assert os.getsid(process.pid) != os.getsid(0)
        assert os.getpgid(process.pid) != os.getpgid(0)
    made = await planned(workspace, request_of("a"))
    await apply(workspace, made, Told().report)
    await destroy(workspace, "a")
