"""One deployment through all its life: serverless first, spot when it is there, and back when it is taken away."""

from __future__ import annotations

import time

import pytest

from tests.frontends.terminals import Terminal
from tests.rig.product import NOTICED_S, SERVERLESS, SPOT, Service, nothing_left
from tests.rig.rig import Rig

pytestmark = [pytest.mark.timeout(1500), pytest.mark.parametrize("rig", ["consolidated"], indirect=True)]


def test_spot_carries_the_traffic_while_there_is_any_and_no_request_fails(rig: Rig, home: Terminal) -> None:
    service = Service(rig, home, "h")
    began = time.monotonic()
    deploying = service.start_deploy("--router-host", "process", "--no-scale-to-zero", "--port", "18000")
    service.connect(deploying)
    first = service.answered_by()
    rig.say(f"first answer, by {first.backend}: {time.monotonic() - began:.1f} s after the command")
    assert first.wrong is None
    assert first.side == SERVERLESS
    rig.timed("deploy has returned", lambda: service.ended(deploying, 600))
    with service.load() as load:
        rig.wait("spot carries all traffic", lambda: load.only(SPOT), 720)
        assert len(service.ready()) == 1

        [machine] = [each for each in rig.instances() if each.spot]
        rig.take_away(machine)
        taken = time.monotonic()
        rig.wait("serverless carries all traffic", lambda: load.only(SERVERLESS), 60, every_s=0.1)
        assert load.wrong == []

        rig.wait("another machine is there", lambda: [each for each in rig.instances() if each.spot], 300)
        rig.wait("spot carries all traffic", lambda: load.only(SPOT), 720)
        rig.say(f"slowest answer: {load.longest(taken):.1f} s")
        assert load.longest(taken) < NOTICED_S, load.slow(taken)
        rig.say(
            f"taken away {time.monotonic() - taken:.0f} s ago; {len(load.answers)} answers, {dict(load.sides(1e9))}"
        )
    assert load.wrong == []
    rig.timed("destroy", service.destroy)
    nothing_left(rig, home)
