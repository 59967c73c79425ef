"""Programs that were not written here, unchanged, through a router process: the openai package, httpx, curl, load tools.

Behind the router are two engine processes; whatever a client gets is held against what the engine itself gives it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.backends.local.engine.engine_process import AT_ONCE, EngineProcess
from tuna_router.auth import sha256_hex

from .backends import Backend, Seen, Wire
from .conftest import KEY, StartBackend
from .resume.told import Told, told
from .test_process import started

SLOW_KEY = "key-of-one-request-a-minute"
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello world"}],
    "max_tokens": 40,
    "temperature": 0,
}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
OWN = {"id", "created", "system_fingerprint"}
"""What differs between any two answers."""


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A router process and the engines behind it; streams begin on `first`."""

    url: str
    first: EngineProcess
    second: EngineProcess

    def break_next_stream(self, times: int = 1) -> None:
        """Whichever engine gets it resets it in the middle, and so does the other with its next one."""
        for engine in (self.first, self.second):
            order = {"kind": "reset", "after_tokens": 7, "times": times}
            httpx.post(f"{engine.url}/-/faults", json=order, trust_env=False).raise_for_status()

    def broken(self, times: int = 1) -> int:
        """How many streams broke since; the rest of the orders is taken back."""
        left = 0
        for engine in (self.first, self.second):
            orders = httpx.get(f"{engine.url}/-/faults", trust_env=False).json()
            left += sum(order["times"] for order in orders)
            httpx.delete(f"{engine.url}/-/faults", trust_env=False)
        return 2 * times - left


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("clients")
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(EngineProcess(*AT_ONCE, "--allow-faults", "--max-model-len", "512"))
            for _ in range(2)
        )
        config = {
            "backends": [
                {"name": "first", "kind": "serverless", "url": first.url},
                {"name": "second", "kind": "serverless", "url": second.url, "weight": 0},
            ],
            "api_key_sha256": [sha256_hex(KEY)],
            "keys": [{"name": "slow", "sha256": sha256_hex(SLOW_KEY), "requests_per_minute": 1}],
            "cooldown_s": 0.05,
        }
        path = folder / "router.json"
        path.write_text(json.dumps(config))
        router = stack.enter_context(started(folder, "--config", str(path)))
        yield Deployed(router.url, first, second)


@pytest.fixture(scope="module")
def undisturbed(deployed: Deployed) -> Told:
    """The stream of STREAM, from the engine itself."""
    answer = httpx.post(f"{deployed.first.url}/v1/chat/completions", json=STREAM, trust_env=False)
    return told(answer.content)


def client_of(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


def test_the_openai_client_gets_the_engines_own_answers(deployed: Deployed) -> None:
    through, direct = client_of(deployed.url), client_of(deployed.first.url)
    for client in (through, direct):
        assert [model.id for model in client.models.list()] == ["tiny"]
    answers = [client.chat.completions.create(**CHAT).model_dump(exclude=OWN) for client in (through, direct)]
    assert answers[0] == answers[1]
    assert answers[0]["usage"]["completion_tokens"] == 40
    texts = [
        client.completions.create(model="tiny", prompt=["one", "two"], max_tokens=5, temperature=0).model_dump(
            exclude=OWN
        )
        for client in (through, direct)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]["choices"]) == 2


@pytest.mark.parametrize("broken", [False, True])
def test_the_openai_client_streams(deployed: Deployed, undisturbed: Told, broken: bool) -> None:
    if broken:
        deployed.break_next_stream()
    chunks = list(client_of(deployed.url).chat.completions.create(**STREAM))
    assert deployed.broken() >= 1 if broken else True
    _is_whole(chunks, undisturbed)


