"""The request of these tests."""

from __future__ import annotations

from tuna_nb.backends.base import Engine, Kind, ServiceRequest, SpotScaling

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-spot",
    kind=Kind.SPOT,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=SpotScaling(min_replicas=0, max_replicas=1),
)
