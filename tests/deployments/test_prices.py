"""Where a user's prices come from, what history keeps of them, and what a plan says of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.catalog.offering import NOW, offer
from tests.deployments.providers import Priced
from tuna_nb.backends.base import Backend, Quote
from tuna_nb.catalog.offers import DAY_S, OfferKind
from tuna_nb.deployments import prices
from tuna_nb.deployments.plan import plan, quoted
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace

Make = Callable[..., DeployRequest]
Install = Callable[..., None]


def names(workspace: Workspace) -> set[str]:
    return {s.name for s in prices.sources(workspace, live=True)}


def test_providers_that_can_be_asked_are_sources_and_those_that_pretend_are_not(workspace: Workspace) -> None:
    found = names(workspace)
    assert {"modal", "runpod", "baseten", "azure"} <= found
    assert not {"local", "skyserve", "cerebrium"} & found


def test_who_has_no_account_is_told_the_step(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    lacks = {s.name: s.lacks() for s in prices.sources(workspace, live=True)}
    assert lacks["runpod"] == "tuna check --provider runpod"
    assert lacks["azure"] is None, "its price list is open to anyone"


def test_looking_up_what_was_said_has_the_same_sources(workspace: Workspace) -> None:
    assert names(workspace) <= {s.name for s in prices.sources(workspace, live=False)}


def test_who_looks_for_serverless_asks_no_cloud_for_machines(workspace: Workspace) -> None:
    serverless = prices.sources(workspace, live=True, kinds=frozenset({OfferKind.SERVERLESS}))
    assert {"modal", "google"} <= {s.name for s in serverless}
    assert not {"vast", "skypilot", "gpuhunt-aws"} & {s.name for s in serverless}
    assert {"vast", "skypilot", "gpuhunt-aws"} <= names(workspace)


def test_cells_of_one_notebook_share_what_was_asked(workspace: Workspace) -> None:
    assert prices.market(workspace) is prices.market(Workspace(workspace.settings))


def test_history_keeps_the_cheapest_of_a_region_and_no_shipped_price() -> None:
    spot = OfferKind.SPOT
    kept = prices.cheapest_seen(
        [
            offer("aws", spot, usd=0.4, region="a", zone="a1"),
            offer("aws", spot, usd=0.3, region="a", zone="a2"),
            offer("aws", spot, usd=0.5),
            offer("aws", spot, usd=None, region="b"),
            offer("gcp", spot, usd=0.1, snapshot=True),
        ]
    )
    assert [(p.provider, p.region, p.price_per_hour_usd, p.at) for p in kept] == [
        ("aws", "a", 0.3, NOW),
        ("aws", "", 0.5, NOW),
    ]


@pytest.mark.parametrize(
    ("days", "snapshot", "kind", "said"),
    [
        (0, False, OfferKind.SERVERLESS, "serverless price: Acme's list, now"),
        (0.5, False, OfferKind.SPOT, "spot price: Acme's list, today"),
        (2, False, OfferKind.SPOT, "2 days old: STALE"),
        (2, True, OfferKind.SERVERLESS, "2 days old; only from the table that ships with Tuna"),
        (
            40,
            True,
            OfferKind.SERVERLESS,
            "40 days old: STALE, the bill may differ; `tuna show-gpus --gpu L4 --live`",
        ),
    ],
)
def test_a_price_in_a_plan_has_its_source_and_its_age(
    days: float, snapshot: bool, kind: OfferKind, said: str
) -> None:
    quote = Quote(NOW - days * DAY_S, "Acme's list", snapshot)
    assert said in str(quoted(quote, kind, "L4", NOW))


def test_a_price_that_is_nobodys_has_none() -> None:
    assert quoted(None, OfferKind.SPOT, "L4", NOW) is None


async def test_a_real_provider_s_plan_warns_of_a_shipped_price(
    workspace: Workspace, request_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    made = await plan(
        workspace, request_of("p", serverless_provider="runpod", serverless_only=True, options={}), "i"
    )
    assert any(n.startswith("serverless price: RunPod's pricing page") and "STALE" in n for n in made.notes)


async def test_a_broken_provider_is_a_source_that_says_so(workspace: Workspace, market: Install) -> None:
    backend: Backend = Priced("acme", None)
    market(backend)
    [source] = [s for s in prices.sources(workspace, live=True) if s.name == "acme"]
    assert source.lacks() is None
