"""A router that somebody else runs: lent to a deployment, and given back as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.deployments.lives import ask, deploy, destroy
from tests.router.conftest import free_port
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError, RouterError

pytestmark = pytest.mark.e2e

Make = Callable[..., DeployRequest]
KEY = "its-own-admin-key"


@pytest.fixture
async def lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The URL of a router with an admin key of its own."""
    import asyncio
    import sys

    port = free_port()
    config = tmp_path / "lent.json"
    config.write_text(json.dumps({"admin_key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()]}))
    command = [
        "-m",
        "tuna_router",
        "--port",
        str(port),
        "--config",
        str(config),
        "--port-file",
        str(tmp_path / "p"),
    ]
    process = await asyncio.create_subprocess_exec(sys.executable, *command)
    while not (tmp_path / "p").exists():
        assert process.returncode is None
        await asyncio.sleep(0.02)
    monkeypatch.setenv("TUNA_ROUTER_ADMIN_KEY", KEY)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    await process.wait()


async def test_it_is_given_backends_and_keys_and_loses_them_again(
    workspace: Workspace, request_of: Make, lent: str
) -> None:
    before = await RouterClient(lent, KEY).config()
    record = await deploy(workspace, request_of("a", router_host=lent))
    assert record.endpoint_url == lent
    assert await ask(workspace, "a") == "spot"
    with pytest.raises(RouterError, match="serves something else"):
        await deploy(workspace, request_of("b", router_host=lent))
    await destroy(workspace, "a")
    assert await RouterClient(lent, KEY).config() == before
    assert list((workspace.settings.data_dir / "url_routers").iterdir()) == []


async def test_without_its_key_nothing_begins_and_nothing_is_taken_for_gone(
    workspace: Workspace, request_of: Make, lent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(workspace, request_of("a", router_host=lent))
    with monkeypatch.context() as without:
        without.delenv("TUNA_ROUTER_ADMIN_KEY")
        with pytest.raises(RequestError, match="TUNA_ROUTER_ADMIN_KEY is not set"):
            await deploy(workspace, request_of("b", router_host=lent))
        with pytest.raises(RouterError, match="TUNA_ROUTER_ADMIN_KEY is not set"):
            await destroy(workspace, "a")
        assert workspace.store.live_deployment("a") is not None
    await destroy(workspace, "a")
