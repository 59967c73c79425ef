"""A running deployment scales and wakes in place, and its record follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.deployments.lives import deploy, destroy, local, parts, until
from tuna_nb.backends.base import State
from tuna_nb.deployments.keeping.watch import resource_ref
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.scale import scale, wake
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import ConflictError, RequestError

pytestmark = pytest.mark.e2e

Make = Callable[..., DeployRequest]


async def test_each_side_gets_its_new_figures_and_the_record_too(workspace: Workspace, request_of: Make) -> None:
    record = await deploy(workspace, request_of("s"))
    request = DeployRequest.from_json(record.request)
    await scale(
        workspace, record, replace(request.serverless, workers_min=1), replace(request.spot, min_replicas=2)
    )
    for role, count in (("serverless", 1), ("spot", 2)):
        ref = resource_ref(parts(workspace, "s")[role])

        async def has(ref: object = ref, count: int = count) -> bool:
            status = await local(workspace).status(ref)  # type: ignore[arg-type]
            return sum(r.state is State.READY for r in status.replicas) == count

        await until(has)
    after = DeployRequest.from_json(workspace.store.deployment("s").request)
    assert (after.serverless.workers_min, after.spot.min_replicas) == (1, 2)
    await destroy(workspace, "s")


async def test_figures_that_can_not_be_change_nothing(workspace: Workspace, request_of: Make) -> None:
    record = await deploy(workspace, request_of("s", serverless_only=True))
    request = DeployRequest.from_json(record.request)
    with pytest.raises(RequestError, match="workers_min is 9, above"):
        await scale(workspace, record, replace(request.serverless, workers_min=9), request.spot)
    with pytest.raises(RequestError, match="no spot side"):
        await scale(workspace, record, request.serverless, replace(request.spot, min_replicas=1))
    assert DeployRequest.from_json(workspace.store.deployment("s").request) == request
    with pytest.raises(RequestError, match="s has no spot side"):
        await wake(workspace, record, "spot")
    await destroy(workspace, "s")
    for call in (wake(workspace, workspace.store.deployment("s"), None),):
        with pytest.raises(ConflictError):
            await call


async def test_what_has_scaled_to_zero_wakes(workspace: Workspace, request_of: Make) -> None:
    request = request_of("s", serverless_only=True)
    record = await deploy(workspace, replace(request, serverless=replace(request.serverless, scaledown_window=0.2)))
    ref = resource_ref(parts(workspace, "s")["serverless"])

    async def state() -> State:
        return (await local(workspace).status(ref)).state

    async def idle() -> bool:
        return await state() is State.IDLE

    async def awake() -> bool:
        return await state() is not State.IDLE

    await until(idle)
    assert await wake(workspace, record, None) == ["serverless"]
    await until(awake)
    await destroy(workspace, "s")