@pytest.mark.parametrize("broken", [False, True])
async def test_the_asynchronous_openai_client_streams(deployed: Deployed, undisturbed: Told, broken: bool) -> None:
    if broken:
        deployed.break_next_stream()
    async with openai.AsyncOpenAI(base_url=f"{deployed.url}/v1", api_key=KEY, max_retries=0) as client:
        chunks = [chunk async for chunk in await client.chat.completions.create(**STREAM)]
        if not broken:
            answers = await asyncio.gather(*(client.chat.completions.create(**CHAT) for _ in range(20)))
            assert {answer.choices[0].message.content for answer in answers} == {undisturbed.text}
    assert deployed.broken() >= 1 if broken else True
    _is_whole(chunks, undisturbed)


def _is_whole(chunks: list[Any], undisturbed: Told) -> None:
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *deltas, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == undisturbed.text
    assert [chunk.choices[0].finish_reason for chunk in deltas][-1] == undisturbed.finishes[0][0]
    assert last.choices == []
    usage = last.usage
    assert [(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)] == [
        tuple(one.values()) for one in undisturbed.usages
    ]
    assert all(not getattr(chunk.choices[0], "token_ids", None) for chunk in deltas)


def test_a_client_that_leaves_a_stream_leaves_nothing_behind(deployed: Deployed) -> None:
    client = client_of(deployed.url)
    with client.chat.completions.create(**STREAM) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(**CHAT)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40


