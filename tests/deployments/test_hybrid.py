"""Any provider's serverless beside spot GPUs behind one endpoint: deployed, asked, preempted, destroyed.

The serverless side is the provider's fake behind our adapter; spot, router and engines are real processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.deployments.conftest import Told
from tests.deployments.lives import ask, deploy, destroy, local, parts, router_process, until
from tests.fakes.accounts import ACCOUNTS, NOWHERE, Account
from tuna_nb.deployments.connection import connection
from tuna_nb.deployments.keeping import companion
from tuna_nb.deployments.reconcile import orphans
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.status import status
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import TunaError

pytestmark = pytest.mark.e2e

Make = Callable[..., DeployRequest]


@pytest.fixture(params=sorted(ACCOUNTS))
def account(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> Iterator[Account]:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with ACCOUNTS[request.param](monkeypatch.setenv) as opened:
        opened.backend.poll_s = 0.1  # type: ignore[misc]
        workspace._backends[request.param] = opened.backend
        yield opened


@pytest.fixture
def wanted(account: Account, request_of: Make) -> DeployRequest:
    made = request_of("h", serverless_provider=account.backend.name, gpu=account.gpu)
    return request_of(
        "h",
        serverless_provider=account.backend.name,
        spots_cloud="local",
        gpu=account.gpu,
        options={**made.options, **account.options},
    )


async def stream(workspace: Workspace, tokens: int, begun: asyncio.Event) -> str:
    link = await connection(workspace, workspace.store.deployment("h"))
    body = {"model": link.model, "prompt": "Tell me more", "max_tokens": tokens, "stream": True, "temperature": 0}
    said = ""
    async with (
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
        http.stream("POST", f"{link.base_url}/completions", json=body, headers=link.headers) as answer,
    ):
        assert answer.status_code == 200
        async for piece in answer.aiter_text():
            said += piece
            begun.set()
    return said


async def test_one_endpoint_over_serverless_and_spot_through_a_preemption(
    workspace: Workspace, account: Account, wanted: DeployRequest, told: Told
) -> None:
    others = account.names()
    await deploy(workspace, wanted, told)
    assert await ask(workspace, "h") == "spot"
    now = await status(workspace, workspace.store.deployment("h"))
    assert now.state == "running"
    assert {c.role: c.provider for c in now.components}["serverless"] == account.backend.name
    begun = asyncio.Event()
    streaming = asyncio.create_task(stream(workspace, 400, begun))
    await begun.wait()
    await local(workspace).cloud.preempt(parts(workspace, "h")["spot"].name, notice_s=0)
    said = await streaming
    assert said.rstrip().endswith("[DONE]")
    assert "error" not in said

    async def serverless() -> bool:
        return await ask(workspace, "h") == "serverless"

    await until(serverless)
    await destroy(workspace, "h")
    assert account.names() == others
    assert router_process(workspace, "h") is None


async def test_a_deployment_whose_process_died_is_taken_down_by_the_next(
    workspace: Workspace, account: Account, wanted: DeployRequest
) -> None:
    others = account.names()
    deploying = asyncio.create_task(deploy(workspace, wanted, until_spot=False))

    async def created() -> bool:
        return len(account.names()) > len(others)

    await until(created)
    deploying.cancel()
    with pytest.raises(TunaError):
        await deploying
    # Modal ends an app that was only half made by itself, a moment after nobody works on it any more.
    await until(lambda: account.names() == others)
    found = await orphans(workspace)
    assert [one for one in found.found if one.provider == account.backend.name] == []


async def test_what_the_provider_refuses_is_said_and_leaves_nothing(
    workspace: Workspace, account: Account, wanted: DeployRequest
) -> None:
    from dataclasses import replace

    others = account.names()
    broken = replace(wanted, engine_args="--no-such-flag")
    with pytest.raises(TunaError) as refused:
        await deploy(workspace, broken)
    assert "can't start" in refused.value.message or "no-such-flag" in refused.value.message
    assert account.names() == others
    assert workspace.store.deployment("h").state == "failed"


async def test_tokens_that_expire_are_renewed_by_the_process_beside_the_router(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, request_of: Make
) -> None:
    """Cloud Run's identity tokens, minted anew with the credentials of whoever deployed."""
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with ACCOUNTS["cloudrun"](monkeypatch.setenv) as account:
        account.backend.poll_s = 0.1  # type: ignore[misc]
        workspace._backends["cloudrun"] = account.backend
        await deploy(
            workspace, request_of("h", serverless_provider="cloudrun", spots_cloud="local"), until_spot=False
        )
        log = companion.log_of(workspace.settings, workspace.store.deployment("h").id)
        await until(lambda: log.exists() and "serverless: renewed" in log.read_text())
        assert await ask(workspace, "h")
        assert "Bearer" not in log.read_text()
        await destroy(workspace, "h")
