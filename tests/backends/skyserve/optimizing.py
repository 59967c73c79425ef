"""A program: SkyPilot's own optimizer over our tasks, with every cloud signed in and small catalogs. Prints JSON.

In a process and a HOME of its own, for SkyPilot keeps in its state which clouds are there.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from typing import Any

from tests.backends.skyserve.requests import REQUEST
from tuna_nb.backends.skyserve.task import config

ASKED = (
    ("aws", "L4", None),
    ("aws", "L4", "us-east-1"),
    ("aws", "L4", "us-east-1,us-east-2"),
    ("gcp", "L4", None),
    ("gcp", "L4", "us-central1"),
    ("azure", "T4", None),
    ("azure", "T4", "eastus"),
)


def main() -> None:
    import sky
    from sky import global_user_state, optimizer
    from sky.clouds import CloudCapability

    allowed = importlib.import_module("sky.check")._get_workspace_allowed_clouds("default")
    global_user_state.set_allowed_clouds(allowed, "default")
    global_user_state.set_enabled_clouds(["AWS", "GCP", "Azure"], CloudCapability.COMPUTE, "default")
    found: list[Any] = []
    for cloud, gpu, region in ASKED:
        asked = config(replace(REQUEST, region=region, options={"cloud": cloud}), gpu)
        task = sky.Task.from_yaml_config(asked, secrets_overrides=[("VLLM_API_KEY", "k")])
        with sky.Dag() as dag:
            dag.add(task)
        optimizer.Optimizer.optimize(dag, quiet=True)
        best = task.best_resources
        found.append([cloud, region, best.instance_type, best.region, best.use_spot, best.extract_docker_image()])
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
