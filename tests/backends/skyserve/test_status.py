"""SkyServe's records in our words."""

from __future__ import annotations

from typing import Any

import pytest

from tuna_nb.backends.base import State
from tuna_nb.backends.skyserve.status import STATES, WORDS, address, service


def record(status: str, *replicas: str, target: int | None = None, **more: Any) -> dict[str, Any]:
    told = [
        {"replica_id": i, "status": word, "endpoint": "http://10.0.0.1:8000", "launched_at": 5, "region": "r"}
        for i, word in enumerate(replicas, 1)
    ]
    return {"name": "n", "status": status, "replica_info": told, "target_num_replicas": target, **more}


@pytest.mark.parametrize(
    ("told", "state", "billing"),
    [
        (record("NO_REPLICA", target=1), State.STARTING, False),
        (record("NO_REPLICA", "PROVISIONING", target=1), State.STARTING, True),
        (record("NO_REPLICA", target=0), State.IDLE, False),
        (record("REPLICA_INIT", "PENDING", target=1), State.STARTING, False),
        (record("CONTROLLER_INIT"), State.STARTING, False),
        (record("READY", "READY", "FAILED_PROVISION", target=2), State.READY, True),
        (record("REPLICA_INIT", "PREEMPTED", target=1), State.STARTING, False),
        (record("REPLICA_INIT", "NOT_READY", target=1), State.STARTING, True),
        (record("FAILED", "FAILED", target=1), State.FAILED, False),
        (record("FAILED", "FAILED_PROVISION", "PROVISIONING", target=1), State.STARTING, True),
        (record("FAILED", "FAILED_CLEANUP", target=0), State.FAILED, True),
        (record("SHUTTING_DOWN", "READY", target=1), State.STOPPING, True),
        (record("FAILED_CLEANUP", "READY", target=1), State.FAILED, True),
        (record("CONTROLLER_FAILED", target=1), State.FAILED, False),
    ],
    ids=lambda value: value["status"] if isinstance(value, dict) else str(value),
)
def test_a_service_is_idle_only_where_skyserve_aims_at_no_replica(
    told: dict[str, Any], state: State, billing: bool
) -> None:
    found = service(told)
    assert (found.state, found.billing) == (state, billing)


def test_every_state_of_the_installed_skyserve_is_known(offline: None) -> None:
    from sky.serve.serve_state import ReplicaStatus

    assert {status.value for status in ReplicaStatus} == set(STATES)
    assert set(WORDS) | {"READY"} == set(STATES)


@pytest.mark.parametrize(
    ("told", "server", "url"),
    [
        ("1.2.3.4:30001", None, "http://1.2.3.4:30001"),
        ("https://1.2.3.4:30001/", None, "https://1.2.3.4:30001"),
        ("http://None", None, None),
        (None, None, None),
        ("-", None, None),
        ("http://localhost:30001", None, "http://localhost:30001"),
        ("http://localhost:30001", "https://user:pass@sky.example:443", "http://sky.example:30001"),
        ("http://localhost:30001", "http://127.0.0.1:46581", "http://localhost:30001"),
    ],
)
def test_addresses_come_in_many_shapes(told: str | None, server: str | None, url: str | None) -> None:
    assert address(told, server) == url


def test_a_replicas_notice_is_beside_its_engine() -> None:
    [replica] = service(record("READY", "READY")).replicas
    assert (replica.url, replica.notice_url) == ("http://10.0.0.1:8000", "http://10.0.0.1:8002/notice")
    unknown = record("REPLICA_INIT", "PROVISIONING")
    unknown["replica_info"][0]["endpoint"] = None
    [booting] = service(unknown).replicas
    assert (booting.url, booting.notice_url) == (None, None)


def test_the_task_with_its_secrets_is_in_no_repr() -> None:
    assert "s3cret" not in repr(service(record("READY", yaml_content="secrets: {K: s3cret}")))
