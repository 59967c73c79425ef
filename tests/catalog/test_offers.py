"""An offer's all-in price is what its provider will bill; what is not known is said, and never counted as nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.catalog.offering import NOW, offer
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import SHELF_LIFE_S, AllIn, Lines, OfferKind, Shape, believable


def of(provider: str, gpu: str, count: int = 1) -> AllIn | None:
    [found, *_] = [o for o in snapshot.of(provider) if (o.gpu, o.gpu_count) == (gpu, count)]
    return found.all_in(Shape(count, 8, 32))


def test_cloud_run_is_gpu_and_vcpus_and_memory() -> None:
    """0.0001867 for the L4, 0.000018 a vCPU and 0.000002 a GiB, each by the second."""
    told = (0.0001867 + 8 * 0.000018 + 32 * 0.000002) * 3600
    assert of("cloudrun", "L4") == AllIn(pytest.approx(told, abs=0.001), ())


def test_baseten_is_by_the_minute_with_everything_in_it() -> None:
    assert of("baseten", "L4") == AllIn(pytest.approx(0.01414 * 60), ())
    assert of("baseten", "A10G", 8) == AllIn(pytest.approx(0.32576 * 60, abs=1e-4), ())


def test_modal_bills_cores_and_memory_beside_the_gpu() -> None:
    told = (0.001097 + 8 * 0.0000131 + 32 * 0.00000222) * 3600
    assert of("modal", "H100") == AllIn(pytest.approx(told, abs=0.002), ())


def test_azure_comes_in_one_shape_that_is_paid_whole() -> None:
    [t4] = [o for o in snapshot.of("azure") if o.gpu == "T4"]
    assert t4.all_in() == AllIn(pytest.approx(0.26 + 8 * 0.0864 + 56 * 0.0108), ())


def test_a_disk_is_priced_by_the_month_of_thirty_days() -> None:
    lines = Lines(0, 0, 0.10)
    assert offer(lines=lines).all_in(Shape(disk_gb=720)) == AllIn(1.1, ())
    assert offer(lines=lines).all_in() == AllIn(1.0, ())


def test_a_line_of_unknown_price_is_named_and_not_counted_as_nothing() -> None:
    vm = offer(lines=Lines(None, None, None))
    assert vm.all_in() == AllIn(1.0, ("vCPUs", "memory"))
    assert vm.all_in(Shape(disk_gb=10)) == AllIn(1.0, ("vCPUs", "memory", "disk"))
    assert not AllIn(1.0, ("disk",)).whole


def test_an_unknown_price_has_no_sum() -> None:
    assert offer(usd=None).all_in() is None
    assert offer(usd=None).sum() == (None, ())


def test_a_machine_is_rented_whole() -> None:
    eight = offer(usd=2.0, gpu_count=8)
    assert eight.all_in(Shape(1)) == AllIn(16.0, ())
    assert eight.all_in(Shape(9)) == AllIn(32.0, ())


@pytest.mark.parametrize("kind", OfferKind)
def test_a_price_is_stale_once_its_shelf_life_is_over(kind: OfferKind) -> None:
    life = SHELF_LIFE_S[kind]
    assert not offer(kind=kind, observed_at=NOW - life).is_stale(NOW)
    assert offer(kind=kind, observed_at=NOW - life - 1).is_stale(NOW)


@pytest.mark.parametrize(
    ("spot", "on_demand", "price", "why"),
    [(0.3, 1.0, 0.3, ""), (0.3, None, 0.3, ""), (None, 1.0, None, "no spot quote"), (1.0, 1.0, None, "equal to"),
     (1.5, 1.0, None, "above"), (0.0, 1.0, None, "no spot quote"), (float("nan"), 1.0, None, "no spot quote")],
)  # fmt: skip
def test_a_spot_price_that_saves_nothing_is_no_quote(
    spot: float | None, on_demand: float | None, price: float | None, why: str
) -> None:
    found, said = believable(spot, on_demand)
    assert found == price
    assert why in said
    assert bool(said) == (price is None)


@given(st.floats(0.01, 100), st.floats(0, 1), st.integers(1, 8), st.floats(0, 128), st.floats(0, 5000))
def test_a_sum_grows_with_everything_that_is_wanted(
    usd: float, rate: float, gpus: int, cores: float, disk: float
) -> None:
    sold = offer(usd=usd, lines=Lines(rate, rate, rate))
    less = sold.all_in(Shape(gpus, cores, 4 * cores, disk))
    more = sold.all_in(Shape(gpus + 1, cores + 1, 4 * cores + 1, disk + 1))
    assert less is not None
    assert more is not None
    assert usd * gpus <= less.usd_per_hour + 1e-6 <= more.usd_per_hour + 2e-6
