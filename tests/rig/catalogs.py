"""Small catalogs in SkyPilot's own format (schema v8): a few instance types in three regions with two zones each.

A file without its checksum beside it counts as the user's own: it is never overwritten from the Internet.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

SCHEMA = "v8"
REGIONS = {"us-east-1": ("use1", 1.0), "us-east-2": ("use2", 1.05), "us-west-2": ("usw2", 1.1)}
"""Region to the beginning of its zones' ids and how dear it is beside the first."""
MACHINES = (
    ("m6i.large", "", 2, 8, 0.096, 0.030),
    ("m6i.xlarge", "", 4, 16, 0.192, 0.070),
    ("m6i.2xlarge", "", 8, 32, 0.384, 0.140),
    ("g6.xlarge", "L4", 4, 16, 0.8048, 0.330),
    ("g5.xlarge", "A10G", 4, 16, 1.0060, 0.410),
)
"""Type, GPU, vCPUs, memory in GiB, and USD per hour on demand and spot in the first region."""
GPU_MEMORY_MIB = 22888
TAGS = ("skypilot:custom-cpu-ubuntu", "skypilot:custom-gpu-ubuntu-cuda13")


def image(region: str, tag: str) -> str:
    """The id of the image that a tag stands for: as long as a real one, and another in each region."""
    return f"ami-{list(REGIONS).index(region) + 1:08x}{TAGS.index(tag) + 1:09x}"


def images() -> list[dict[str, object]]:
    """What moto is to know of the images (MOTO_AMIS_PATH)."""
    common = {
        "name": "rig",
        "description": "the rig's golden layer",
        "owner_id": "099720109477",
        "public": True,
        "virtualization_type": "hvm",
        "architecture": "x86_64",
        "state": "available",
        "platform": None,
        "image_type": "machine",
        "hypervisor": "xen",
        "root_device_name": "/dev/sda1",
        "root_device_type": "ebs",
        "sriov": "simple",
        "creation_date": "2024-11-04T00:00:00.000Z",
    }
    return [{**common, "ami_id": image(region, tag)} for region in REGIONS for tag in TAGS]


def write(home: Path, amis: Path) -> None:
    """Fills `home`/.sky/catalogs, and `amis` with the images for moto."""
    folder = home / ".sky/catalogs" / SCHEMA
    amis.write_text(json.dumps(images()))
    _table(folder / "aws/vms.csv", VMS, _machines())
    rows = [(tag, r, "ubuntu", "22.04", image(r, tag), "20241104", image(r, tag)) for r in REGIONS for tag in TAGS]
    _table(folder / "aws/images.csv", "Tag Region OS OSVersion ImageId CreationDate BaseImageId", rows)
    _table(folder / "aws/instance_quota_mapping.csv", QUOTAS, [])
    write_common(home)


def write_common(home: Path) -> None:
    """SkyPilot sends an instance the clouds' tables but not these, which it would then fetch."""
    folder = home / ".sky/catalogs" / SCHEMA / "common"
    _table(folder / "accelerators.csv", "AcceleratorName Clouds", [("L4", "['AWS', 'GCP']"), ("A10G", "['AWS']")])
    _table(folder / "metadata.csv", "GPU MemoryGB Manufacturer", [("L4", 24, "NVIDIA"), ("A10G", 24, "NVIDIA")])


VMS = "InstanceType AcceleratorName AcceleratorCount vCPUs MemoryGiB GpuInfo Price SpotPrice Region AvailabilityZone Arch"
QUOTAS = "InstanceType OnDemandInstanceCode SpotInstanceCode Region"


def _machines() -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for region, (prefix, dearer) in REGIONS.items():
        for number in (1, 2):
            for kind, gpu, cpus, memory, price, spot in MACHINES:
                known = {
                    "Name": gpu,
                    "Manufacturer": "NVIDIA",
                    "Count": 1,
                    "MemoryInfo": {"SizeInMiB": GPU_MEMORY_MIB},
                }
                told = {"Gpus": [known], "TotalGpuMemoryInMiB": GPU_MEMORY_MIB} if gpu else ""
                cost = (round(price * dearer, 4), round(spot * dearer * (0.97 + 0.03 * number), 4))
                zone = f"{prefix}-az{number}"
                rows.append((kind, gpu, 1.0 if gpu else "", cpus, memory, told, *cost, region, zone, "x86_64"))
    return rows


def _table(path: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header.split())
        table.writerows(rows)
