"""The catalogue files that SkyPilot leaves on a machine: read as data, without SkyPilot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.catalog.sources.asking import fault, offers
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.catalog.sources.skypilot import SkyPilotFiles

RECORDED = Path(__file__).parents[2] / "fakes" / "skypilot_catalog"
AWS = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch"
INFO = "\"{'Gpus': [{'Name': 'L4', 'Manufacturer': 'NVIDIA', 'Count': 1, 'MemoryInfo': {'SizeInMiB': 22888}}]}\""
RUNPOD = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Region,SpotPrice,Price,AvailabilityZone,GpuInfo"
)


def put(root: Path, cloud: str, *rows: str, version: str = "v8") -> Path:
    path = root / ".sky" / "catalogs" / version / cloud / "vms.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path


def files(root: Path, variable: str = "SKY_RUNTIME_DIR") -> SkyPilotFiles:
    return SkyPilotFiles(environ={variable: str(root), "TUNA_DATA_DIR": str(root / "data")})


def copies(root: Path) -> list[Path]:
    return sorted((root / "data" / "prices" / "skypilot").glob("*"))


def told(found: list[Offer]) -> set[tuple[str, str | None, str | None, float | None]]:
    return {(o.kind.value, o.region, o.zone, o.price_per_hour_usd) for o in found}


def test_a_row_is_an_offer_on_demand_and_one_on_spot(tmp_path: Path) -> None:
    put(tmp_path, "aws", AWS, f"g6.12xlarge,L4,4.0,48.0,192.0,{INFO},4.6016,1.9,us-east-1,use1-az1,x86_64")
    found = offers(files(tmp_path))
    assert told(found) == {
        ("on-demand", "us-east-1", "use1-az1", 4.6016 / 4),
        ("spot", "us-east-1", "use1-az1", 1.9 / 4),
    }
    for offer in found:
        assert (offer.provider, offer.gpu, offer.gpu_count, offer.machine) == ("aws", "L4", 4, "g6.12xlarge")
        assert (offer.vcpus, offer.memory_gib) == (48.0, 192.0)
        assert offer.source == "SkyPilot catalogue v8"


def test_spot_is_priced_by_the_zone_and_on_demand_by_the_region(tmp_path: Path) -> None:
    put(
        tmp_path, "aws", AWS,
        f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},0.8048,0.33,us-east-1,use1-az1,x86_64",
        f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},0.8048,0.41,us-east-1,use1-az2,x86_64",
        f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},0.9100,0.50,eu-west-1,euw1-az1,x86_64",
    )  # fmt: skip
    assert told(offers(files(tmp_path))) == {
        ("on-demand", "us-east-1", None, 0.8048),
        ("spot", "us-east-1", "use1-az1", 0.33),
        ("spot", "us-east-1", "use1-az2", 0.41),
        ("on-demand", "eu-west-1", "euw1-az1", 0.91),
        ("spot", "eu-west-1", "euw1-az1", 0.5),
    }


@pytest.mark.parametrize(
    ("spot", "why"), [("", "no spot quote"), ("0.526", "equal to"), ("0.6", "above"), ("0.00", "no spot")]
)
def test_a_spot_price_that_is_none_is_no_quote(tmp_path: Path, spot: str, why: str) -> None:
    put(tmp_path, "aws", AWS, f"g4dn.xlarge,T4,1.0,4.0,16.0,{INFO},0.526,{spot},us-east-1,use1-az1,x86_64")
    silent = next(o for o in offers(files(tmp_path)) if o.kind is OfferKind.SPOT)
    assert silent.price_per_hour_usd is None
    assert why in silent.note


def test_a_blank_on_demand_price_is_no_offer(tmp_path: Path) -> None:
    put(tmp_path, "aws", AWS, f"g4dn.xlarge,T4,1.0,4.0,16.0,{INFO},,0.2,us-east-1,use1-az1,x86_64")
    assert told(offers(files(tmp_path))) == {("spot", "us-east-1", "use1-az1", 0.2)}


def test_googles_gpus_are_listed_apart_from_what_holds_them(tmp_path: Path) -> None:
    put(
        tmp_path, "gcp",
        "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice",
        "g2-standard-4,4.0,16.0,,,,us-central1,us-central1-a,0.2863,0.11",
        f",,,L4,1.0,{INFO},us-central1,us-central1-a,0.56,0.22",
        ",,,tpu-v6e-32,1,tpu-v6e-32,us-central1,us-central1-a,86.4,17.41466",
    )  # fmt: skip
    found = offers(files(tmp_path))
    assert told(found) == {
        ("on-demand", "us-central1", "us-central1-a", 0.56),
        ("spot", "us-central1", "us-central1-a", 0.22),
    }
    for offer in found:
        assert (offer.machine, offer.vcpus, offer.memory_gib) == (None, None, None)
        whole = offer.all_in()
        assert whole is not None
        assert whole.lacks == ("vCPUs", "memory")


def test_names_mean_what_they_mean_to_skypilot(tmp_path: Path) -> None:
    rows = [
        f"m{n},{name},1.0,4.0,16.0,{INFO},9,1,us-east-1,az1,x86_64"
        for n, name in enumerate(("A100", "A100-80GB", "V100-32GB", "H100-MEGA", "RTX6000-Ada"))
    ]
    put(tmp_path, "aws", AWS, *rows)
    names = {o.machine: o.gpu for o in offers(files(tmp_path))}
    assert names == {"m0": "A100_40GB", "m1": "A100_80GB", "m2": "V100_32GB", "m3": "H100", "m4": "RTX6000ADA"}


def test_slices_of_a_gpu_and_unknown_ones_are_left_out(tmp_path: Path) -> None:
    put(
        tmp_path, "aws", AWS,
        f"g6f.large,L4,0.125,2.0,8.0,{INFO},0.2,0.1,us-east-1,az1,x86_64",
        f"g5g.xlarge,T4g,1.0,2.0,8.0,{INFO},0.42,0.1,us-east-1,az1,arm64",
        f"inf2.xlarge,Inferentia2,1.0,2.0,8.0,{INFO},0.7,0.1,us-east-1,az1,x86_64",
        "m6i.xlarge,,,4.0,16.0,,0.192,0.07,us-east-1,use1-az1,x86_64",
    )  # fmt: skip
    assert offers(files(tmp_path)) == []


def test_runpods_pods_are_a_markets_machines(tmp_path: Path) -> None:
    put(tmp_path, "runpod", RUNPOD, f"1x_L4_SECURE,L4,1.0,8.0,24.0,US,0.22,0.44,US-GA-1,{INFO}")
    assert {o.kind for o in offers(files(tmp_path))} == {OfferKind.DEDICATED, OfferKind.INTERRUPTIBLE}


def test_columns_differ_by_cloud_and_some_have_no_zones(tmp_path: Path) -> None:
    put(
        tmp_path, "lambda", "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice",
        f"gpu_1x_a10,A10,1.0,30.0,200.0,0.75,us-east-1,{INFO},",
    )  # fmt: skip
    assert told(offers(files(tmp_path))) == {
        ("on-demand", "us-east-1", None, 0.75),
        ("spot", "us-east-1", None, None),
    }


def test_the_newest_layout_counts(tmp_path: Path) -> None:
    for version, usd in (("v8", 1.0), ("v10", 2.0), ("v9", 3.0)):
        put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},{usd},,us-east-1,az1,x86_64", version=version)
    (tmp_path / ".sky" / "catalogs" / "v11" / "common").mkdir(parents=True)
    found = offers(files(tmp_path))
    assert {o.price_per_hour_usd for o in found if o.kind is OfferKind.ON_DEMAND} == {2.0}


def test_the_home_folder_is_where_they_are_unless_skypilot_is_told_otherwise(tmp_path: Path) -> None:
    put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},1.0,,us-east-1,az1,x86_64")
    assert offers(files(tmp_path, "HOME"))
    assert files(tmp_path, "HOME").lacks() is None


def test_without_skypilot_there_is_nothing_and_no_fault(tmp_path: Path) -> None:
    assert offers(files(tmp_path)) == []
    assert "sky gpus list" in str(files(tmp_path).lacks())


def test_a_price_is_as_old_as_its_file(tmp_path: Path) -> None:
    path = put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},1.0,,us-east-1,az1,x86_64")
    os.utime(path, (1e9, 1e9))
    assert {o.observed_at for o in offers(files(tmp_path))} == {1e9}


def test_a_fetch_that_failed_makes_no_price_younger(tmp_path: Path) -> None:
    """SkyPilot touches the file then, so as not to try again at once; the sum beside it stays as it was."""
    path = put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},1.0,,us-east-1,az1,x86_64")
    md5 = path.parents[1] / ".meta" / "aws" / "vms.csv.md5"
    md5.parent.mkdir(parents=True)
    md5.write_text("0" * 32)
    os.utime(md5, (1e9, 1e9))
    os.utime(path, (2e9, 2e9))
    assert {o.observed_at for o in offers(files(tmp_path))} == {1e9}


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    source = files(tmp_path)
    for usd in (1.0, 2.5):
        put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},{usd:.4f},,us-east-1,az1,x86_64")
        os.utime(source._files()[0], (usd, usd))
        assert usd in {o.price_per_hour_usd for o in offers(source)}


def test_a_missing_column_is_a_fault_that_names_the_file(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "aws",
        AWS.replace("Price,SpotPrice", "Cost,SpotPrice"),
        f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},1,,us-east-1,az1,x",
    )
    assert f"{path} has no column Price" in str(fault(files(tmp_path)))


def test_half_a_row_is_a_fault(tmp_path: Path) -> None:
    put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},1.0")
    assert "a row of 7 fields" in str(fault(files(tmp_path)))


def test_a_file_that_is_no_text_is_a_fault(tmp_path: Path) -> None:
    put(tmp_path, "aws", AWS).write_bytes(b"\xff\xfe\x00\x01")
    assert "can't read" in str(fault(files(tmp_path)))


def large(folder: Path) -> int:
    """AWS's own file is as long: 24,840 rows, a good quarter of them with GPUs. Returns how many offers are in it."""
    zones = [(f"us-east-{region}", f"use{region}-az{zone}") for region in range(18) for zone in range(3)]
    plain = [f"m{n}.xlarge,,,4.0,16.0,,0.192,0.07,{r},{z},x86_64" for n in range(330) for r, z in zones]
    long = INFO.replace(
        "22888", "22888, 'Workloads': ['graphics', 'ml-ai'], 'LogicalGpuCount': 1, 'GpuPartitionSize': 1.0"
    )
    gpus = [
        f"g{n}.xlarge,L4,1.0,4.0,16.0,{long},0.8,0.{n + 100},{r},{z},x86_64" for n in range(130) for r, z in zones
    ]
    put(folder, "aws", AWS, *plain, *gpus)
    return 130 * (18 + 54)


