"""SkyPilot finds a machine for our task at each of the three clouds: its dry run, with nobody to ask."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fakes import skypilot
from tuna_nb.backends.engine import IMAGE


def test_skypilot_places_the_task_at_every_cloud_on_the_cheapest_spot_machine(tmp_path: Path) -> None:
    catalog = Path(skypilot.__file__).with_name("skypilot_catalog")
    shutil.copytree(catalog, tmp_path / ".sky" / "catalogs" / "v8")
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SKYPILOT_")},
        "HOME": str(tmp_path),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "tests.backends.skyserve.optimizing"], env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    [line] = [line for line in ran.stdout.splitlines() if line.startswith("FOUND ")]
    assert json.loads(line.removeprefix("FOUND ")) == [
        ["aws", None, "g6.xlarge", "us-east-2", True, IMAGE],
        ["aws", "us-east-1", "g6.xlarge", "us-east-1", True, IMAGE],
        ["aws", "us-east-1,us-east-2", "g6.xlarge", "us-east-2", True, IMAGE],
        ["gcp", None, "g2-standard-4", "us-central1", True, IMAGE],
        ["gcp", "us-central1", "g2-standard-4", "us-central1", True, IMAGE],
        ["azure", None, "Standard_NC4as_T4_v3", "eastus", True, IMAGE],
        ["azure", "eastus", "Standard_NC4as_T4_v3", "eastus", True, IMAGE],
    ]
