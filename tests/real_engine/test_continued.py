"""Streams of real vLLM that break off and are continued on another real vLLM: the client's is the undisturbed one.

Two engines behind a router process. A reset is tried after each event of a stream; what costs an engine's restart
strikes many streams at once, each at another token. TUNA_TEST_EXHAUSTIVE=1 strikes both models in every way.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real_engine.conftest import Models
from tests.real_engine.cutter import Cutter, Plan
from tests.real_engine.deployment import MODEL
from tests.real_engine.vllm_pair import MOST_AT_ONCE, Pair, Vllm
from tests.router.conftest import until
from tests.router.resume.told import Told, told
from tests.router.test_process import started
from tuna_router.app import Router
from tuna_router.fleet.live import LiveBackend
from tuna_router.serving import Server, bind
from tuna_router.settings import parse_settings

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(1200)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROMPT = "hello world, the quick brown fox jumps over the lazy dog"
TOKENS = 40
LONG = 160
"""Of 80 streams that begin at once none is done when all have had 40."""
LONGEST = 400
AT_ONCE = 32
NEVER = "no such words"
CORE, TOLD = "the engine core is killed", "it is told to end"
ENDS = {
    "the worker is killed": lambda engine: engine.part("Worker").kill(),
    CORE: lambda engine: engine.part("EngineCore").kill(),
    "all its processes are killed": lambda engine: os.killpg(engine.process.pid, signal.SIGKILL),
    TOLD: lambda engine: engine.process.send_signal(signal.SIGTERM),
}
EXHAUSTIVE = bool(os.environ.get("TUNA_TEST_EXHAUSTIVE"))


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest, vllm_python: Path, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two engines with the model that the parameter names."""
    model = models.good if request.param == "ascii" else models.raw
    two = Pair(vllm_python, model, tmp_path_factory.mktemp("pair"))
    try:
        yield two
    finally:
        two.end()


on_both = pytest.mark.parametrize("pair", ["ascii", "raw bytes"], indirect=True)
on_ascii = pytest.mark.parametrize("pair", ["ascii"], indirect=True)


@contextmanager
def router(folder: Path, *backends: Mapping[str, Any], **settings: Any) -> Iterator[str]:
    """A router process over backends; its address."""
    config = folder / "router.json"
    config.write_text(json.dumps({"backends": backends, "max_concurrency": 500, "max_queue": 500, **settings}))
    with started(folder, "--no-auth", "--config", str(config)) as process:
        yield process.url


def serverless(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "serverless", "url": url, **more}


def client_of(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits)


