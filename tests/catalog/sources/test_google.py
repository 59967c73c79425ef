"""Cloud Run by Google's own catalogue: GPU, vCPU and memory by region, each in the unit that it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.catalog.sources.asking import fault, google, offers
from tests.fakes.google_billing import KEY, FakeGoogleBilling, sku
from tuna_nb.catalog.offers import Offer, OfferKind, Shape
from tuna_nb.errors import CredentialsError


@pytest.fixture
def cloud() -> Iterator[FakeGoogleBilling]:
    with FakeGoogleBilling() as cloud:
        yield cloud


def found(cloud: FakeGoogleBilling) -> list[Offer]:
    return offers(google(cloud.url, GOOGLE_API_KEY=KEY))


def l4(cloud: FakeGoogleBilling, note: str = "without zonal redundancy") -> Offer:
    return next(o for o in found(cloud) if (o.gpu, o.region, o.note) == ("L4", "us-central1", note))


def wrong(cloud: FakeGoogleBilling) -> str:
    return str(fault(google(cloud.url, GOOGLE_API_KEY=KEY)))


def test_one_l4_with_eight_vcpus_and_32_gib_costs_what_google_bills(cloud: FakeGoogleBilling) -> None:
    whole = l4(cloud).all_in(Shape(1, vcpus=8, memory_gib=32))
    assert whole is not None
    assert whole.whole
    assert whole.usd_per_hour == pytest.approx(
        0.0001867 * 3600 + 8 * 0.000018 * 3600 + 32 * 0.000002 * 3600, abs=1e-6
    )


def test_the_kind_and_how_it_is_billed(cloud: FakeGoogleBilling) -> None:
    offer = l4(cloud)
    assert (offer.provider, offer.kind, offer.machine) == ("cloudrun", OfferKind.SERVERLESS, "nvidia-l4")
    assert offer.billing.granularity_s == 0.1
    assert offer.billing.boot
    assert offer.billing.idle


def test_zonal_redundancy_is_an_offer_of_its_own(cloud: FakeGoogleBilling) -> None:
    redundant = l4(cloud, "with zonal redundancy")
    assert redundant.price_per_hour_usd == pytest.approx(1.04724)
    assert redundant.machine != l4(cloud).machine


def test_all_pages_are_read(cloud: FakeGoogleBilling) -> None:
    everything = {(o.gpu, o.region, o.note.split()[0]) for o in found(cloud)}
    assert everything == {
        ("L4", "us-central1", "without"),
        ("L4", "us-central1", "with"),
        ("L4", "asia-northeast1", "without"),
        ("RTXPRO6000", "europe-west4", "without"),
    }
    assert len(cloud.asked) == 4
    assert sum("pageToken=" in asked.query for asked in cloud.asked) == 3


def test_a_page_that_fails_leaves_no_half_of_the_prices(cloud: FakeGoogleBilling) -> None:
    cloud.skus[8]["pricingInfo"] = "gone"
    assert "pricingInfo" in wrong(cloud)


def test_where_a_region_has_no_rate_it_is_unknown_and_not_zero(cloud: FakeGoogleBilling) -> None:
    tokyo = next(o for o in found(cloud) if o.region == "asia-northeast1")
    assert tokyo.lines.vcpu == pytest.approx(0.0000234 * 3600)
    assert tokyo.lines.memory_gib is None
    whole = tokyo.all_in()
    assert whole is not None
    assert whole.lacks == ("memory",)


def test_the_free_tier_is_not_the_price(cloud: FakeGoogleBilling) -> None:
    assert l4(cloud).lines.vcpu == pytest.approx(0.0648)


def test_whole_dollars_count_too(cloud: FakeGoogleBilling) -> None:
    price = cloud.skus[2]["pricingInfo"][0]["pricingExpression"]["tieredRates"][0]["unitPrice"]
    price["units"] = "2"
    del price["nanos"]
    assert l4(cloud).price_per_hour_usd == 7200


@pytest.mark.parametrize(
    ("which", "unit"),
    [
        (2, "h"),
        (2, "count"),
        (2, "mo"),
        (4, "h"),
        (4, "GiBy.s"),
        (5, "s"),
        (5, "GiBy.h"),
        (5, "By.s"),
        (5, "MiBy.s"),
    ],
)
def test_another_unit_is_a_fault_and_not_a_guess(cloud: FakeGoogleBilling, which: int, unit: str) -> None:
    cloud.skus[which]["pricingInfo"][0]["pricingExpression"]["usageUnit"] = unit
    said = wrong(cloud)
    assert "changed" in said
    assert f"per {unit}" in said


def test_another_currency_is_a_fault(cloud: FakeGoogleBilling) -> None:
    cloud.skus[2]["pricingInfo"][0]["pricingExpression"]["tieredRates"][0]["unitPrice"]["currencyCode"] = "EUR"
    assert "not priced in USD" in wrong(cloud)


def test_a_gpu_without_a_price_is_a_fault(cloud: FakeGoogleBilling) -> None:
    cloud.skus[2]["pricingInfo"][0]["pricingExpression"]["tieredRates"][0]["unitPrice"]["nanos"] = 0
    assert "has no price" in wrong(cloud)


@pytest.mark.parametrize("name", ["category", "description", "serviceRegions", "pricingInfo"])
def test_a_field_that_is_gone_is_a_fault(cloud: FakeGoogleBilling, name: str) -> None:
    del cloud.skus[2][name]
    assert f"there is no {name}" in wrong(cloud)


def test_two_prices_for_one_thing_are_a_fault(cloud: FakeGoogleBilling) -> None:
    cloud.skus.append(sku("NVIDIA L4 GPU, no zonal redundancy, in us-central1 (new)", "s", 200000, "us-central1"))
    assert "two prices" in wrong(cloud)


def test_other_names_for_all_gpus_are_a_fault(cloud: FakeGoogleBilling) -> None:
    cloud.skus = [s for s in cloud.skus if "NVIDIA" not in s["description"]]
    assert "none of its 5 prices is of a GPU" in wrong(cloud)


def test_without_a_key_it_says_which(cloud: FakeGoogleBilling) -> None:
    source = google(cloud.url)
    assert "GOOGLE_API_KEY" in str(source.lacks())
    assert isinstance(fault(source), CredentialsError)
    assert cloud.asked == []
    for where in ("GOOGLE_API_KEY", "GOOGLE_CLOUD_API_KEY"):
        assert google(cloud.url, **{where: KEY}).lacks() is None


def test_a_wrong_key_is_refused_with_400_and_named_as_such(cloud: FakeGoogleBilling) -> None:
    said = fault(google(cloud.url, GOOGLE_API_KEY="an-old-key"))
    assert isinstance(said, CredentialsError)
    assert "an-old-key" not in f"{said} {said.hint}"
