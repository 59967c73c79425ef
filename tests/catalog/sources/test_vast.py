"""Vast.ai: each machine twice where it can be had twice, its disk apart, and nothing made up of nulls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.catalog.sources.asking import fault, offers, vast
from tests.fakes.vast import KEY, RECORDED, FakeVast, offer
from tuna_nb.catalog.offers import Offer, OfferKind, Shape
from tuna_nb.catalog.sources.vast import VastSource
from tuna_nb.errors import CredentialsError


@pytest.fixture
def cloud() -> Iterator[FakeVast]:
    with FakeVast() as cloud:
        yield cloud


def sold(cloud: FakeVast, machine: int, kind: OfferKind) -> Offer:
    return next(o for o in offers(vast(cloud.url)) if o.machine == str(machine) and o.kind is kind)


def test_all_in_with_the_disk_asked_for_is_what_the_offer_states_itself(cloud: FakeVast) -> None:
    """As recorded: 0.32 for the machine, 10 GB at 0.2 a GB and month, 0.322777777777778 in all."""
    cloud.offers = [RECORDED]
    found = offers(VastSource(cloud.url, disk_gb=10, environ={"HOME": "/nonexistent"}))
    dedicated = next(o for o in found if o.kind is OfferKind.DEDICATED)
    assert dedicated.price_per_hour_usd == 0.32
    whole = dedicated.all_in(Shape(1, disk_gb=10))
    assert whole is not None
    assert whole.whole
    assert whole.usd_per_hour == pytest.approx(0.322777777777778, abs=1e-6)
    assert {body["disk_space"]["gte"] for body in cloud.bodies} == {10}


def test_a_machine_of_eight_is_priced_by_the_gpu_and_rented_whole(cloud: FakeVast) -> None:
    eight = sold(cloud, 3, OfferKind.DEDICATED)
    assert (eight.gpu, eight.gpu_count, eight.price_per_hour_usd) == ("H100", 8, 2.0)
    asked_gb = 50
    whole = eight.all_in(Shape(8, disk_gb=asked_gb))
    assert whole is not None
    assert whole.usd_per_hour == pytest.approx(16.0 + asked_gb * 0.15 / 720, abs=1e-6)


def test_interruptible_is_what_the_search_for_bids_finds_at_its_least_bid(cloud: FakeVast) -> None:
    bid = sold(cloud, 3, OfferKind.INTERRUPTIBLE)
    assert bid.price_per_hour_usd == pytest.approx(1.1)
    assert "least bid" in bid.note
    assert {body["rentable"]["eq"] for body in cloud.bodies} == {True}


def test_a_least_bid_alone_makes_no_offer_interruptible(cloud: FakeVast) -> None:
    cloud.offers = [dict(RECORDED)]
    assert cloud.offers[0]["min_bid"] > 0
    found = offers(vast(cloud.url))
    assert sorted(o.kind for o in found) == [OfferKind.DEDICATED, OfferKind.INTERRUPTIBLE]
    dedicated = next(o for o in found if o.kind is OfferKind.DEDICATED)
    assert dedicated.price_per_hour_usd == 0.32
    assert dedicated.note == ""


def test_a_machine_is_sold_as_the_search_that_found_it_sells(cloud: FakeVast) -> None:
    kinds = {(o.machine, o.kind) for o in offers(vast(cloud.url)) if o.machine in ("11", "12")}
    assert kinds == {("11", OfferKind.INTERRUPTIBLE), ("12", OfferKind.DEDICATED)}


def test_a_bid_as_dear_as_the_machine_or_none_is_no_quote(cloud: FakeVast) -> None:
    as_dear, none = sold(cloud, 5, OfferKind.INTERRUPTIBLE), sold(cloud, 6, OfferKind.INTERRUPTIBLE)
    assert (as_dear.price_per_hour_usd, none.price_per_hour_usd) == (None, None)
    assert "equal to the on-demand price" in as_dear.note
    assert none.note == "no spot quote"


def test_the_memory_tells_gpus_of_one_name_apart(cloud: FakeVast) -> None:
    assert sold(cloud, 5, OfferKind.DEDICATED).gpu == "A100_80GB"
    assert sold(cloud, 6, OfferKind.DEDICATED).gpu == "A100_40GB"


def test_rebuilt_cards_and_unknown_ones_are_left_out(cloud: FakeVast) -> None:
    machines = {o.machine for o in offers(vast(cloud.url))}
    assert machines == {"5006600", "2", "3", "4", "5", "6", "9", "11", "12"}


def test_nulls_are_unknown_and_not_zero(cloud: FakeVast) -> None:
    bare, no_disk, no_price = (sold(cloud, n, OfferKind.DEDICATED) for n in (4, 6, 9))
    assert (bare.vcpus, bare.memory_gib, bare.region) == (None, None, None)
    assert no_disk.lines.disk_gb_month is None
    assert no_disk.region is None
    assert (no_price.price_per_hour_usd, no_price.note) == (None, "no price")
    assert sold(cloud, 9, OfferKind.INTERRUPTIBLE).price_per_hour_usd == 0.3


def test_what_comes_with_a_machine(cloud: FakeVast) -> None:
    """A quarter of the host's cores means a quarter of its memory."""
    recorded, eight = sold(cloud, 5006600, OfferKind.DEDICATED), sold(cloud, 3, OfferKind.DEDICATED)
    assert (recorded.vcpus, recorded.memory_gib) == (4, 31.4)
    assert recorded.confidence == pytest.approx(0.9993718)
    assert eight.confidence == 1.0, "reliability above 1 has been seen"
    assert (recorded.region, eight.region) == ("Norway", "CN")