def request_of(path: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = (
        {"messages": [{"role": "user", "content": PROMPT}]} if path == CHAT else {"prompt": PROMPT}
    )
    fixed = {"model": MODEL, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    return {**fixed, **prompt, "max_tokens": TOKENS, **fields}


@dataclass(frozen=True)
class Wanted:
    """A request and its undisturbed answer, from the engine itself."""

    path: str
    body: dict[str, Any]
    answer: Told
    events: int

    def is_told_by(self, stream: bytes) -> str:
        """Empty, or what of a stream is not as it should be."""
        try:
            said = told(stream)
        except (AssertionError, ValueError) as error:
            return f"not well formed: {error}"
        if said.essence != self.answer.essence:
            return f"{said.essence} is not {self.answer.essence}"
        if len(said.names) != 1:
            return f"several answers in one: {said.names}"
        if "return_token_ids" in self.body:
            return "" if said.ids == self.answer.ids else f"ids {said.ids} are not {self.answer.ids}"
        return "token ids that nobody asked for" if re.search(rb'token_ids":\s*\[', stream) else ""


async def wanted(engine: Vllm, tokens: int = TOKENS) -> list[Wanted]:
    """Chat and completions, each without `stop`, with one that ends it near its end, and with token ids."""
    found = []
    async with client_of(engine.url) as client:

        async def ask(path: str, **fields: Any) -> Wanted:
            body = request_of(path, max_tokens=tokens, **fields)
            answer = await client.post(path, json=body)
            return Wanted(path, body, told(answer.content), answer.content.count(b"\n\n"))

        for path in (CHAT, TEXT):
            plain = await ask(path)
            assert plain.answer.usages[0]["completion_tokens"] == tokens
            words = last_new_words(plain.answer.text)
            stopped = await ask(path, stop=[words, NEVER])
            if words != NEVER:
                assert stopped.answer.finishes == [("stop", words)]
                assert len(stopped.answer.text) < len(plain.answer.text)
            found += [plain, stopped, await ask(path, return_token_ids=True)]
    return found


def last_new_words(text: str) -> str:
    """The last three letters that a text has not had before, so that `stop` ends it there."""
    for at in range(len(text) - 3, 0, -1):
        words = text[at : at + 3]
        if text.find(words) == at and words.isprintable() and "\ufffd" not in words:
            return words
    return NEVER


async def streamed(client: httpx.AsyncClient, want: Wanted, request_id: str) -> bytes:
    answer = await client.post(want.path, json=want.body, headers={"x-request-id": request_id})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.content


@on_both
async def test_a_stream_that_is_reset_after_any_event_is_whole_for_its_client(pair: Pair, tmp_path: Path) -> None:
    first, second = await asyncio.to_thread(pair.both)
    plan = Plan()
    troubles, never, cuts, began = [], [], 0, time.monotonic()
    async with Cutter(first.port, plan) as one, Cutter(second.port, plan) as other:
        with router(tmp_path, serverless("a", one.url), serverless("b", other.url)) as url:
            async with client_of(url) as client:
                places = asyncio.Semaphore(AT_ONCE)

                async def cut(number: int, want: Wanted, after: int) -> None:
                    for attempt in range(10):
                        name = f"cut-{number}-after-{after}-{attempt}"
                        plan.cuts[name] = after
                        async with places:
                            trouble = want.is_told_by(await streamed(client, want, name))
                        if trouble:
                            troubles.append((want.body, after, trouble))
                        if name not in plan.cuts:
                            return
                        # A busy vLLM tells several tokens in one event: this answer had fewer of them.
                        del plan.cuts[name]
                    never.append((number, after))

                jobs = [
                    cut(number, want, after)
                    for number, want in enumerate(await wanted(second))
                    for after in range(want.events)
                ]
                cuts = len(jobs)
                await asyncio.gather(*jobs)
                stats = (await client.get("/router/stats")).json()
    assert troubles == [], f"{len(troubles)} of {cuts} streams"
    assert never == [], "these were not cut"
    print(f"\n{cuts} streams reset in {time.monotonic() - began:.0f} s", stats["requests"], stats.get("resumes"))


@on_both
async def test_streams_of_an_engine_that_ends_are_whole_for_their_clients(
    pair: Pair, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.node.callspec.params["pair"]
    for end in ENDS:
        if EXHAUSTIVE or (model == "raw bytes") == (end == CORE):
            folder = tmp_path / end.replace(" ", "-")
            folder.mkdir()
            try:
                await strike(pair, end, folder)
            finally:
                pair.replace()


async def strike(pair: Pair, end: str, folder: Path) -> None:
    """Streams of one engine, each at another token when it ends, and the other engine."""
    victim, survivor = await asyncio.to_thread(pair.both)
    wants = await wanted(survivor, tokens=LONG)
    plan = Plan()
    silence_s = 30 if end == TOLD else 120  # vLLM 0.32 leaves its streams open and silent when it is told to end
    async with Cutter(victim.port, plan) as before:
        backends = serverless("victim", before.url), serverless("survivor", survivor.url, weight=0)
        with router(folder, *backends, stream_idle_timeout_s=silence_s) as url:
            async with client_of(url) as client:
                # Two streams end after each number of events that one may have had.
                plan.holds = {str(n): n // 2 + 1 for n in range(2 * TOKENS)}
                running = [
                    asyncio.create_task(streamed(client, wants[n % len(wants)], str(n))) for n in range(2 * TOKENS)
                ]
                # With `stop` a few are too short for that when a busy vLLM tells several tokens in one event.
                await until(
                    lambda: all(
                        plan.began(str(n), plan.holds[str(n)]) or task.done() for n, task in enumerate(running)
                    ),
                    120,
                )
                struck = sum(not task.done() for task in running)
                ENDS[end](victim)
                answers = await asyncio.gather(*running)
                stats = (await client.get("/router/stats")).json()
    troubles = [
        (plan.events.get(str(n)), wants[n % len(wants)].body, trouble)
        for n, answer in enumerate(answers)
        if (trouble := wants[n % len(wants)].is_told_by(answer))
    ]
    print(
        f"\n{struck} of {len(running)} streams, {end}, at {sorted(count[0] for count in plan.events.values())} tokens of the engine"
    )
    assert troubles == [], f"{end}: {len(troubles)} of {len(running)} streams"
    assert {b["name"]: b["finished"] for b in stats["backends"]}["survivor"] == struck >= TOKENS


@asynccontextmanager
async def watched(spot: str, serverless_url: str) -> AsyncIterator[tuple[LiveBackend, str]]:
    """A router in this process: its READY spot backend, and its address."""
    backends = [{"name": "spot", "kind": "spot", "url": spot}, serverless("serverless", serverless_url)]
    settings = {"backends": backends, "max_concurrency": 500, "metrics_interval_s": 0.1, "overflow_wait_s": 600}
    routing = Router(parse_settings(settings), open_door=True)
    sock = bind("127.0.0.1", 0)
    server = Server(routing, 2)
    await routing.start()
    serving = asyncio.create_task(server.serve(sock))
    try:
        backend = routing.core.fleet["spot"]
        await until(lambda: backend.state_name == "READY", 60)
        yield backend, f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.stop()
        server.stop()
        await serving
        await routing.stop()


@on_ascii
async def test_the_length_of_vllms_queue_is_known_to_the_router(pair: Pair) -> None:
    first, second = await asyncio.to_thread(pair.both)
    async with watched(first.url, second.url) as (spot, url), client_of(url) as client:
        want = Wanted(TEXT, request_of(TEXT, max_tokens=LONG), Told(), 0)
        running = [asyncio.create_task(streamed(client, want, str(n))) for n in range(MOST_AT_ONCE + 20)]
        await until(lambda: bool(spot.waiting), 60)
        assert spot.waiting is not None
        assert 0 < spot.waiting <= 20
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await until(lambda: spot.in_flight == 0, 10)


@on_ascii
async def test_streams_move_before_their_machine_is_taken_away(pair: Pair) -> None:
    first, second = await asyncio.to_thread(pair.both)
    wants = [want for want in await wanted(second, tokens=LONGEST) if "stop" not in want.body]
    plan = Plan()
    async with (
        Cutter(first.port, plan) as before,
        watched(before.url, second.url) as (spot, url),
        client_of(url) as client,
    ):
        await client.get("/router/config")  # the first time it takes longer than a stream
        running = [asyncio.create_task(streamed(client, want, str(n))) for n, want in enumerate(wants)]
        await until(lambda: all(plan.began(str(n)) for n in range(len(wants))), 60)
        told_of = await client.post("/router/spot-replicas/spot/notice", json={"seconds": 2, "last": True})
        assert told_of.status_code == 200, told_of.text
        await until(lambda: spot.in_flight == 0, 10)
        await until(lambda: running_at(first) == 0, 10)
        answers = await asyncio.gather(*running)
        tokens = (await client.get("/router/stats")).json()["backends"]
        assert {b["name"]: b["finished"] for b in tokens} == {"spot": 0, "serverless": len(wants)}
    assert [want.is_told_by(answer) for want, answer in zip(wants, answers, strict=True)] == [""] * len(wants)


def running_at(engine: Vllm) -> float:
    told_of = httpx.get(f"{engine.url}/metrics", trust_env=False).text
    [line] = [line for line in told_of.splitlines() if line.startswith("vllm:num_requests_running{")]
    return float(line.rsplit(" ", 1)[1])
