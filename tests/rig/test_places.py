"""The router on SkyServe's controller: what it can do while the machine that deployed it sleeps."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.frontends.terminals import Terminal
from tests.rig.product import NOTICED_S, REACHABLE, SPOT, Service, nothing_left, remote_routers
from tests.rig.rig import Rig

pytestmark = [pytest.mark.timeout(1800), pytest.mark.parametrize("rig", ["controlled"], indirect=True)]

ASLEEP_S = float(os.environ.get("TUNA_RIG_ASLEEP_S", "600"))


def test_a_router_on_the_controller_serves_while_who_deployed_it_sleeps(rig: Rig, home: Terminal) -> None:
    service = Service(rig, home, "c")
    deploying = service.start_deploy("--router-host", "controller", "--no-scale-to-zero", *REACHABLE)
    service.connect(deploying)
    first = service.answered_by()
    rig.say(f"first answer, by {first.backend}")
    rig.timed("deploy has returned", lambda: service.ended(deploying, 900))
    service.connect(deploying)
    rig.say(f"the endpoint is at {service.url}")
    assert "127.0.0.1" not in service.url
    with service.load() as load:
        rig.wait("spot carries all traffic", lambda: load.only(SPOT), 720)
        [before] = remote_routers()
        rig.timed("upgrade", service.upgrade_router)
        rig.wait("spot answers still", lambda: load.only(SPOT), 30)
        rig.wait("the old one has ended", lambda: before not in remote_routers(), 60)
    assert load.wrong == []

    [before] = remote_routers()
    os.kill(before, signal.SIGKILL)
    rig.wait("another router answers", lambda: service.answered_by().wrong is None, 60, every_s=0.2)
    assert before not in remote_routers()

    with service.load() as load:
        rig.wait("spot answers", lambda: load.only(SPOT), 120)
        with rig.asleep():
            slept = time.monotonic()
            [machine] = [each for each in rig.instances() if each.spot]
            rig.take_away(machine)
            rig.wait("another machine is there", lambda: [each for each in rig.instances() if each.spot], 400)
            rig.wait("spot carries all traffic again", lambda: load.only(SPOT), 400)
            rig.say(f"slowest answer: {load.longest(slept):.1f} s")
            assert load.longest(slept) < NOTICED_S, load.slow(slept)
            rig.wait(f"it has slept for {ASLEEP_S:g} s", lambda: time.monotonic() > slept + ASLEEP_S, ASLEEP_S)
        rig.wait("the status knows of the other replica", lambda: len(service.ready()) == 1, 120, every_s=15)
    assert load.wrong == []
    rig.timed("destroy", service.destroy)
    nothing_left(rig, home)
