"""`tuna router`: a deployment's router by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.frontends.terminals import Done, Terminal

pytestmark = pytest.mark.e2e

DEPLOY = "deploy --model Qwen/Qwen3-0.6B --gpu L4 --serverless-provider local --service-name a"
QUICK = "--option cold_start_s=0 --option boot_s=0"


def test_status_restart_upgrade_and_logs_of_a_router_on_this_machine(
    home: Terminal, tuna: Callable[..., Done]
) -> None:
    tuna(*DEPLOY.split(), *QUICK.split())
    first = json.loads(tuna("router", "status", "--service-name", "a", "-o", "json").out)
    assert first["state"]["host"] == "process"
    assert first["is_current"] is True
    assert "the router of a runs" in tuna("router", "status", "--service-name", "a").out
    for action in ("restart", "upgrade"):
        after = json.loads(tuna("router", action, "--service-name", "a", "-o", "json").out)
        assert after["state"]["url"] == first["state"]["url"]
        assert after["state"]["pid"] != first["state"]["pid"]
    assert "listening on" in tuna("router", "logs", "--service-name", "a").out
    refused = tuna("router", "move", "--service-name", "a", "--to", "vm", code=2)
    assert "another address" in refused.err
    assert "--yes" in refused.err
    tuna("destroy", "--service-name", "a")
    assert "has no router" in tuna("router", "status", "--service-name", "a", code=None).err


def test_a_serverless_deployment_has_no_router(home: Terminal, tuna: Callable[..., Done]) -> None:
    tuna(*DEPLOY.split(), "--serverless-only", "--option", "cold_start_s=0")
    for action in ("status", "restart", "upgrade"):
        done = tuna("router", action, "--service-name", "a", code=None)
        assert done.code != 0
        assert "a has no router" in done.err
    tuna("destroy", "--service-name", "a")


def test_two_places_for_one_router_are_refused(tuna: Callable[..., Done]) -> None:
    done = tuna(*DEPLOY.split(), "--use-different-vm-for-lb", "--router-host", "process", code=2)
    assert "leave out one of the two" in done.err
    done = tuna(*DEPLOY.split(), "--router-host", "controler", code=2)
    assert "did you mean 'controller'?" in done.err
