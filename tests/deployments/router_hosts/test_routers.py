"""A deployment whose router is on another machine, and one whose router moves there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployments.conftest import Told
from tests.deployments.lives import ask, deploy, destroy, parts, planned
from tests.deployments.router_hosts.conftest import Host, OneMachine
from tests.router.conftest import free_port
from tuna_nb.backends.base import ServiceRequest
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.commands.cost import bill_of
from tuna_nb.deployments import reconcile, routers
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_hosts import vm
from tuna_nb.deployments.router_hosts.controller import ControllerHost
from tuna_nb.deployments.router_hosts.vm import VmHost
from tuna_nb.deployments.status import status
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError
from tuna_nb.views.data import plain
from tuna_nb.views.sheets import sheet

pytestmark = pytest.mark.e2e

Make = Callable[..., DeployRequest]


@pytest.fixture
def elsewhere(workspace: Workspace, machines: OneMachine, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace, where SkyPilot has the one machine: this one, which the local cloud can be reached from."""
    # The keepers, processes of their own, ask the real one: it would start its API server, and leave it running.
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "http://127.0.0.1:9")
    for host in (ControllerHost(workspace.settings, machines), VmHost(workspace.settings, machines)):
        host.elsewhere = False  # type: ignore[misc]
        workspace._router_hosts[host.name] = host
    return workspace


async def test_a_deployment_answers_through_a_router_on_the_controller_and_leaves_nothing(
    elsewhere: Workspace, request_of: Make, ssh: Host
) -> None:
    record = await deploy(elsewhere, request_of("a", router_host="controller"))
    assert await ask(elsewhere, "a") == "spot"
    seen = await status(elsewhere, record)
    assert seen.state == "running"
    report = await routers.report_of(elsewhere, record)
    assert report.is_current
    assert any(note.startswith("tunnel: ssh -F") for note in report.notes)
    assert "runs" in sheet(report).title
    assert plain(report)["is_current"] is True
    await destroy(elsewhere, "a")
    assert ssh.processes() == []
    assert not (ssh.home / ".tuna").exists()


async def test_a_router_moves_with_its_keys_and_the_old_one_is_gone(
    elsewhere: Workspace, request_of: Make, told: Told, ssh: Host
) -> None:
    record = await deploy(elsewhere, request_of("a"))
    before = record.endpoint_url
    moved = await routers.move(elsewhere, record, "controller", told.report)
    assert moved.state.url != before
    assert any(str(moved.state.url) in note for note in moved.notes)
    assert await ask(elsewhere, "a") == "spot"
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{before}/router/health")
    assert parts(elsewhere, "a")["router"].provider == "controller"
    again = elsewhere.store.deployment("a")
    with pytest.raises(RequestError, match="is on controller already"):
        await routers.move(elsewhere, again, "controller", told.report)
    back = await routers.move(elsewhere, again, "process", told.report)
    assert back.state.host == "process"
    assert ssh.processes() == []
    assert await ask(elsewhere, "a") == "spot"
    await destroy(elsewhere, "a")


