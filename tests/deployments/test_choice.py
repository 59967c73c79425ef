"""Where no provider is named, the cheapest that can do it is chosen, and the plan says why and what was passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.deployments.providers import Priced
from tuna_nb.backends.base import Engine, Kind, ServerlessScaling, ServiceRequest
from tuna_nb.deployments.choice import Choice, choose
from tuna_nb.deployments.plan import plan
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError

Market = Callable[..., None]
Make = Callable[..., DeployRequest]
REQUEST = ServiceRequest("0123456789", "c", Kind.SERVERLESS, Engine("m"), "L4", 1, ServerlessScaling())


async def chosen(workspace: Workspace, gpu: str = "L4") -> Choice:
    return await choose(workspace, gpu, lambda _: replace(REQUEST, gpu=gpu))


async def test_the_cheapest_that_sells_the_gpu_is_chosen(workspace: Workspace, market: Market) -> None:
    silent = Priced("e", 0.1, silent=True)
    market(Priced("b", 0.5), Priced("a", 0.9), Priced("c", 0.1, gpu="H100"), Priced("d", None), silent)
    choice = await chosen(workspace)
    assert (choice.provider, choice.price_per_hour_usd) == ("b", 0.5)
    assert dict(choice.passed_over) == {
        "c": "c sells no L4",
        "d": "its price is not known",
        "e": "could not be asked: e: 503",
        "a": "$0.900",
    }
    assert (await chosen(workspace, "H100")).provider == "c"
    market(Priced("z", 0.5), Priced("m", 0.5))
    assert (await chosen(workspace)).provider == "m"


async def test_one_that_does_not_pass_its_check_is_passed_over(workspace: Workspace, market: Market) -> None:
    market(Priced("cheap", 0.1, trouble="no GPUs are granted"), Priced("dear", 0.9))
    choice = await chosen(workspace)
    assert choice.provider == "dear"
    assert dict(choice.passed_over) == {"cheap": "quota: no GPUs are granted (ask for more)"}


async def test_one_that_is_not_set_up_here_is_not_asked(workspace: Workspace, market: Market) -> None:
    market(Priced("cheap", 0.1, ready=False), Priced("dear", 0.9))
    choice = await chosen(workspace)
    assert (choice.provider, choice.passed_over) == ("dear", (("cheap", "not set up here"),))


async def test_pretended_gpus_are_chosen_only_where_nothing_real_is_set_up(
    workspace: Workspace, market: Market
) -> None:
    market(Priced("toy", 0.01, pretends=True), Priced("dear", 9.0))
    assert (await chosen(workspace)).provider == "dear"
    market(Priced("toy", 0.01, pretends=True), Priced("dear", 9.0, ready=False))
    assert (await chosen(workspace)).provider == "toy"
    market(Priced("toy", 0.01, pretends=True), Priced("dear", 9.0, trouble="no quota"))
    with pytest.raises(RequestError, match="dear: quota: no quota"):
        await chosen(workspace)


async def test_nobody_left_is_an_error_with_every_reason(workspace: Workspace, market: Market) -> None:
    market(Priced("silent", 1.0, silent=True), Priced("other", 1.0, gpu="H100"), Priced("bare", 1.0, ready=False))
    with pytest.raises(RequestError) as refused:
        await chosen(workspace)
    for reason in ("silent: could not be asked", "other: other sells no L4", "bare: not set up here"):
        assert reason in refused.value.message
    assert "tuna check" in str(refused.value.hint)


async def test_the_plan_says_why(workspace: Workspace, request_of: Make, market: Market) -> None:
    market(Priced("b", 0.5), Priced("a", 0.9))
    request = request_of("x", serverless_provider=None, serverless_only=True, options={}, engine_cmd="serve")
    made = await plan(workspace, request, "0123456789")
    assert made.request.serverless_provider == "b"
    assert made.notes[0] == "b is the cheapest that sells it and passes its check: $0.500 an hour, all in"
    assert made.notes[1] == "passed over: a: $0.900"
    assert made.to_json()["notes"][:2] == list(made.notes[:2])
