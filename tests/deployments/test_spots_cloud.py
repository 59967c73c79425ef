"""`--spots-cloud` names a cloud: which backend rents there, and which cloud is meant where none is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest

from tuna_nb.backends import registry
from tuna_nb.backends.base import Check, Kind, Plan, PlannedResource, ServiceRequest
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.commands.check import check
from tuna_nb.commands.context import Context
from tuna_nb.deployments.plan import DeploymentPlan, new_id, plan
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError
from tuna_nb.grammar import build, parse

Make = Callable[..., DeployRequest]


class Broker(LocalBackend):
    """Rents at several clouds; `here` are those that it can be asked for."""

    name: ClassVar[str] = "broker"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SPOT})
    clouds: ClassVar[tuple[str, ...]] = ("aws", "gcp", "azure")
    options: ClassVar[Mapping[str, str]] = {"cloud": "which"}
    pretends: ClassVar[bool] = False

    def __init__(self, *here: str) -> None:
        super().__init__()
        self.here = here

    def configured(self) -> bool:
        return bool(self.here)

    def clouds_here(self) -> tuple[str, ...]:
        return self.here

    async def plan(self, request: ServiceRequest) -> Plan:
        return Plan(request, (PlannedResource("spot", request.name, 1.0),), 1.0)

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        asked = None if request is None else (request.options.get("cloud"), request.gpu)
        return [Check("asked", True, str(asked))]


class Shop(LocalBackend):
    """Sells serverless GPUs at a place that a broker rents spot machines at."""

    name: ClassVar[str] = "azure"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    pretends: ClassVar[bool] = False


@pytest.fixture
def broker(market: Callable[..., None]) -> Callable[..., None]:
    """broker(*clouds): one that can be asked for these clouds, beside the local one and one that is no broker."""

    def put(*here: str) -> None:
        market(Broker(*here), LocalBackend(), Shop())

    return put


async def planned(workspace: Workspace, request: DeployRequest) -> DeploymentPlan:
    return await plan(workspace, request, new_id())


async def test_a_cloud_is_rented_from_by_who_rents_there(
    workspace: Workspace, request_of: Make, broker: Callable[..., None]
) -> None:
    broker("aws", "gcp")
    made = await planned(workspace, request_of("a", spots_cloud="gcp", options={}))
    assert made.request.spots_cloud == "gcp"
    assert made.spot_provider == "broker"
    assert made.spot is not None
    assert made.spot.request.options == {"cloud": "gcp"}
    assert {(row["role"], row["provider"]) for row in made.records()} >= {
        ("spot", "broker"),
        ("serverless", "local"),
    }
    assert DeployRequest.from_json(made.request.to_json()) == made.request


@pytest.mark.parametrize(
    ("here", "chosen"),
    [(("gcp", "aws"), ("aws", "broker")), (("azure", "gcp"), ("azure", "broker")), ((), ("local", "local"))],
)
async def test_aws_is_meant_where_none_is_named_and_local_where_nothing_is_set_up(
    workspace: Workspace,
    request_of: Make,
    broker: Callable[..., None],
    here: tuple[str, ...],
    chosen: tuple[str, str],
) -> None:
    broker(*here)
    made = await planned(workspace, request_of("a", serverless_provider="azure", spots_cloud=None, options={}))
    assert (made.request.spots_cloud, made.spot_provider) == chosen


async def test_beside_a_serverless_side_that_pretends_no_real_machine_is_rented_unasked(
    workspace: Workspace, request_of: Make, broker: Callable[..., None]
) -> None:
    broker("aws")
    made = await planned(workspace, request_of("a", serverless_provider="local", spots_cloud=None, options={}))
    assert (made.request.spots_cloud, made.spot_provider) == ("local", "local")


async def test_an_unknown_cloud_is_told_what_was_meant(
    workspace: Workspace, request_of: Make, broker: Callable[..., None]
) -> None:
    broker("aws")
    with pytest.raises(RequestError) as raised:
        await planned(workspace, request_of("a", spots_cloud="asw"))
    assert raised.value.hint == "did you mean 'aws'?"


async def test_a_name_that_is_no_clouds_is_the_providers_own(
    workspace: Workspace, broker: Callable[..., None]
) -> None:
    broker()
    assert registry.for_cloud("azure", workspace.backend).name == "broker"
    assert registry.for_cloud("local", workspace.backend).name == "local"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--provider", "aws"], {"aws (spot)": "('aws', '')"}),
        (["--provider", "gcp", "--gpu", "T4"], {"gcp (spot)": "('gcp', 'T4')"}),
        (["--provider", "broker"], {"broker": "None"}),
    ],
)
async def test_check_of_a_cloud_is_of_who_rents_there(
    workspace: Workspace, broker: Callable[..., None], words: list[str], told: dict[str, str]
) -> None:
    broker("aws")
    found = await check(parse(build(), ["check", *words]), Context(workspace))
    assert {name: row.message for name, row in found.rows} == told


async def test_check_of_azure_is_of_both_its_sides(workspace: Workspace, broker: Callable[..., None]) -> None:
    broker()
    found = await check(parse(build(), ["check", "--provider", "azure"]), Context(workspace))
    assert {name for name, _ in found.rows} == {"azure", "azure (spot)"}
