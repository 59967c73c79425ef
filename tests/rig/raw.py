"""SkyServe as its own users see it, without Tuna: what the rig itself is tested with."""

from __future__ import annotations

import copy
import urllib.error
import urllib.request
from typing import Any

from tests.rig.rig import CODE, Rig

MODEL = "tiny"
TASK = {
    "service": {
        "ports": 8001,
        "readiness_probe": {"path": "/health", "initial_delay_seconds": 300, "timeout_seconds": 5},
        "replica_policy": {"min_replicas": 1, "max_replicas": 1},
    },
    "resources": {
        "accelerators": "L4:1",
        "use_spot": True,
        "disk_size": 100,
        "ports": 8001,
        "any_of": [{"infra": "aws/us-east-1"}, {"infra": "aws/us-east-2"}],
    },
    "run": f"cd {CODE} && exec python -m tuna_nb.backends.local.engine --model {MODEL} --host 0.0.0.0 --port 8001",
}


class Service:
    """One service of SkyServe. Methods wait for SkyPilot's server and raise what it raises."""

    def __init__(self, rig: Rig, name: str) -> None:
        self._rig = rig
        self.name = name

    def up(self) -> str:
        """Returns the URL of its load balancer."""
        import sky
        from sky import serve

        _, endpoint = sky.stream_and_get(serve.up(sky.Task.from_yaml_config(copy.deepcopy(TASK)), self.name))
        return str(endpoint)

    def down(self) -> None:
        import sky
        from sky import serve

        sky.stream_and_get(serve.down(self.name))
        self._rig.wait("SkyServe has forgotten the service", lambda: self.record() is None, 300)

    def record(self) -> dict[str, Any] | None:
        import sky
        from sky import serve

        told = sky.get(serve.status(self.name))
        return told[0] if told else None

    def ready(self, besides: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """The replicas that are READY, without those of the numbers given."""
        record = self.record()
        replicas = record["replica_info"] if record else []
        return [each for each in replicas if each["status"].name == "READY" and each["replica_id"] not in besides]


def answers(url: str) -> bool:
    """Whether the engine behind the URL knows its model now."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            return MODEL in answer.read().decode()
    except (OSError, urllib.error.URLError):
        return False