@pytest.mark.parametrize(
    "name", ["gpu_name", "num_gpus", "dph_base", "min_bid", "storage_cost", "geolocation", "id"]
)
def test_a_field_that_is_gone_is_a_fault(cloud: FakeVast, name: str) -> None:
    for one in cloud.offers:
        one.pop(name, None)
    cloud.offers = [{**one, "dph_total": 1.0} for one in cloud.offers]
    assert f"there is no {name}" in str(fault(vast(cloud.url)))


def test_a_price_that_became_text_is_a_fault(cloud: FakeVast) -> None:
    cloud.offers = [offer(2, "RTX 4090", 24564, min_bid="0.2")]
    assert "min_bid is no number" in str(fault(vast(cloud.url)))


@pytest.mark.parametrize("factor", [720, 24, 1000, 1 / 720])
def test_another_unit_of_disk_is_a_fault(cloud: FakeVast, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """`storage_cost` by the hour, by the day, by the TB: the offers' own totals stay what they were."""
    shown = cloud._shown

    def other_unit(one: dict[str, object], kind: str, disk: float) -> dict[str, object]:
        right = shown(one, kind, disk)
        cost = right["storage_cost"]
        return {**right, "storage_cost": cost / factor if isinstance(cost, float) else cost}

    monkeypatch.setattr(cloud, "_shown", other_unit)
    assert "storage_cost" in str(fault(vast(cloud.url)))


def test_it_needs_no_key_and_shows_the_one_there_is(cloud: FakeVast, tmp_path: Path) -> None:
    assert vast(cloud.url).lacks() is None
    offers(vast(cloud.url))
    assert all("authorization" not in asked.headers for asked in cloud.asked)
    for where in ("VAST_API_KEY", "VASTAI_API_KEY"):
        cloud.asked.clear()
        offers(vast(cloud.url, **{where: KEY}))
        assert {asked.headers["authorization"] for asked in cloud.asked} == {f"Bearer {KEY}"}
    for file in (".config/vastai/vast_api_key", ".vast_api_key"):
        home = tmp_path / file.replace("/", "-")
        (home / file).parent.mkdir(parents=True)
        (home / file).write_text(f"{KEY}\n")
        cloud.asked.clear()
        offers(vast(cloud.url, HOME=str(home)))
        assert {asked.headers["authorization"] for asked in cloud.asked} == {f"Bearer {KEY}"}


def test_a_wrong_key_is_refused_with_404_and_named_as_such(cloud: FakeVast) -> None:
    said = fault(vast(cloud.url, VAST_API_KEY="an-old-key"))
    assert isinstance(said, CredentialsError)
    assert "VAST_API_KEY" in str(said.hint)
    assert "an-old-key" not in f"{said} {said.hint}"
