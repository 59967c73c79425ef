"""The rig is what it says: SkyPilot's own loop, from a service that comes up to one whose machine was taken away."""

from __future__ import annotations

import socket

import pytest

from tests.rig.raw import Service, answers
from tests.rig.rig import Rig

pytestmark = pytest.mark.timeout(1200)


# `consolidated` passes, too; test_hybrid.py goes the same way there, and a run has 25 minutes.
@pytest.mark.parametrize("rig", ["controlled"], indirect=True)
def test_a_replica_that_is_taken_away_is_replaced_and_none_is_left(rig: Rig) -> None:
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
    # What stays is SkyServe's controller, which stops by itself ten minutes after its last service.
    assert [each.name for each in rig.instances() if not each.name.startswith("sky-serve-controller")] == []


@pytest.mark.parametrize("rig", ["consolidated"], indirect=True)
def test_nothing_can_leave_the_rig(rig: Rig) -> None:
    for address in ("9.9.9.9", "93.184.215.14"):
        with socket.socket() as door:
            door.settimeout(5)
            with pytest.raises(OSError, match="unreachable"):
                door.connect((address, 443))
