"""TensorDock: the GPU alone has a price, all else is billed beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.catalog.sources.asking import fault, offers, tensordock
from tests.fakes.pricelist import Said
from tests.fakes.tensordock import TOKEN, FakeTensorDock
from tuna_nb.catalog.offers import Offer, OfferKind, Shape
from tuna_nb.errors import CredentialsError


@pytest.fixture
def cloud() -> Iterator[FakeTensorDock]:
    with FakeTensorDock() as cloud:
        yield cloud


def sold(cloud: FakeTensorDock, gpu: str) -> Offer:
    return next(o for o in offers(tensordock(cloud.url)) if o.gpu == gpu)


def test_all_in_is_the_sum_of_what_is_billed(cloud: FakeTensorDock) -> None:
    """As somebody noted it down: 2.2 for an H100, 8 vCPUs at 0.003, 32 GB at 0.002, 100 GB of disk at 0.00005."""
    whole = sold(cloud, "H100").all_in(Shape(1, vcpus=8, memory_gib=32, disk_gb=100))
    assert whole is not None
    assert whole.whole
    assert whole.usd_per_hour == pytest.approx(2.2 + 0.003 * 8 + 0.002 * 32 + 0.00005 * 100, abs=1e-9)
    assert whole.usd_per_hour == pytest.approx(2.293)


def test_each_further_gpu_costs_the_same(cloud: FakeTensorDock) -> None:
    whole = sold(cloud, "RTX4090").all_in(Shape(4, vcpus=16, memory_gib=64, disk_gb=200))
    assert whole is not None
    assert whole.usd_per_hour == pytest.approx(0.3966 * 4 + 0.003 * 16 + 0.002 * 64 + 0.00005 * 200, abs=1e-6)


def test_a_disk_is_priced_by_the_month_of_thirty_days(cloud: FakeTensorDock) -> None:
    assert sold(cloud, "H100").lines.disk_gb_month == pytest.approx(0.036)


def test_where_it_is_and_how_many_are_said_to_be_free(cloud: FakeTensorDock) -> None:
    there, gone = sold(cloud, "RTX4090"), sold(cloud, "A100_80GB")
    assert there.kind is OfferKind.DEDICATED
    assert (there.region, there.zone) == ("Chubbuck, Idaho, United States", "8dd95ff0-dff9-489c-9b02-b38a366b6ab1")
    assert sold(cloud, "H100").region == "Austin, United States"
    assert (there.stock, there.machine) == ("4 free", "geforcertx4090-pcie-24gb")
    assert there.confidence == 0.3, "two of three that are listed are not there"
    assert (gone.stock, gone.confidence) == ("0 free", 0.0)


def test_nulls_are_unknown_and_not_zero(cloud: FakeTensorDock) -> None:
    no_price, no_lines = sold(cloud, "L40S"), sold(cloud, "RTXA6000")
    assert (no_price.price_per_hour_usd, no_price.note) == (None, "no price")
    assert no_lines.stock is None
    whole = no_lines.all_in(Shape(disk_gb=100))
    assert whole is not None
    assert whole.lacks == ("vCPUs", "memory", "disk")


def test_unknown_gpus_are_left_out(cloud: FakeTensorDock) -> None:
    assert sorted(o.gpu for o in offers(tensordock(cloud.url))) == [
        "A100_80GB",
        "H100",
        "L40S",
        "RTX4090",
        "RTXA6000",
    ]


@pytest.mark.parametrize("name", ["v0Name", "max_count", "price_per_hr", "pricing"])
def test_a_field_that_is_gone_is_a_fault(cloud: FakeTensorDock, name: str) -> None:
    del cloud.places[0]["gpus"][0][name]
    assert f"there is no {name}" in str(fault(tensordock(cloud.url)))


@pytest.mark.parametrize("name", ["per_vcpu_hr", "per_gb_ram_hr", "per_gb_storage_hr"])
def test_a_line_under_another_name_is_a_fault(cloud: FakeTensorDock, name: str) -> None:
    """Priced by the month, say: then its name would be another."""
    pricing = cloud.places[0]["gpus"][0]["pricing"]
    pricing[name.replace("_hr", "_mo")] = pricing.pop(name)
    assert f"there is no {name}" in str(fault(tensordock(cloud.url)))


def test_a_price_that_became_text_is_a_fault(cloud: FakeTensorDock) -> None:
    cloud.places[1]["gpus"][0]["price_per_hr"] = "2.20"
    assert "price_per_hr is no number" in str(fault(tensordock(cloud.url)))


@pytest.mark.parametrize(
    ("body", "words"),
    [(b'{"status": 500, "error": "Internal"}', "500: Internal"), (b'{"status": 429, "error": "slow down"}', "429"),
     (b'{"status": "503", "error": "busy"}', "503: busy"), (b'{"data": null, "status": 500, "error": "x"}', "500: x"), (b'{"error": "no"}', "answered with an error"),
     (b'{"errors": [{"status": 500, "title": "Oops", "detail": "of ours"}]}', "500: of ours")],
)  # fmt: skip
def test_an_error_with_http_200_is_an_error(cloud: FakeTensorDock, body: bytes, words: str) -> None:
    cloud.instead = Said(200, body, "application/json")
    assert words in str(fault(tensordock(cloud.url)))


def test_it_needs_no_token_and_shows_the_one_there_is(cloud: FakeTensorDock) -> None:
    assert tensordock(cloud.url).lacks() is None
    offers(tensordock(cloud.url))
    assert "authorization" not in cloud.asked[0].headers
    for where in ("TENSORDOCK_API_TOKEN", "TENSORDOCK_API_KEY"):
        offers(tensordock(cloud.url, **{where: TOKEN}))
        assert cloud.asked[-1].headers["authorization"] == f"Bearer {TOKEN}"


def test_a_wrong_token_is_refused_with_http_200(cloud: FakeTensorDock) -> None:
    said = fault(tensordock(cloud.url, TENSORDOCK_API_TOKEN="an-old-token"))
    assert isinstance(said, CredentialsError)
    assert "TENSORDOCK_API_TOKEN" in str(said.hint)
    assert "an-old-token" not in f"{said} {said.hint}"
