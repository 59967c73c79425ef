"""One deployment with two spot replicas, and what goes wrong around it: its endpoint answers all the time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.frontends.terminals import Terminal
from tests.rig.product import SPOT, Load, Service
from tests.rig.rig import Rig

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.parametrize("rig", ["consolidated"], indirect=True, scope="session"),
]

FULL = "us-east-1"
LOOKS_S = 60
"""SkyServe looks after its replicas and its cloud at least three times in it."""
POLICY = "spot:\n  min_replicas: 2\n  max_replicas: 2\n"


@pytest.fixture(scope="module")
def service(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two replicas READY, though the cheapest region has no room; destroyed at the end, and nothing is left."""
    rig.faults(no_capacity=(FULL,))
    terminal = Terminal(tmp_path_factory.mktemp("home"))
    policy = tmp_path_factory.mktemp("policy") / "scaling.yaml"
    policy.write_text(POLICY)
    made = Service(rig, terminal, "two")
    deploying = made.start_deploy("--router-host", "process", "--scaling-policy", str(policy))
    made.connect(deploying)
    made.ended(deploying, 600)
    with made.load() as load:
        rig.wait("two replicas answer", lambda: len(load.replicas()) == 2, 900)
    assert load.wrong == []
    yield made
    rig.faults()
    made.end()


def known(service: Service) -> set[str]:
    """The replicas that `tuna status` calls ready, as the router names them."""
    return {f"spot.{each['id']}" for each in service.ready()}


def spot_machines(rig: Rig) -> set[str]:
    return {each.id for each in rig.instances() if each.spot}


def test_two_replicas_are_in_two_zones_past_a_full_region_and_share_the_traffic(
    rig: Rig, service: Service, load: Load
) -> None:
    assert set(rig.refused()) == {FULL}
    machines = [each for each in rig.instances() if each.spot]
    assert len({each.zone for each in machines}) == 2
    assert FULL not in {each.region for each in machines}
    names = known(service)
    assert len(names) == 2
    rig.wait("both answer", lambda: load.replicas() == names, 60)


def test_the_endpoint_goes_on_while_skypilots_server_is_dead(rig: Rig, service: Service, load: Load) -> None:
    before = known(service)
    rig.kill_server()
    rig.wait("spot answers still", lambda: load.only(SPOT, last_s=20), 60)
    # SkyPilot's client starts a server on this machine where there is none: what it then says is the truth.
    rig.wait("the same replicas are READY", lambda: known(service) == before, 180, every_s=15)


def test_other_limits_keep_the_replicas(rig: Rig, service: Service, load: Load) -> None:
    before = spot_machines(rig)
    rig.timed("scale", lambda: service.scale("--max-replicas", "3"))
    rig.wait("two replicas are READY", lambda: len(service.ready()) == 2, 180, every_s=15)
    assert spot_machines(rig) == before
    rig.wait("spot answers still", lambda: load.only(SPOT), 60)


def test_one_of_two_that_is_taken_away_is_not_noticed_by_those_who_ask(
    rig: Rig, service: Service, load: Load
) -> None:
    """The keys have expired, too: SkyServe can neither look nor rent until they are good again."""
    gone = next(each for each in rig.instances() if each.spot)
    rig.faults(expired=True)
    rig.take_away(gone)
    rig.wait("one replica carries all", lambda: len(load.replicas(5.0)) == 1, 90)
    without = time.monotonic()
    rig.wait("SkyServe has looked in vain", lambda: time.monotonic() > without + LOOKS_S, LOOKS_S + 10)
    assert load.only(SPOT, last_s=LOOKS_S)
    rig.faults()
    rig.wait("two machines are there", lambda: len(spot_machines(rig) - {gone.id}) == 2, 400)
    rig.wait("two replicas answer", lambda: len(load.replicas()) == 2, 720)
    assert len(service.ready()) == 2
