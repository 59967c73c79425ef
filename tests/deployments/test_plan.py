"""A plan says everything that will be created, what it costs at worst, and creates nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.deployments.leftovers import processes_of
from tests.deployments.providers import Priced
from tuna_nb.backends.base import Kind, ServerlessScaling, SpotScaling
from tuna_nb.deployments.plan import DeploymentPlan, new_id, plan
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError

Make = Callable[..., DeployRequest]


async def planned(workspace: Workspace, request: DeployRequest) -> DeploymentPlan:
    return await plan(workspace, request, "0123456789")


async def test_the_worst_case_is_everything_at_its_most_at_once(workspace: Workspace, request_of: Make) -> None:
    made = await planned(
        workspace,
        request_of(
            "a", gpu_count=2, tp_size=2,
            serverless=ServerlessScaling(workers_max=3), spot=SpotScaling(max_replicas=4),
        ),
    )  # fmt: skip
    # L4 on the local cloud: 0.80 serverless, 0.22 spot, each replica with two.
    assert made.worst_case_usd_per_hour == pytest.approx(3 * 2 * 0.80 + 4 * 2 * 0.22)
    by_role = {role: r.worst_case_usd_per_hour for role, _, r in made.resources}
    assert by_role == {"serverless": pytest.approx(4.8), "router": 0.0, "spot": pytest.approx(1.76)}
    assert [role for role, _, _ in made.resources] == ["serverless", "router", "spot"]


async def test_a_price_that_is_set_is_the_price_that_is_planned(workspace: Workspace, request_of: Make) -> None:
    options = {"serverless_price_per_hour_usd": "3", "spot_price_per_hour_usd": "0.5"}
    made = await planned(workspace, request_of("a", options=options))
    assert made.worst_case_usd_per_hour == pytest.approx(3 + 5 * 0.5)


async def test_an_unknown_price_makes_the_whole_unknown_never_cheaper(
    workspace: Workspace, request_of: Make, market: Callable[..., None]
) -> None:
    market(Priced("dear", None))
    made = await planned(workspace, request_of("a", serverless_provider="dear", options={}))
    assert made.spot is not None
    assert made.spot.worst_case_usd_per_hour is not None
    assert made.worst_case_usd_per_hour is None


async def test_planning_creates_nothing(workspace: Workspace, request_of: Make) -> None:
    made = await planned(workspace, request_of("a"))
    assert not workspace.settings.data_dir.exists()
    assert processes_of(workspace.settings.data_dir) == []
    names = [r.name for _, _, r in made.resources]
    assert names == [f"tuna-a-0123456789-{role}" for role in ("serverless", "router", "spot")]
    assert [r["name"] for r in made.records()] == names


async def test_serverless_only_has_one_part(workspace: Workspace, request_of: Make) -> None:
    made = await planned(workspace, request_of("a", serverless_only=True))
    assert [role for role, _, _ in made.resources] == ["serverless"]
    assert [r["role"] for r in made.records()] == ["serverless"]
    assert made.worst_case_usd_per_hour == pytest.approx(0.80)


async def test_each_side_is_told_its_own(workspace: Workspace, request_of: Make) -> None:
    made = await planned(workspace, request_of("a", region="eu", public=True))
    assert made.spot is not None
    assert made.serverless.request.region is None
    assert made.spot.request.region == "eu"
    # With a router in front, the sides themselves stay closed.
    assert not made.serverless.request.public
    alone = await planned(workspace, request_of("a", public=True, serverless_only=True))
    assert alone.serverless.request.public


async def test_a_misspelt_option_is_told_what_was_meant(workspace: Workspace, request_of: Make) -> None:
    with pytest.raises(RequestError) as refused:
        await planned(workspace, request_of("a", options={"bot_s": "1"}))
    assert refused.value.message == "local has no option 'bot_s'"
    assert refused.value.hint == "did you mean 'boot_s'?"


async def test_an_option_goes_to_the_provider_that_has_it(
    workspace: Workspace, request_of: Make, market: Callable[..., None]
) -> None:
    market(Priced("other", 1.0))
    made = await planned(
        workspace, request_of("a", serverless_provider="other", options={"flavour": "mild", "boot_s": "1"})
    )
    assert made.spot is not None
    assert dict(made.serverless.request.options) == {"flavour": "mild"}
    assert dict(made.spot.request.options) == {"boot_s": "1"}
    with pytest.raises(RequestError, match="local or other has no option 'flavor'") as refused:
        await planned(workspace, request_of("a", serverless_provider="other", options={"flavor": "mild"}))
    assert refused.value.hint == "did you mean 'flavour'?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serverless_provider": "locl"}, "unknown provider 'locl'"),
        ({"spots_cloud": "locl"}, "unknown provider 'locl'"),
        ({"router_host": "moon"}, "unknown router host 'moon'"),
    ],
)
async def test_what_no_provider_has_is_refused(
    workspace: Workspace, request_of: Make, change: dict[str, str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        await planned(workspace, request_of("a", **change))


async def test_a_provider_is_asked_only_for_what_it_sells(
    workspace: Workspace, request_of: Make, market: Callable[..., None]
) -> None:
    market(
        Priced("serverless-shop", 1.0, kinds=frozenset({Kind.SERVERLESS})),
        Priced("spot-shop", 1.0, kinds=frozenset({Kind.SPOT})),
    )
    with pytest.raises(RequestError, match="spot-shop has no serverless GPUs"):
        await planned(workspace, request_of("a", serverless_provider="spot-shop"))
    with pytest.raises(RequestError, match="serverless-shop has no spot GPUs"):
        await planned(workspace, request_of("a", spots_cloud="serverless-shop"))


async def test_the_providers_chosen_are_in_the_plan(workspace: Workspace, request_of: Make) -> None:
    made = await planned(workspace, request_of("a", serverless_provider=None))
    assert (made.request.serverless_provider, made.request.spots_cloud) == ("local", "local")


def test_ids_are_new_each_time() -> None:
    assert len({new_id() for _ in range(100)}) == 100
