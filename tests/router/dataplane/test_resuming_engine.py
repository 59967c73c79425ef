"""Streams of a real engine process, cut at every token on their way through the router."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.backends.local.engine.engine_process import AT_ONCE, EngineProcess

from ..conftest import Running, StartRouter
from ..resume.told import Told, told

TOKENS = 40
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module", params=["ascii", "raw bytes", "thinking"])
def engine(request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    flags = ["--allow-faults"]
    if request.param == "raw bytes":
        flags.append("--raw-bytes")
    if request.param == "thinking":
        flags += ["--reasoning-parser", "deepseek_r1"]
    with EngineProcess(*AT_ONCE, *flags) as running:
        yield running


async def stream(router: Running, path: str, **more: Any) -> Told:
    prompt = {"messages": [{"role": "user", "content": "hello world"}]} if path == CHAT else {"prompt": "The tuna"}
    body = {"model": "tiny", **prompt, "temperature": 0, "stream": True, "max_tokens": TOKENS}
    body["stream_options"] = {"include_usage": True}
    answer = await router.client.post(path, json=body | more)
    assert answer.status_code == 200, answer.text
    return told(answer.content)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("kind", ["reset", "cut", "error_event", "end_without_done"])
async def test_a_greedy_stream_cut_at_any_token_is_told_as_if_it_had_not_been(
    engine: EngineProcess, start_router: StartRouter, path: str, kind: str
) -> None:
    router = await start_router(engine.url, max_attempts=8)
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as order:
        undisturbed = await stream(router, path)
        assert undisturbed.usages[0]["completion_tokens"] == TOKENS
        for cut in range(1, TOKENS + 1):
            fault = {"kind": kind, "after_tokens": cut, "times": 1}
            assert (await order.post("/-/faults", json=fault)).is_success
            said = await stream(router, path)
            assert said.essence == undisturbed.essence, cut
            assert len(said.names) == 1, cut
            assert (await order.get("/-/faults")).json() == [], cut
    core = router.router.core
    assert core.meter.requests.finished == core.meter.requests.started == TOKENS + 1
    assert core.meter.broken_streams == 0
    resumes = dict(core.counts.resumes)
    assert set(resumes) <= {("exact",), ("closed",)}
    assert sum(resumes.values()) >= TOKENS - 1


async def test_fifty_streams_at_once_are_cut_together(engine: EngineProcess, start_router: StartRouter) -> None:
    router = await start_router(engine.url, max_attempts=8)
    undisturbed = await stream(router, CHAT)
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as order:
        fault = {"kind": "reset", "after_tokens": 7, "times": 70}
        assert (await order.post("/-/faults", json=fault)).is_success
        said = await asyncio.gather(*(stream(router, CHAT) for _ in range(50)))
        assert all(each.essence == undisturbed.essence for each in said)
        assert (await order.get("/-/faults")).json() == []
