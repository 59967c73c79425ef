"""One deployment whose router has a VM of its own: no room in any region, a router that dies, a notice, scale to zero."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.frontends.terminals import Terminal
from tests.rig.catalogs import REGIONS
from tests.rig.product import REACHABLE, SERVERLESS, SPOT, Load, Service, remote_routers
from tests.rig.rig import Rig

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.parametrize("rig", ["controlled"], indirect=True, scope="session"),
]

WHERE = "us-east-2/us-east-2a,us-west-2/us-west-2a"
"""SkyServe tries each zone for about four minutes."""
POLICY = "spot:\n  min_replicas: 0\n  max_replicas: 1\n  downscale_delay: 20\n"


@pytest.fixture(scope="module")
def service(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Deployed while no region has a spot machine; destroyed at the end, and nothing is left."""
    rig.faults(no_capacity=tuple(REGIONS))
    terminal = Terminal(tmp_path_factory.mktemp("home"))
    policy = tmp_path_factory.mktemp("policy") / "scaling.yaml"
    policy.write_text(POLICY)
    made = Service(rig, terminal, "v")
    words = ("--use-different-vm-for-lb", *REACHABLE, "--region", WHERE, "--scaling-policy", str(policy))
    deploying = made.start_deploy(*words)
    made.connect(deploying)
    here = made.answered_by()
    assert (here.side, here.wrong) == (SERVERLESS, None)
    rig.timed("deploy has returned", lambda: made.ended(deploying, 600))
    made.connect(deploying)
    rig.say(f"the endpoint is at {made.url}")
    yield made
    rig.faults()
    made.end()


def test_the_router_on_its_vm_is_exchanged_under_load(rig: Rig, service: Service, load: Load) -> None:
    assert "127.0.0.1" not in service.url
    [before] = remote_routers()
    rig.timed("upgrade", service.upgrade_router)
    rig.wait("it answers still", lambda: load.only(SERVERLESS), 30)
    rig.wait("the old one has ended", lambda: before not in remote_routers(), 60)


def test_where_no_region_has_room_serverless_answers_and_the_status_says_so(
    rig: Rig, service: Service, load: Load
) -> None:
    rig.wait("both regions have refused", lambda: set(rig.refused()) == {"us-east-2", "us-west-2"}, 700)
    assert [each for each in rig.instances() if each.spot] == []
    told = service.spot()
    assert told["state"] in ("starting", "failed")
    assert not [each for each in told["replicas"] if each["state"] == "ready"]
    assert load.only(SERVERLESS)


def test_room_again_brings_a_replica_and_it_takes_the_traffic(rig: Rig, service: Service, load: Load) -> None:
    rig.faults()
    rig.wait("spot carries all traffic", lambda: load.only(SPOT), 900)
    assert len(service.ready()) == 1


def test_a_router_that_is_killed_is_back_by_itself(rig: Rig, service: Service) -> None:
    [before] = remote_routers()
    os.kill(before, signal.SIGKILL)
    rig.wait("another router answers", lambda: service.answered_by().wrong is None, 60, every_s=0.2)
    assert before not in remote_routers()


def test_a_vm_that_was_off_starts_its_router_by_itself_and_is_found_at_its_other_address(
    rig: Rig, service: Service
) -> None:
    assert service.router()["state"]["supervised"] == "cron"
    [machine] = [each for each in rig.instances() if "-router" in each.name]
    rig.power_off(machine)
    rig.wait("it is off", lambda: not remote_routers(), 30)
    rig.power_on(machine)
    rig.wait("its router runs", remote_routers, 120)
    before = service.url
    rig.timed("deployed again", service.deploy_again)
    assert service.url != before
    assert "127.0.0.1" not in service.url
    assert service.answered_by().wrong is None


def test_without_traffic_it_scales_to_zero_and_the_next_request_wakes_it(rig: Rig, service: Service) -> None:
    """Nobody has asked since the router's machine was off."""
    rig.wait("no spot machine is rented", lambda: not [e for e in rig.instances() if e.spot], 400, every_s=5)
    assert service.spot()["state"] in ("idle", "stopping")
    with service.load() as load:
        rig.wait("serverless answers", lambda: load.only(SERVERLESS, last_s=2), 30)
        rig.wait("spot carries all traffic", lambda: load.only(SPOT), 720)
    assert load.wrong == []


def test_a_notice_moves_the_traffic_before_the_machine_goes(rig: Rig, service: Service, load: Load) -> None:
    rig.wait("spot answers", lambda: load.only(SPOT), 60)
    [machine] = [each for each in rig.instances() if each.spot]
    rig.metadata.give_notice(machine.id)
    rig.wait("serverless carries all traffic", lambda: load.only(SERVERLESS, last_s=2), 30, every_s=0.1)
    assert machine.id in {each.id for each in rig.instances()}
    rig.take_away(machine)
    rig.wait("serverless answers still", lambda: load.only(SERVERLESS), 30)
