"""gpuhunt's catalogues, a source a provider: whole machines made into prices of a GPU, spot next to on-demand."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.catalog.sources.asking import fault, gpuhunt, offers
from tests.fakes.gpuhunt_catalog import ITEMS, VERSION, FakeGpuhunt, item, table, without
from tests.fakes.pricelist import HTML
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.catalog.sources.gpuhunt import PROVIDERS, GpuhuntSource


@pytest.fixture
def cloud() -> Iterator[FakeGpuhunt]:
    with FakeGpuhunt() as cloud:
        yield cloud


def sold(found: list[Offer], machine: str, region: str, kind: OfferKind) -> Offer:
    return next(o for o in found if (o.machine, o.region, o.kind) == (machine, region, kind))


def test_a_whole_machine_is_priced_by_the_gpu(cloud: FakeGpuhunt) -> None:
    found = offers(gpuhunt(cloud.url))
    on_demand = sold(found, "p5.48xlarge", "us-east-1", OfferKind.ON_DEMAND)
    spot = sold(found, "p5.48xlarge", "us-east-1", OfferKind.SPOT)
    assert (on_demand.gpu, on_demand.gpu_count, on_demand.price_per_hour_usd) == ("H100", 8, 55.04 / 8)
    assert spot.price_per_hour_usd == pytest.approx(22.10 / 8)
    assert spot.note == "of its cheapest zone"
    whole = on_demand.all_in()
    assert whole is not None
    assert whole.usd_per_hour == pytest.approx(55.04)
    assert (on_demand.vcpus, on_demand.memory_gib, on_demand.provider) == (64, 32.0, "aws")
    assert on_demand.billing.minimum_s == 60


def test_the_catalogue_has_no_dates_but_its_version(cloud: FakeGpuhunt) -> None:
    assert {o.source for o in offers(gpuhunt(cloud.url))} == {f"gpuhunt {VERSION}"}


def test_spot_equal_to_or_above_on_demand_is_no_quote(cloud: FakeGpuhunt) -> None:
    found = offers(gpuhunt(cloud.url))
    equal, above = (sold(found, "g6.xlarge", region, OfferKind.SPOT) for region in ("us-east-1", "us-west-2"))
    assert (equal.price_per_hour_usd, above.price_per_hour_usd) == (None, None)
    assert "equal to" in equal.note
    assert "above" in above.note


def test_the_memory_tells_gpus_of_one_name_apart(cloud: FakeGpuhunt) -> None:
    found = offers(gpuhunt(cloud.url))
    assert sold(found, "p4d.24xlarge", "us-east-1", OfferKind.ON_DEMAND).gpu == "A100_40GB"
    assert sold(found, "p4de.24xlarge", "us-east-1", OfferKind.ON_DEMAND).gpu == "A100_80GB"


def test_slices_of_a_gpu_machines_without_and_unknown_ones_are_left_out(cloud: FakeGpuhunt) -> None:
    machines = {o.machine for o in offers(gpuhunt(cloud.url))}
    assert machines == {"p5.48xlarge", "g6.xlarge", "p4d.24xlarge", "p4de.24xlarge"}


def test_googles_places_are_zones(cloud: FakeGpuhunt) -> None:
    (only,) = offers(gpuhunt(cloud.url, "gcp"))
    assert (only.region, only.zone) == ("us-central1", "us-central1-a")
    assert only.machine == "g2-standard-4", "what must be reserved by the calendar is not on demand"


def test_runpods_pods_are_a_markets_machines(cloud: FakeGpuhunt) -> None:
    (only,) = offers(gpuhunt(cloud.url, "runpod"))
    assert (only.provider, only.kind, only.machine) == ("runpod", OfferKind.DEDICATED, "NVIDIA L4")


def test_a_cloud_has_one_name_whoever_lists_it(cloud: FakeGpuhunt) -> None:
    source = gpuhunt(cloud.url, "lambdalabs")
    assert source.name == "gpuhunt-lambdalabs"
    assert {o.provider for o in offers(source)} == {"lambda"}


def test_one_that_is_dead_takes_no_other_with_it(cloud: FakeGpuhunt) -> None:
    del cloud.tables["gcp"]
    assert "does not let us in (403)" in str(fault(gpuhunt(cloud.url, "gcp")))
    assert offers(gpuhunt(cloud.url, "aws"))
    asked = {asked.path.split("/")[2] for asked in cloud.asked}
    assert asked == {"aws", "gcp"}, "only what is wanted is fetched"


@pytest.mark.parametrize(
    "column", ["instance_name", "location", "price", "gpu_count", "gpu_name", "gpu_memory", "spot"]
)
def test_a_missing_column_is_a_fault(cloud: FakeGpuhunt, column: str) -> None:
    cloud.tables["aws"] = without(column, cloud.tables["aws"])
    assert f"has no column {column}" in str(fault(gpuhunt(cloud.url)))


def test_rows_that_gpuhunt_can_not_read_are_a_fault_where_none_is_left(
    cloud: FakeGpuhunt, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.tables["aws"] = cloud.tables["aws"].replace("True", "maybe").replace("False", "maybe")
    with caplog.at_level(logging.CRITICAL):
        assert "none of its" in str(fault(gpuhunt(cloud.url)))


def test_html_in_the_place_of_the_zip_file(cloud: FakeGpuhunt) -> None:
    cloud.zipped = HTML.body
    assert "HTML instead of zip file" in str(fault(gpuhunt(cloud.url)))


def test_half_a_zip_file_is_a_fault(cloud: FakeGpuhunt) -> None:
    cloud.zipped = b"PK\x03\x04 and then nothing"
    assert "it is no zip file" in str(fault(gpuhunt(cloud.url)))


def test_a_version_is_no_way_out_of_the_folder(cloud: FakeGpuhunt) -> None:
    cloud.version = "../../elsewhere"
    assert "it is no version" in str(fault(gpuhunt(cloud.url)))


def test_a_zip_file_with_another_table_is_a_fault(cloud: FakeGpuhunt) -> None:
    cloud.member = "prices.csv"
    assert "no aws.csv" in str(fault(gpuhunt(cloud.url)))


def test_gpuhunts_own_folder_is_read_where_it_is_set(tmp_path: Path) -> None:
    (tmp_path / "aws.csv").write_text(table(ITEMS["aws"]))
    source = GpuhuntSource("aws", environ={"GPUHUNT_CATALOG_DIR": str(tmp_path)})
    assert len(offers(source)) == 8
    missing = GpuhuntSource("oci", environ={"GPUHUNT_CATALOG_DIR": str(tmp_path)})
    assert "oci.csv" in str(fault(missing))


def test_a_folder_may_be_given_as_a_url(tmp_path: Path, cloud: FakeGpuhunt) -> None:
    import httpx

    (tmp_path / "aws" / VERSION).mkdir(parents=True)
    (tmp_path / "aws" / "version").write_text(VERSION)
    (tmp_path / "aws" / VERSION / "catalog.zip").write_bytes(
        httpx.get(f"{cloud.catalog_url}/aws/{VERSION}/catalog.zip").content
    )
    assert len(offers(GpuhuntSource("aws", environ={"GPUHUNT_CATALOG_URL": tmp_path.as_uri()}))) == 8


def test_gpuhunt_itself_reads_this_layout_and_finds_the_same_machines(cloud: FakeGpuhunt) -> None:
    """The package's own loading, against the same server: what is pretended here is what it expects."""
    for provider in PROVIDERS:
        cloud.tables.setdefault(
            provider, table([item("none", None, None, 0, 1.0, place="nowhere", provider=provider)])
        )
    code = (
        "import gpuhunt; c = gpuhunt.Catalog(auto_reload=False); c.load();"
        "print(*sorted({f'{i.instance_name} {i.location} {i.price} {i.spot}'"
        " for i in c.query(provider='aws', min_gpu_count=1)}), sep=chr(10))"
    )
    env = {**os.environ, "GPUHUNT_CATALOG_URL": cloud.catalog_url, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    theirs = set(told.stdout.splitlines())
    assert theirs == {f"{i.instance_name} {i.location} {i.price} {i.spot}" for i in ITEMS["aws"] if i.gpu_count}
    ours = {(o.machine, o.region, o.kind is OfferKind.SPOT) for o in offers(gpuhunt(cloud.url))}
    assert ours <= {(line.split()[0], line.split()[1], line.split()[3] == "True") for line in theirs}
