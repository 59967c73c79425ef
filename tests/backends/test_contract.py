"""The contract suite over the local cloud, both kinds, with the built-in engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends.contract import BackendContract, Case
from tuna_nb.backends.base import Engine, Kind, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.local.backend import LocalBackend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract") / "cloud"


@pytest.fixture(params=[Kind.SERVERLESS, Kind.SPOT])
async def case(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Case]:
    kind: Kind = request.param
    backend = LocalBackend(folder, idle_exit_s=2)
    name = f"c-{kind}-{request.node.originalname[5:40].replace('_', '-')}"
    scaling = ServerlessScaling() if kind is Kind.SERVERLESS else SpotScaling(max_replicas=1)
    wanted = ServiceRequest(
        deployment_id="contract",
        name=name,
        kind=kind,
        engine=Engine("tiny/model"),
        gpu="L4",
        gpu_count=1,
        scaling=scaling,
        options={"cold_start_s": "0.1", "boot_s": "0.1"},
    )
    yield Case(backend, wanted)
    for ref in await backend.list_owned():
        await backend.destroy(ref)


class TestLocal(BackendContract):
    """The local cloud keeps the contract."""


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(folder: Path) -> object:
    import asyncio

    import psutil

    yield
    asyncio.run(LocalBackend(folder).cloud.shutdown(force=True))
    left = [p.info for p in psutil.process_iter(["pid", "cmdline"]) if str(folder) in (p.info["cmdline"] or [])]
    assert left == []