@pytest.mark.parametrize(
    ("error", "status", "change"),
    [
        (openai.AuthenticationError, 401, {"key": "wrong"}),
        (openai.NotFoundError, 404, {"model": "no-such-model"}),
        (openai.BadRequestError, 400, {"max_tokens": -1}),
        (openai.BadRequestError, 400, {"temperature": -3}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_exceptions_that_the_openai_client_has_for_them(
    deployed: Deployed, error: type[openai.APIStatusError], status: int, change: dict[str, Any], stream: bool
) -> None:
    change = dict(change)
    client = client_of(deployed.url, change.pop("key", KEY))
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{**(STREAM if stream else CHAT), **change})
    assert raised.value.status_code == status
    assert raised.value.body["message"]  # type: ignore[index]
    assert raised.value.request_id


def test_a_limit_is_a_rate_limit_error_that_says_when_to_come_back(deployed: Deployed) -> None:
    client = client_of(deployed.url, SLOW_KEY)
    assert client.chat.completions.create(**CHAT).usage is not None
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(**CHAT)
    assert raised.value.code == "requests_per_minute"
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_of_the_openai_client_go_there_and_their_calls_come_back(
    tmp_path: Path, start_backend: StartBackend, stream: bool
) -> None:
    function = {"name": "weather", "arguments": '{"city": "Bergen"}'}
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        told = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        return b"data: " + json.dumps(told).encode() + b"\n\n"

    async def call(wire: Wire, seen: Seen) -> None:
        if seen.json().get("stream"):
            await wire.stream_head()
            await wire.chunk(chunk({"role": "assistant", "content": None}))
            await wire.chunk(
                chunk(
                    {
                        "tool_calls": [
                            {"index": 0, "id": "t", "type": "function", "function": {**function, "arguments": ""}}
                        ]
                    }
                )
            )
            for piece in ('{"city":', ' "Bergen"}'):
                await wire.chunk(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
            await wire.chunk(chunk({}, "tool_calls"))
            await wire.done()
            return
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "t", "type": "function", "function": function}],
        }
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await wire.json({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    backend: Backend = await start_backend(call)

    def ask() -> Any:
        with started(tmp_path, "--serverless", backend.url, API_KEY=KEY) as router:
            completions = client_of(router.url).chat.completions
            if not stream:
                return completions.create(**CHAT, tools=tools).choices[0]
            with client_of(router.url).chat.completions.stream(**CHAT, tools=tools) as events:
                return events.get_final_completion().choices[0]

    choice = await asyncio.to_thread(ask)
    assert choice.finish_reason == "tool_calls"
    [made] = choice.message.tool_calls
    assert (made.id, made.function.name, json.loads(made.function.arguments)) == (
        "t",
        "weather",
        {"city": "Bergen"},
    )
    assert backend.seen[0].json()["tools"] == tools


@pytest.mark.parametrize("broken", [False, True])
async def test_httpx_streams(deployed: Deployed, undisturbed: Told, broken: bool) -> None:
    if broken:
        deployed.break_next_stream()
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        httpx.AsyncClient(base_url=deployed.url, headers=headers, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=STREAM) as answer,
    ):
        stream = b"".join([piece async for piece in answer.aiter_raw()])
    assert deployed.broken() >= 1 if broken else True
    assert told(stream).essence == undisturbed.essence


def curl(*flags: str, sent: str = "") -> subprocess.CompletedProcess[str]:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20", *flags]
    return subprocess.run(command, input=sent, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_curl_streams(deployed: Deployed, undisturbed: Told, version: str, broken: bool) -> None:
    if broken:
        deployed.break_next_stream()
    key = ["-H", f"Authorization: Bearer {KEY}", "-H", "content-type: application/json"]
    done = curl("-N", version, *key, "-d", "@-", f"{deployed.url}/v1/chat/completions", sent=json.dumps(STREAM))
    assert (done.returncode, done.stderr) == (0, "")
    assert deployed.broken() >= 1 if broken else True
    assert told(done.stdout.encode()).essence == undisturbed.essence


def test_curl_asks_for_heads_and_several_things_on_one_connection_and_is_told_of_errors(deployed: Deployed) -> None:
    models, key = f"{deployed.url}/v1/models", ["-H", f"x-api-key: {KEY}"]
    done = curl("-v", *key, models, models)
    assert done.returncode == 0
    assert done.stdout.count('"tiny"') >= 2
    assert re.search("Re-using existing connection", done.stderr)
    assert curl("-I", f"{deployed.url}/router/health").stdout.startswith("HTTP/1.1 200")
    refused = curl("--fail", "-H", "x-api-key: wrong", models)
    assert (refused.returncode, "401" in refused.stderr) == (22, True)
    # A body that curl asks leave for (Expect: 100-continue), and a chunked one.
    long = json.dumps({**CHAT, "messages": [{"role": "user", "content": "hello " * 400_000}]})
    for more in (["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"]):
        flags = [*key, *more, "-w", "%{http_code}", "-d", "@-", "-o", "/dev/null"]
        assert curl(*flags, f"{deployed.url}/v1/chat/completions", sent=long).stdout == "400"  # by the engine


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("tool", ["wrk", "ab"])
def test_a_load_tool_sees_no_error(deployed: Deployed, tmp_path: Path, tool: str, broken: bool) -> None:
    if shutil.which(tool) is None:
        package = {"wrk": "wrk", "ab": "apache2-utils"}[tool]
        pytest.skip(f"there is no {tool} (Debian's package {package})")
    if broken:
        deployed.break_next_stream(times=5)
    url, body = f"{deployed.url}/v1/chat/completions", json.dumps(STREAM)
    if tool == "wrk":
        script = tmp_path / "post.lua"
        lines = ['wrk.method = "POST"', f"wrk.body = {json.dumps(body)}", f'wrk.headers["x-api-key"] = "{KEY}"']
        lines.append('wrk.headers["content-type"] = "application/json"')
        script.write_text("\n".join(lines))
        command = ["wrk", "-t", "1", "-c", "8", "-d", "2s", "-s", str(script), url]
    else:
        # An HTTP/1.0 client that keeps its connections where it may.
        sent = tmp_path / "body.json"
        sent.write_text(body)
        command = ["ab", "-q", "-k", "-l", "-n", "200", "-c", "8", "-p", str(sent), "-T", "application/json"]
        command += ["-H", f"x-api-key: {KEY}", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert deployed.broken(5) >= 5 if broken else True
    assert "Non-2xx" not in done.stdout
    if tool == "wrk":
        assert "Socket errors" not in done.stdout
        assert int(re.search(r"(\d+) requests in", done.stdout)[1]) > 20  # type: ignore[index]
    else:
        assert re.search(r"Complete requests: +200\b", done.stdout)
        assert re.search(r"Failed requests: +0\b", done.stdout)