async def test_a_destroy_finds_both_routers_of_a_move_that_did_not_end(
    elsewhere: Workspace, request_of: Make, told: Told, ssh: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await deploy(elsewhere, request_of("a"))

    async def dies(*_: Any, **__: Any) -> None:
        raise RuntimeError("the launcher has died")

    with monkeypatch.context() as patch:
        patch.setattr(elsewhere.router_host("process"), "stop", dies)
        with pytest.raises(RuntimeError):
            await routers.move(elsewhere, record, "controller", told.report)
    assert ssh.processes() != []
    await destroy(elsewhere, "a")
    assert ssh.processes() == []


async def test_a_router_that_nobody_owns_is_found_on_the_machine_and_removed(
    elsewhere: Workspace, request_of: Make, told: Told, ssh: Host
) -> None:
    await deploy(elsewhere, request_of("a", router_host="controller"))
    await destroy(elsewhere, "a")
    await elsewhere.router_host("controller").start("feedbeef00", {}, None, True)
    found = (await reconcile.orphans(elsewhere)).found
    assert [(o.provider, o.role, o.name) for o in found] == [("controller", "router", "feedbeef00")]
    await reconcile.remove(elsewhere, found[0], told.report)
    assert ssh.processes() == []


async def test_a_vm_of_the_routers_own_is_in_the_status_and_in_the_bill(
    elsewhere: Workspace, request_of: Make, machines: OneMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The machine is this one, where the usual port may be somebody else's.
    monkeypatch.setattr(vm, "PORT", free_port())
    record = await deploy(elsewhere, request_of("a", router_host="vm"))
    assert [one[0] for one in machines.launched] == [f"tuna-{record.id}-router"]
    router = next(c for c in (await status(elsewhere, record)).components if c.role == "router")
    assert (router.billing, router.rate_usd_per_hour) == (True, 0.04)
    (side,) = [s for s in (await bill_of(elsewhere, record)).sides if s.role == "router"]
    assert 0 < side.usd < 0.04
    await destroy(elsewhere, "a")
    assert machines.launched == []
    gone = elsewhere.store.deployment("a")
    assert [s.usd > 0 for s in (await bill_of(elsewhere, gone)).sides if s.role == "router"] == [True]


async def test_a_vm_that_was_off_is_found_at_its_other_address(
    elsewhere: Workspace, request_of: Make, machines: OneMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "PORT", free_port())
    record = await deploy(elsewhere, request_of("a", router_host="vm"))
    nobody = tmp_path / "nobody"
    nobody.write_text(f"Host machine\n  HostName 127.0.0.1\n  Port {free_port()}\n")
    machines.left = replace(machines.host, ssh_config=nobody)
    assert (await deploy(elsewhere, request_of("a", router_host="vm"))).endpoint_url == record.endpoint_url
    assert machines.left is None
    assert await ask(elsewhere, "a") == "spot"
    await destroy(elsewhere, "a")
    assert machines.launched == []


class Keeps(LocalBackend):
    """Its spot side keeps a machine of its own."""

    controller = True

    def only_here(self, request: ServiceRequest) -> bool:
        return False


async def test_the_router_goes_where_the_spot_side_keeps_a_machine(
    elsewhere: Workspace, request_of: Make, machines: OneMachine
) -> None:
    assert (await planned(elsewhere, request_of("a"))).router_host == "process"
    elsewhere._backends["local"] = Keeps(elsewhere.settings.data_dir / "local-cloud")
    made = await planned(elsewhere, request_of("a"))
    assert made.router_host == made.request.router_host == "controller"
    assert any("stops ten minutes after its last" in note for note in made.notes)
    assert not any(
        "router" in note for note in (await planned(elsewhere, request_of("a", router_host="process"))).notes
    )

    machines.trouble = "SkyServe's controller is on Kubernetes"
    made = await planned(elsewhere, request_of("a"))
    assert made.router_host == "vm"
    assert any("since SkyServe's controller is on Kubernetes" in note for note in made.notes)
    assert [r.worst_case_usd_per_hour for role, _, r in made.resources if role == "router"] == [0.04]
    machines.usd = None
    made = await planned(elsewhere, request_of("a", router_host="vm"))
    assert made.worst_case_usd_per_hour is None
    with pytest.raises(RequestError, match="no router can run on 'controller'"):
        await planned(elsewhere, request_of("a", router_host="controller"))


async def test_a_router_elsewhere_is_refused_where_it_could_not_reach_the_serverless_side(
    workspace: Workspace, request_of: Make, told: Told, machines: OneMachine
) -> None:
    for host in (ControllerHost(workspace.settings, machines), VmHost(workspace.settings, machines)):
        workspace._router_hosts[host.name] = host
    for name in ("controller", "vm"):
        with pytest.raises(RequestError, match="reached from this machine alone") as refused:
            await planned(workspace, request_of("a", router_host=name))
        assert "--router-host process" in str(refused.value.hint)
    record = await deploy(workspace, request_of("a"))
    with pytest.raises(RequestError, match="reached from this machine alone"):
        await routers.move(workspace, record, "vm", told.report)
    assert await ask(workspace, "a") == "spot"
    await destroy(workspace, "a")
