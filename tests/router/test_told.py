"""What the data plane tells of every request: dollars, tokens, retries, resumes, times, log lines, events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tuna_router.auth import sha256_hex
from tuna_router.told.access_log import AccessLog

from .backends import Backend, Seen, Wire
from .conftest import KEY, Running, StartBackend, StartRouter, until


def pair(serverless: Backend, spot: Backend, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": kind, "kind": kind, "url": backend.url, "price_per_hour_usd": 3600, **more}
        for kind, backend in (("serverless", serverless), ("spot", spot))
    ]


async def breaks_after_one_token(wire: Wire, seen: Seen) -> None:
    await wire.stream_head()
    await wire.token("one")
    await asyncio.sleep(0.01)
    wire.reset()


async def fails(wire: Wire, seen: Seen) -> None:
    await wire.json({"error": {"message": "out of order"}}, 500)


async def metrics(router: Running) -> dict[tuple[str, ...], float]:
    text = (await router.client.get("/metrics")).text
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_key_pays_its_share_and_uses_up_its_tokens(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def slowly(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.02)
        await wire.json({"choices": [{"text": "hi"}], "usage": {"prompt_tokens": 30, "completion_tokens": 20}})

    backend = await start_backend(slowly)
    entry = {"name": "a", "kind": "serverless", "url": backend.url, "price_per_hour_usd": 3600}
    key = {"name": "alice", "sha256": sha256_hex("alice"), "tokens_per_minute": 50}
    router = await start_router(backends=[entry], keys=[key])
    headers = {"authorization": "Bearer alice"}
    first = await router.client.post("/v1/completions", json={"prompt": "p"}, headers=headers)
    assert first.headers["x-ratelimit-limit-tokens"] == "50"
    live = router.router.core.guard.find(b"alice")
    assert live is not None
    assert 0.02 <= live.spent.total_usd < 5  # a dollar a second
    assert (live.prompt_tokens, live.completion_tokens) == (30, 20)
    second = await router.client.post("/v1/completions", json={"prompt": "p"}, headers=headers)
    assert second.status_code == 429
    cost = router.router.core.ledger.backends["a"]
    assert cost.requests_usd == live.spent.total_usd


async def test_a_failed_attempt_is_paid_for_too(start_backend: StartBackend, start_router: StartRouter) -> None:
    router = await start_router(backends=pair(await start_backend(), await start_backend(fails)))
    await until(lambda: router.state() == "READY")
    assert (await router.complete()).status_code == 200
    ledger = router.router.core.ledger
    assert ledger.backends["spot"].requests_usd > 0
    found = await metrics(router)
    assert found["tuna_router_retries_total", "backend=spot", "reason=status 500"] == 1


async def test_a_stream_that_was_continued_is_counted_and_timed(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def slowly(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token(" two")
        await asyncio.sleep(0.02)
        await wire.token(" three", "stop")
        await wire.done()

    router = await start_router(await start_backend(slowly), await start_backend(breaks_after_one_token))
    answer = await router.complete(stream=True, stream_options={})
    assert "stream_broken" not in answer.text
    found = await metrics(router)
    assert found["tuna_router_resumes_total", "outcome=text"] == 1
    assert found["tuna_router_retries_total", "backend=spot", "reason=broken stream"] == 1
    assert found["tuna_router_inter_token_seconds_count", "backend=serverless"] >= 1
    assert router.tally.finished == 1


async def test_every_token_that_passes_is_timed(start_backend: StartBackend, start_router: StartRouter) -> None:
    async def tells(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for number in range(600):
            await wire.event({"id": "c", "choices": [{"text": f"{number} ", "finish_reason": None}]})
            await asyncio.sleep(0)
        await wire.event({"id": "c", "choices": [{"text": "end", "finish_reason": "stop"}]})
        await wire.done()

    router = await start_router(await start_backend(tells))
    answer = await router.complete(stream=True)
    assert answer.text.count("data: {") == 601
    (histogram,) = router.router.core.counts.inter_token.values()
    reads = histogram.count
    assert 1 <= reads <= 602
    assert router.tally.completion_tokens_estimated == 601


async def test_the_log_has_a_line_for_each_request_however_it_ended(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    path = tmp_path / "access.log"
    router = await start_router(await start_backend(), await start_backend(breaks_after_one_token))
    log = router.router.core.access_log = AccessLog(str(path), as_json=True)
    await router.complete(stream=True)
    await router.client.post("/v1/completions?secret=1", json={"prompt": "hush"}, headers={"x-request-id": "r-1"})
    await router.client.get("/x", headers={"authorization": "Bearer wrong"})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    streamed, whole, refused = lines
    assert (streamed["backend"], streamed["resumes"], streamed["outcome"]) == ("serverless", 1, "finished")
    assert (whole["request_id"], whole["path"], whole["status"]) == ("r-1", "/v1/completions", 200)
    assert whole["bytes"] > 0
    assert whole["ttft_ms"] is not None
    assert (refused["status"], refused["key"], refused["outcome"]) == (401, None, "refused")
    text = path.read_text()
    assert "secret" not in text
    assert "hush" not in text
    assert KEY not in text


async def test_what_the_client_did_wrong_has_its_status_in_the_log(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    path = tmp_path / "access.log"
    router = await start_router(await start_backend(), body_limit_bytes=1000)
    log = router.router.core.access_log = AccessLog(str(path), as_json=True)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * 500

    answer = await router.client.post("/v1/completions", content=pieces())
    log.close()
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert answer.status_code == line["status"] == 413


async def test_an_open_circuit_is_an_event(start_backend: StartBackend, start_router: StartRouter) -> None:
    router = await start_router(await start_backend(), await start_backend(fails))
    async with router.client.stream("GET", "/router/events?snapshots=no") as events:
        for _ in range(3):
            await router.complete()
        async with asyncio.timeout(5):
            lines = events.aiter_lines()
            async for line in lines:
                if line == "event: breaker":
                    break
            told = json.loads((await anext(lines)).removeprefix("data: "))
    assert (told["backend"], told["circuit"]) == ("spot", "OPEN")


async def test_malformed_requests_are_counted_by_reason(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend())
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
    await reader.read()
    writer.close()
    assert (await metrics(router))["tuna_router_rejected_total", "reason=bad_request"] == 1


async def test_the_keys_header_lines_are_on_every_kind_of_answer(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    key = {"name": "bob", "sha256": sha256_hex("bob"), "requests_per_minute": 60}
    router = await start_router(await start_backend(), keys=[key])
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{router.port}", headers={"x-api-key": "bob"}, trust_env=False
    )
    async with client:
        for stream in (False, True):
            answer = await client.post("/v1/completions", json={"prompt": "p", "stream": stream})
            assert answer.headers["x-ratelimit-limit-requests"] == "60"


async def test_what_is_kept_for_a_resume_is_counted_while_the_stream_runs(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    go_on = asyncio.Event()

    async def waits(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await go_on.wait()
        await wire.token("two", "stop")
        await wire.done()

    router = await start_router(await start_backend(waits))
    reader, writer = await router.raw(b'{"prompt":"p","stream":true}')
    await reader.readuntil(b"one")
    assert (await metrics(router))["tuna_router_resume_bytes",] > 10
    go_on.set()
    await reader.readuntil(b"[DONE]")
    assert (await metrics(router))["tuna_router_resume_bytes",] == 0
    writer.close()
