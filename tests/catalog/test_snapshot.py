"""The prices that ship with Tuna: a table that is whole, dated, sourced, and without the errors it replaced."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from importlib import resources

import pytest

from tuna_nb.backends import registry
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.gpus import find
from tuna_nb.catalog.offers import Offer, OfferKind

OFFERS = snapshot.offers()


def test_every_row_has_its_gpu_its_date_and_its_source() -> None:
    for o in OFFERS:
        assert find(o.gpu).name == o.gpu
        assert 1_700_000_000 < o.observed_at < time.time()
        assert o.source.strip()
        assert o.gpu_count >= 1
        assert o.snapshot


def test_nothing_is_free_and_what_has_no_price_says_why() -> None:
    for o in OFFERS:
        if o.price_per_hour_usd is None:
            assert o.note.startswith("no spot quote") or "no spot quote" in o.note
        else:
            assert 0.01 < o.price_per_hour_usd < 100
        assert o.billing.granularity_s > 0


def test_no_offer_is_there_twice() -> None:
    keys = Counter((o.provider, o.kind, o.gpu, o.gpu_count, o.machine, o.region, o.zone) for o in OFFERS)
    assert [key for key, count in keys.items() if count > 1] == []


def test_a_spot_price_is_below_its_machine_s_on_demand_price() -> None:
    staying = {
        (o.provider, o.machine, o.region): o.price_per_hour_usd for o in OFFERS if o.kind is OfferKind.ON_DEMAND
    }
    for o in OFFERS:
        other = staying.get((o.provider, o.machine, o.region))
        if o.kind is OfferKind.SPOT and o.price_per_hour_usd is not None and other is not None:
            assert o.price_per_hour_usd < other


@pytest.mark.parametrize(
    ("provider", "gpu", "usd"),
    [("runpod", "L4", 0.684), ("runpod", "A100_80GB", 2.736), ("runpod", "H100", 4.176), ("cloudrun", "L4", 0.672),
     ("cloudrun", "RTXPRO6000", 1.314792), ("modal", "A10G", 1.10), ("cerebrium", "A100_40GB", 1.45)],
)  # fmt: skip
def test_rows_that_are_wrong_elsewhere_are_right_here(provider: str, gpu: str, usd: float) -> None:
    assert snapshot.rates(provider)[gpu].price_per_hour_usd == usd


def test_a_price_that_nobody_published_is_not_there() -> None:
    assert "H200" not in snapshot.rates("cerebrium")


def test_every_provider_of_it_can_be_deployed_on_or_is_a_cloud() -> None:
    clouds = {cloud for name in registry.names() for cloud in registry.get(name).clouds}
    for o in OFFERS:
        assert o.provider in (registry.names() if o.kind is OfferKind.SERVERLESS else clouds)


def test_the_file_is_what_writing_it_again_gives() -> None:
    text = resources.files("tuna_nb.catalog").joinpath(snapshot.FILE).read_text("utf-8")
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(snapshot.write(OFFERS))
    assert out.getvalue() == text
    again = snapshot.read(text.splitlines())
    assert tuple(again) == OFFERS


def test_a_table_of_another_form_is_refused() -> None:
    with pytest.raises((KeyError, ValueError)):
        snapshot.read(["provider,kind", "modal,serverless"])
    head = ",".join(snapshot.COLUMNS)
    row: list[str] = snapshot.write([first()])[1]
    with pytest.raises(ValueError):
        snapshot.read([head, ",".join(row).replace("serverless", "for-free")])


def first() -> Offer:
    return next(o for o in OFFERS if o.kind is OfferKind.SERVERLESS)