def test_a_catalogue_of_the_size_of_awss_is_the_same_read_copied_and_kept(tmp_path: Path) -> None:
    count = large(tmp_path)
    source = files(tmp_path)
    read = offers(source)
    assert len(read) == count
    assert offers(source) == read
    source._kept.clear()
    assert offers(source) == read


def test_what_was_read_is_kept_for_the_next_process(tmp_path: Path) -> None:
    path = put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},1.0,0.5,us-east-1,az1,x86_64")
    state = path.stat()
    first = offers(files(tmp_path))
    assert [copy.name.split("-")[0] for copy in copies(tmp_path)] == ["aws"]
    # The same time and size, so that only the copy can tell.
    path.write_text(path.read_text().replace("1.0,0.5", "2.0,0.5"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    files(tmp_path)._kept.clear()
    assert offers(files(tmp_path)) == first


def test_a_copy_of_another_state_of_the_file_is_put_away(tmp_path: Path) -> None:
    for usd in (1.0, 2.0):
        path = put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},{usd},,us-east-1,az1,x86_64")
        os.utime(path, (usd, usd))
        files(tmp_path)._kept.clear()
        assert usd in {o.price_per_hour_usd for o in offers(files(tmp_path))}
        assert len(copies(tmp_path)) == 1


def test_a_damaged_copy_or_no_room_for_one_costs_time_only(tmp_path: Path) -> None:
    put(tmp_path, "aws", AWS, f"g6.xlarge,L4,1.0,4.0,16.0,{INFO},1.0,0.5,us-east-1,az1,x86_64")
    first = offers(files(tmp_path))
    copies(tmp_path)[0].write_text("{")
    files(tmp_path)._kept.clear()
    assert offers(files(tmp_path)) == first
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").write_text("in the way")
    files(tmp_path)._kept.clear()
    assert offers(files(tmp_path)) == first


def test_skypilot_itself_reads_the_same_prices(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "aws", tmp_path / ".sky" / "catalogs" / "v8" / "aws")
    code = (
        "import json, sky.catalog as c\n"
        "found = c.list_accelerators(gpus_only=True, name_filter='L4', clouds='aws', case_sensitive=True, all_regions=True)\n"
        "print(json.dumps([[i.instance_type, i.region, i.price, i.spot_price] for i in found['L4']]))"
    )
    env = {
        **os.environ,
        "SKY_RUNTIME_DIR": str(tmp_path),
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = [o for o in offers(files(tmp_path)) if o.gpu == "L4"]
    for machine, region, usd, spot_usd in json.loads(done.stdout.splitlines()[-1]):
        here = [o for o in found if (o.machine, o.region) == (machine, region)]
        on_demand = {
            o.price_per_hour_usd * o.gpu_count
            for o in here
            if o.kind is OfferKind.ON_DEMAND and o.price_per_hour_usd
        }
        spot = [
            o.price_per_hour_usd * o.gpu_count for o in here if o.kind is OfferKind.SPOT and o.price_per_hour_usd
        ]
        assert on_demand == {usd}
        assert min(spot, default=usd) == spot_usd, (
            "where spot is as dear as on demand, it has the price and we have none"
        )
