"""The rig is what it says: SkyPilot's own loop, from a service that comes up to one whose machine was taken away."""

from __future__ import annotations

import socket

import pytest

from tests.rig.raw import Service, answers
from tests.rig.rig import Rig

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("rig", ["consolidated", "controlled"], indirect=True)
def test_a_replica_that_is_taken_away_is_replaced_and_nothing_is_left(rig: Rig) -> None:
    service = Service(rig, "plain")
    balancer = rig.timed("up", service.up)
    first = rig.wait("the first replica is READY", service.ready, 600)[0]
    assert answers(first["endpoint"]), "the replica answers at its own address"
    rig.wait("the balancer serves it", lambda: answers(balancer), 60)

    machine = next(each for each in rig.instances() if each.spot)
    rig.take_away(machine)
    again = rig.wait("another replica is READY", lambda: service.ready(besides=(first["replica_id"],)), 600)[0]
    assert again["endpoint"] != first["endpoint"]
    rig.wait("the balancer serves it", lambda: answers(balancer), 60)

    rig.timed("down", service.down)
    rig.wait("no spot machine is left", lambda: not [each for each in rig.instances() if each.spot], 120)
    if not rig.consolidated:
        rig.sky("down", "--yes", next(each.name for each in rig.instances()))
    assert rig.instances() == []


@pytest.mark.parametrize("rig", ["consolidated"], indirect=True)
def test_nothing_can_leave_the_rig(rig: Rig) -> None:
    for address in ("9.9.9.9", "93.184.215.14"):
        with socket.socket() as door:
            door.settimeout(5)
            with pytest.raises(OSError, match="unreachable"):
                door.connect((address, 443))
