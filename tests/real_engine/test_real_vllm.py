"""Real vLLM behind Tuna: one deployment, from the first answer to the last process.

The tests of this file follow one deployment's life, in this order; each can also be run alone.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.backends.local.engine.engine_process import EngineProcess
from tests.backends.local.engine.wire_contract import describe
from tests.real_engine.conftest import SERVICE, Deployed
from tests.real_engine.deployment import MODEL, START_S, Client, Tuna, answers, direct_client, listening, wait_for

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(1200)]

RECORDED = Path(__file__).parents[1] / "backends" / "local" / "engine" / "vllm_0_32_wire.json"
OWN = {"id", "created", "system_fingerprint"}
"""What differs between any two answers, or any two servers."""


def test_serverless_answers_until_spot_has_started(deployed: Deployed) -> None:
    backends = [backend for backend, _ in deployed.first_answers]
    assert backends[0] == "serverless"
    assert [backend for backend, _ in groupby(backends)] in (["serverless"], ["serverless", "spot"])
    backend, answer = deployed.client.chat()
    assert backend == "spot", "`deploy --wait` returns when spot has taken over"
    # The two are separate servers with the same weights, so nobody can tell who answered.
    assert {text for _, text in deployed.first_answers} == {answer.choices[0].message.content}
    assert {engine.side for engine in deployed.tuna.engines()} == {"serverless", "spot"}


def test_an_answer_through_the_router_is_the_engines_own(deployed: Deployed) -> None:
    asked: Any = {"extra_body": {"return_token_ids": True}}
    backend, routed = deployed.client.chat(**asked)
    assert backend == "spot"
    assert len(routed.choices[0].message.content) > 10
    assert routed.usage.completion_tokens == len(routed.choices[0].token_ids) == 24
    for role in ("spot", "serverless"):
        direct = direct_client(deployed.tuna.engine(role)).chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello world"}],
            temperature=0,
            max_tokens=24,
            **asked,
        )
        assert routed.model_dump(exclude=OWN) == direct.model_dump(exclude=OWN)


def test_a_stream_through_the_router_is_the_engines_own(deployed: Deployed) -> None:
    spot = deployed.tuna.engine("spot")
    routed = streamed(deployed.client.openai)
    direct = streamed(direct_client(spot))
    assert routed == direct
    assert routed["text"] == deployed.client.chat()[1].choices[0].message.content
    assert routed["usage"]["completion_tokens"] == 24
    assert routed["finish"] == "length"


def streamed(client: openai.OpenAI) -> dict[str, Any]:
    """A whole stream, independent of how many tokens came in one chunk."""
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello world"}],
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    *deltas, last = chunks
    assert last.choices == []
    assert last.usage is not None
    return {
        "role": deltas[0].choices[0].delta.role,
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in deltas),
        "finish": deltas[-1].choices[0].finish_reason,
        "usage": last.usage.model_dump(),
        "chunks that carry usage": sum(chunk.usage is not None for chunk in chunks),
    }


@pytest.mark.parametrize(
    ("status", "field", "change"),
    [
        (404, "model", {"model": "no-such-model"}),
        (400, "max_tokens", {"max_tokens": -1}),
        (400, "body.max_tokens", {"max_tokens": "many"}),
    ],
)
def test_an_error_of_the_engine_reaches_the_client_as_it_is(
    deployed: Deployed, status: int, field: str, change: dict[str, Any]
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | change
    routed = deployed.client.http.post("chat/completions", json=body)
    url = f"{deployed.tuna.engine('spot').url}/v1/chat/completions"
    direct = httpx.post(url, json=body, timeout=60, trust_env=False)
    assert routed.status_code == direct.status_code == status
    assert routed.json() == direct.json()
    assert routed.json()["error"]["param"] == field
    assert routed.headers["x-tuna-attempts"] == "1", "a client's mistake is not tried again elsewhere"


def test_running_streams_outlive_the_preemption_of_their_replica(deployed: Deployed) -> None:
    spot = deployed.tuna.engine("spot")
    # Short ones, one after another: some always run, and on a busy machine each is done well within the notice.
    load = Load(deployed.client, clients=8, tokens=300)
    wait_for(lambda: len(load.begun) >= 8, 60)
    deployed.tuna.run("local", "preempt", "--service-name", SERVICE, "--notice", "45")
    wait_for(lambda: deployed.client.chat(max_tokens=1)[0] == "serverless", 10)
    streams = load.finish()
    assert [stream for stream in streams if stream.trouble or stream.finish != "length"] == []
    assert {stream.completion_tokens for stream in streams} == {300}
    # By the cloud's own log: on a busy machine the command returns seconds later.
    [struck_at] = [at for at, _, text in deployed.tuna.log("spot") if "preempted with 45 s of notice" in text]
    struck = [s for s in streams if s.backend == "spot" and s.begun_at < struck_at < s.ended_at]
    assert struck, "no stream ran on spot when it was taken away: this has shown nothing"
    assert [s.backend for s in streams if s.begun_at > struck_at + 5 and s.backend != "serverless"] == []
    # The notice over, the whole family of the replica is gone.
    wait_for(lambda: not spot.family(), 90)


@dataclass
class Stream:
    """One streamed chat. Times are Unix seconds; trouble: why it broke off, if it did."""

    begun_at: float
    backend: str = ""
    finish: str | None = None
    completion_tokens: int = 0
    ended_at: float = math.inf
    trouble: str = ""


class Load:
    """Clients that stream one chat after another. `begun`: those whose first text has come."""

    def __init__(self, client: Client, clients: int, tokens: int) -> None:
        self.begun: list[Stream] = []
        self._client = client
        self._tokens = tokens
        self._enough = threading.Event()
        self._streams: list[Stream] = []
        self._threads = [threading.Thread(target=self._talk, args=(n,), daemon=True) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> list[Stream]:
        """Begin no more streams, read those that run to their end, and return all."""
        self._enough.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a stream does not end"
        return self._streams

    def _talk(self, number: int) -> None:
        while not self._enough.is_set():
            stream = Stream(time.time())
            self._streams.append(stream)
            try:
                self._read(stream, f"hello {number}")
            except (openai.OpenAIError, httpx.HTTPError) as exc:
                stream.trouble = repr(exc)
            stream.ended_at = time.time()

    def _read(self, stream: Stream, words: str) -> None:
        raw = self._client.openai.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": words}],
            temperature=0,
            max_tokens=self._tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        stream.backend = raw.headers["x-tuna-backend"]
        for chunk in raw.parse():
            if chunk.usage:
                stream.completion_tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                if choice.delta.content and stream not in self.begun:
                    self.begun.append(stream)
                stream.finish = choice.finish_reason or stream.finish


@pytest.mark.usefixtures("broken_deploy")
def test_the_stand_in_does_on_the_wire_what_real_vllm_does(deployed: Deployed) -> None:
    real = plain(describe(deployed.tuna.engine("serverless").url, MODEL))
    with EngineProcess("--max-model-len", "2048", model=MODEL) as engine:
        stand_in = plain(describe(engine.url, MODEL))
    differences = [
        f"{part}: {name}: vLLM {real[part].get(name)!r}, stand-in {stand_in[part].get(name)!r}"
        for part in real
        for name in real[part].keys() | stand_in[part].keys()
        if real[part].get(name) != stand_in[part].get(name)
    ]
    assert differences == []
    assert real.keys() == stand_in.keys()
    assert real == json.loads(RECORDED.read_text()), "the record that the other tests hold the stand-in to is old"


def plain(description: Any) -> Any:
    """As it is after being written and read."""
    return json.loads(json.dumps(description))


def test_a_killed_server_takes_its_workers_with_it_and_costs_no_request(deployed: Deployed) -> None:
    deployed.client.until_answered_by("spot")
    spot = deployed.tuna.engine("spot")
    assert len(spot.family()) >= 3, "the API server, EngineCore and Worker"
    spot.server.kill()
    backend, answer = deployed.client.chat(max_tokens=4)
    assert (backend, answer.usage.completion_tokens) == ("serverless", 4)
    wait_for(lambda: not spot.family(), 20)
    # Another takes its place.
    wait_for(
        lambda: [e for e in deployed.tuna.engines() if e.server.pid != spot.server.pid and e.side == "spot"], 60
    )


def test_a_destroyed_deployment_leaves_no_process_and_no_port(deployed: Deployed) -> None:
    before = deployed.tuna.processes()
    ports = listening(before)
    assert len(ports) >= 4, "router, cloud, two endpoints, engines"
    deployed.tuna.run("destroy", "--service-name", SERVICE, within=START_S)
    # No `VLLM::` process from the moment that destroy returns; the cloud's own process ends by itself.
    assert deployed.tuna.engines() == []
    assert [p for p in deployed.tuna.processes() if p.name().startswith("VLLM")] == []
    wait_for(lambda: not deployed.tuna.processes(), 60)
    assert [port for port in ports if answers(port)] == []
    assert json.loads(deployed.tuna.run("list", "-o", "json"))["deployments"] == []


def test_an_engine_that_answers_health_but_no_request_is_never_ready(
    broken_deploy: tuple[Tuna, subprocess.Popen[str]],
) -> None:
    tuna, deploy = broken_deploy
    said, told = deploy.communicate(timeout=3 * START_S)
    assert deploy.returncode == 1, said + told
    assert "tuna: the engine for tiny can't start: the engine died at start" in told
    assert told.strip().splitlines()[-1].startswith("hint: ")
    # Each of its servers came up and was asked for a token; none was taken for ready.
    lines = [text for _, _, text in tuna.log("serverless")]
    assert any(line.endswith("Application startup complete.") for line in lines)
    assert any('"POST /v1/completions HTTP/1.1" 500' in line for line in lines)
    assert [line for line in lines if line.endswith(" is ready")] == []
    wait_for(lambda: not tuna.processes(), 60)
    [failed] = json.loads(tuna.run("list", "--status", "failed", "-o", "json"))["deployments"]
    assert failed["name"] == "broken"
    assert os.listdir(tuna.folder / "routers") == [] if (tuna.folder / "routers").exists() else True
