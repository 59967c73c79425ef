"""While the machine of a router comes up, a router here serves: the first answer does not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.deployments.conftest import Told
from tests.deployments.lives import ask, deploy, destroy, parts, until
from tuna_nb.deployments.connection import connection
from tuna_nb.deployments.plan import near
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_hosts.base import RouterHost
from tuna_nb.deployments.router_hosts.process import ProcessHost
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import CancelledError, RouterError
from tuna_nb.settings import Settings

pytestmark = pytest.mark.e2e

Make = Callable[..., DeployRequest]


class Elsewhere(ProcessHost):
    """A place whose machine comes up when the test says so, or not at all. It is another folder of this machine."""

    name = "vm"
    takes_minutes = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(replace(settings, data_dir=settings.data_dir / "elsewhere"))
        self.up = asyncio.Event()
        self.trouble: str | None = None
        self.starts = 0

    async def start(self, *words: Any, **more: Any) -> str:
        await self.up.wait()
        self.starts += 1
        if self.trouble is not None:
            raise RouterError(self.trouble, "try another place")
        return await super().start(*words, **more)


@pytest.fixture
def elsewhere(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    made, here = Elsewhere(workspace.settings), workspace.router_host

    def router_host(name: str = "process") -> RouterHost:
        return made if name == made.name else here(name)

    monkeypatch.setattr(workspace, "router_host", router_host)
    return made


async def answers(url: str, workspace: Workspace, name: str) -> bool:
    link = await connection(workspace, workspace.store.deployment(name))
    body = {"model": link.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        said = await http.post(f"{url}/v1/chat/completions", json=body, headers=link.headers)
    return said.status_code == 200


async def test_the_endpoint_serves_here_until_its_own_place_is_up_and_both_go_on(
    workspace: Workspace, request_of: Make, elsewhere: Elsewhere
) -> None:
    deploying = asyncio.create_task(deploy(workspace, request_of("r", router_host="vm")))
    await until(lambda: (live := workspace.store.live_deployment("r")) and live.state == "running")
    interim = workspace.store.deployment("r").endpoint_url
    assert interim is not None
    assert await answers(interim, workspace, "r"), "before its machine is there"
    elsewhere.up.set()
    record = await deploying
    assert record.endpoint_url not in (None, interim)
    assert await elsewhere.url(record.id) == record.endpoint_url
    assert await ask(workspace, "r") == "spot"
    assert await answers(interim, workspace, "r"), "who has that address is not cut off"

    again = await deploy(workspace, request_of("r", router_host="vm"))
    assert again.endpoint_url == record.endpoint_url
    await destroy(workspace, "r")
    assert await elsewhere.url(record.id) is None
    assert await workspace.router_host("process").url(record.id) is None


async def test_a_place_that_serves_is_not_given_up_because_it_is_not_reached_just_now(
    workspace: Workspace, request_of: Make, elsewhere: Elsewhere
) -> None:
    elsewhere.up.set()
    record = await deploy(workspace, request_of("r", router_host="vm"))
    elsewhere.trouble = "ssh does not get there"
    with pytest.raises(RouterError, match="ssh does not get there"):
        await deploy(workspace, request_of("r", router_host="vm"))
    after = workspace.store.deployment("r")
    assert (after.state, after.endpoint_url) == ("running", record.endpoint_url)
    assert record.endpoint_url is not None
    assert await answers(record.endpoint_url, workspace, "r")
    elsewhere.trouble = None
    assert (await deploy(workspace, request_of("r", router_host="vm"))).endpoint_url == record.endpoint_url
    await destroy(workspace, "r")
    for host in ("vm", "process"):
        assert await workspace.router_host(host).url(record.id) is None


async def test_a_place_that_can_not_be_had_leaves_the_router_here(
    workspace: Workspace, request_of: Make, elsewhere: Elsewhere, told: Told
) -> None:
    elsewhere.up.set()
    elsewhere.trouble = "no machine in any zone"
    record = await deploy(workspace, request_of("r", router_host="vm"), told)
    assert record.state == "running"
    assert "the router stays on this machine: no machine in any zone" in told
    assert parts(workspace, "r")["router"].provider == "process"
    assert await ask(workspace, "r") == "spot"
    await destroy(workspace, "r")


async def test_cancelled_before_its_place_is_up_nothing_is_left(
    workspace: Workspace, request_of: Make, elsewhere: Elsewhere
) -> None:
    deploying = asyncio.create_task(deploy(workspace, request_of("r", router_host="vm")))
    await until(lambda: (live := workspace.store.live_deployment("r")) and live.state == "running")
    deploying.cancel()
    with pytest.raises(CancelledError):
        await deploying
    record = workspace.store.deployment("r")
    assert record.state == "cancelled" or record.destroyed_at is not None
    assert await workspace.router_host("process").url(record.id) is None


@pytest.mark.parametrize(
    ("region", "place"),
    [("us-east-1,us-east-2", "aws/us-east-1"), ("us-east-2/us-east-2a,us-west-2", "aws/us-east-2"), (None, "aws")],
)
def test_near_names_the_spot_side_s_place(region: str | None, place: str) -> None:
    made = DeployRequest("r", "Qwen/Qwen3-0.6B", "L4", options={"cloud": "aws"}, region=region)
    assert near(made) == place
