"""A list holds just what was asked for, in the order that was asked for, and compares like with like."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.catalog.offering import NOW, offer
from tuna_nb.catalog.offers import Lines, Offer, OfferKind, Shape
from tuna_nb.catalog.query import Wanted, select
from tuna_nb.grammar import flags

S, P, D = OfferKind.SERVERLESS, OfferKind.SPOT, OfferKind.ON_DEMAND
MODAL = offer("modal", S, "L4", 0.8, lines=Lines(0.05, 0.01, 0))
CLOUDRUN = offer("cloudrun", S, "L4", 0.7, region="us-east4", lines=Lines(0.07, 0.01, 0))
H100 = offer("modal", S, "H100", 4.0, lines=Lines(0.05, 0.01, 0))
SPOT = offer("aws", P, "L4", 0.3, region="us-east-1", zone="use1-az1", machine="g6.xlarge", vcpus=4, memory_gib=16)
DEARER = replace(SPOT, price_per_hour_usd=0.4, zone="use1-az2")
UNQUOTED = replace(SPOT, price_per_hour_usd=None, region="eu-west-1", zone="euw1-az1", note="no spot quote")
STAYS = offer("aws", D, "L4", 0.8, region="us-east-1", machine="g6.xlarge", vcpus=4, memory_gib=16)
GCP = offer("gcp", P, "L4", 0.25, region="us-central1")
ALL = [MODAL, CLOUDRUN, H100, SPOT, DEARER, UNQUOTED, STAYS, GCP]


def chosen(**wanted: object) -> list[Offer]:
    return [row.offer for row in select(ALL, Wanted(**{"cheapest": False, **wanted}), NOW).rows]  # type: ignore[arg-type]


FILTERS = {
    "gpu": ({"gpu": "H100"}, [H100]),
    "provider": ({"provider": "gcp"}, [GCP]),
    "kind": ({"kinds": frozenset({D})}, [STAYS]),
    "cloud": ({"kinds": frozenset({P}), "spot_clouds": frozenset({"gcp"})}, [GCP]),
    "cloud leaves serverless alone": (
        {"kinds": frozenset({S, P}), "spot_clouds": frozenset({"gcp"}), "gpu": "L4"}, [GCP, CLOUDRUN, MODAL],
    ),
    "region": ({"region": "US-EAST"}, [SPOT, DEARER, CLOUDRUN, STAYS]),
    "zone": ({"region": "use1-az2"}, [DEARER]),
    "memory": ({"min_vram_gb": 25}, [H100]),
    "price": ({"max_price": 0.3}, [GCP, SPOT]),
    "price, all in": ({"max_price": 1.55, "by_all_in": True, "kinds": frozenset({S})}, [MODAL]),
    "GPUs": ({"gpu_count": 8}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_takes_away_just_what_it_says(name: str) -> None:
    wanted, left = FILTERS[name]
    assert chosen(**wanted) == left


def test_an_unknown_price_comes_last_and_is_below_no_limit() -> None:
    assert chosen(sort="price")[-1] == UNQUOTED
    assert UNQUOTED not in chosen(max_price=100)


def test_of_all_gpus_each_seller_shows_its_cheapest() -> None:
    rows = select(ALL, Wanted(), NOW).rows
    assert [(r.offer.provider, r.offer.kind) for r in rows if r.offer.gpu == "L4"] == [
        ("gcp", P), ("aws", P), ("cloudrun", S), ("aws", D), ("modal", S),
    ]  # fmt: skip
    assert SPOT in [r.offer for r in rows]


def test_all_in_turns_the_order_round() -> None:
    rows = select([MODAL, CLOUDRUN], Wanted(by_all_in=True, sort="price"), NOW).rows
    assert [r.offer.provider for r in rows] == ["modal", "cloudrun"]
    assert [r.offer.provider for r in select([MODAL, CLOUDRUN], Wanted(sort="price"), NOW).rows] == [
        "cloudrun",
        "modal",
    ]


@pytest.mark.parametrize("sort", flags.SORTS)
def test_every_order_that_can_be_asked_for_is_one(sort: str) -> None:
    assert sorted(map(id, chosen(sort=sort))) == sorted(map(id, ALL))


def test_pages_make_up_the_whole_list() -> None:
    whole = chosen(sort="price")
    pages = [select(ALL, Wanted(cheapest=False, sort="price", limit=3, offset=at), NOW) for at in (0, 3, 6)]
    assert [row.offer for page in pages for row in page.rows] == whole
    assert {page.total for page in pages} == {len(whole)}


def test_savings_are_of_the_same_machine_with_everything_billed() -> None:
    [row] = [r for r in select(ALL, Wanted(cheapest=False), NOW).rows if r.offer == SPOT]
    assert row.saves_on_demand == pytest.approx(1 - 0.3 / 0.8)
    serverless = 0.7 + 4 * 0.07 + 16 * 0.01
    assert row.saves_serverless == pytest.approx(1 - 0.3 / serverless, abs=1e-4), (
        "the cheapest for 4 vCPUs and 16 GiB, which for 8 and 32 is another"
    )


def test_a_dearer_one_saves_less_than_nothing() -> None:
    [row] = select([*ALL, offer("x", D, "L4", 9.0)], Wanted(gpu="L4", provider="x"), NOW).rows
    assert row.saves_serverless is not None
    assert row.saves_serverless < 0


def test_what_lacks_a_line_is_compared_with_nothing() -> None:
    bare = replace(SPOT, lines=Lines(None, None))
    [row] = [r for r in select([*ALL, bare], Wanted(cheapest=False), NOW).rows if r.offer is bare]
    assert (row.saves_on_demand, row.saves_serverless) == (None, None)
    [row] = select([SPOT, replace(STAYS, lines=Lines(None, 0))], Wanted(kinds=frozenset({P})), NOW).rows
    assert row.saves_on_demand is None


def test_a_stated_shape_is_what_is_priced_and_compared() -> None:
    shape = Shape(1, 16, 64, 0)
    [row] = select(ALL, Wanted(gpu="L4", provider="modal", shape=shape), NOW).rows
    assert row.all_in is not None
    assert row.all_in.usd_per_hour == pytest.approx(0.8 + 16 * 0.05 + 64 * 0.01)


def test_stale_ones_are_marked() -> None:
    old = replace(GCP, observed_at=NOW - 2 * 86400)
    assert [r.stale for r in select([old, SPOT], Wanted(sort="price"), NOW).rows] == [True, False]
