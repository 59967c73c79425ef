"""Spot engines killed one after the other under streams that go on: nothing may be lost, and nothing may grow.

    python -m tests.chaos.preemptions --seconds 3600

Real processes throughout: a router, a serverless engine, and spot engines that are killed without notice (SIGKILL)
and come back at the same address. Every answer is read by h11 and compared with the engine's undisturbed one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import httpx
import psutil

from tests.backends.local.engine.engine_process import AT_ONCE, EngineProcess
from tests.router.resume.told import told
from tuna_router.auth import sha256_hex

KEY = "chaos-key"
PROMPTS = 24
TOKENS = 48
TOKENS_PER_S = "6"
PACED = ("--decode-tokens-per-s", TOKENS_PER_S, "--prefill-tokens-per-s", "0", "--batch-cost", "0")
SAMPLE_S = 0.5


@dataclass
class Run:
    """What came of one run; the samples are of the router: (open files, resident bytes)."""

    streams: int = 0
    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    resumes: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[int, int]] = field(default_factory=list)
    first_fds: int = 0
    last_fds: int = 0
    cpu_share: float = 0.0

    def quarter(self, number: int) -> tuple[float, float]:
        """The largest count of open files and the median resident bytes in one quarter of the run, 0 to 3."""
        size = len(self.samples) // 4
        part = self.samples[number * size : (number + 1) * size]
        return max(fds for fds, _ in part), statistics.median(rss for _, rss in part)

    def __str__(self) -> str:
        grown = [f"{fds:.0f} fds, {rss / 2**20:.1f} MiB" for fds, rss in map(self.quarter, range(4))]
        return (
            f"{self.streams} streams, {self.kills} kills, {len(self.wrong)} wrong, resumes {self.resumes}, "
            f"router {self.cpu_share:.0%} of a core, fds {self.first_fds} before and {self.last_fds} after; "
            f"by quarters: {'; '.join(grown)}"
        )


async def preempt(
    folder: Path, *, seconds: float, streams: int = 200, replicas: int = 4, every_s: float = 1.0
) -> Run:
    """Keep `streams` streams running for so long, and kill a spot engine every `every_s` seconds."""
    run = Run()
    requests = [_request(number) for number in range(PROMPTS)]
    with EngineProcess(*AT_ONCE) as engine:
        expected = [await asyncio.to_thread(_undisturbed, engine, path, body) for path, body in requests]
    ports = _ports(replicas)
    engines = [EngineProcess(*PACED, "--port", str(port)) for port in ports]
    try:
        with EngineProcess(*PACED) as serverless:
            for each in engines:
                each.__enter__()
            with _router(folder, serverless.url, [each.url for each in engines]) as (process, url):
                load = _Load(url, requests, expected, streams, seconds, every_s)
                await _drive(run, load, process, engines)
    finally:
        for each in engines:
            each.end()
    return run


@dataclass
class _Load:
    """What is sent, what must come back, and for how long; `end` is by time.monotonic()."""

    url: str
    requests: list[tuple[str, bytes]]
    expected: list[tuple[Any, ...]]
    streams: int
    seconds: float
    every_s: float
    end: float = 0.0


async def _drive(run: Run, load: _Load, process: psutil.Process, engines: list[EngineProcess]) -> None:
    headers = {"x-api-key": KEY}
    async with httpx.AsyncClient(base_url=load.url, headers=headers, timeout=60, trust_env=False) as client:
        await _until_ready(client, len(engines))
        run.first_fds = process.num_fds()
        load.end = time.monotonic() + load.seconds
        cpu = sum(process.cpu_times()[:2])
        async with asyncio.TaskGroup() as group:
            for number in range(load.streams):
                group.create_task(_client(run, load, number))
            group.create_task(_watch(run, process, load.end))
            group.create_task(_kill(run, engines, load.every_s, load.end))
        run.cpu_share = (sum(process.cpu_times()[:2]) - cpu) / load.seconds
        run.stats = (await client.get("/router/stats")).json()
        lines = (await client.get("/metrics")).text.splitlines()
        for line in lines:
            if line.startswith("tuna_router_resumes_total{"):
                run.resumes[line.split('"')[1]] = int(float(line.rsplit(" ", 1)[1]))
    # What was kept for later is closed a few seconds after it was last used.
    deadline = time.monotonic() + 20
    while (last := process.num_fds()) > run.first_fds and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    run.last_fds = last


async def _client(run: Run, load: _Load, number: int) -> None:
    """One stream after the other on one connection, until the time is over."""
    host, port = load.url.removeprefix("http://").split(":")
    # Not all in step: breaks shall find streams at every position.
    await asyncio.sleep(number / load.streams * TOKENS / float(TOKENS_PER_S))
    reader, writer = await asyncio.open_connection(host, int(port))
    wire = h11.Connection(h11.CLIENT)
    while time.monotonic() < load.end:
        which = random.randrange(len(load.requests))
        path, body = load.requests[which]
        head = [("host", "x"), ("x-api-key", KEY), ("content-type", "application/json")]
        head.append(("content-length", str(len(body))))
        sent = [wire.send(h11.Request(method="POST", target=path, headers=head)), wire.send(h11.Data(data=body))]
        writer.write(b"".join(filter(None, [*sent, wire.send(h11.EndOfMessage())])))
        run.streams += 1
        said, status = b"", 0
        try:
            async with asyncio.timeout(120):
                while not isinstance(event := wire.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        wire.receive_data(await reader.read(65536))
                    elif isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        said += event.data
            assert status == 200, status
            assert told(said).essence == load.expected[which], "another text"
        except (AssertionError, h11.RemoteProtocolError, OSError, ValueError) as error:
            run.wrong.append(f"{error!r}: {said[-300:]!r}")
            break
        wire.start_next_cycle()
    writer.close()


async def _kill(run: Run, engines: list[EngineProcess], every_s: float, end: float) -> None:
    """Kill the engine that has run for longest, and start it again where it was."""
    up = list(engines)

    async def replace(engine: EngineProcess) -> None:
        await asyncio.to_thread(engine.again)
        up.append(engine)

    async with asyncio.TaskGroup() as group:
        while time.monotonic() + every_s < end:
            began = time.monotonic()
            if up:
                engine = up.pop(0)
                engine.process.kill()
                run.kills += 1
                group.create_task(replace(engine))
            await asyncio.sleep(every_s - (time.monotonic() - began))


async def _watch(run: Run, process: psutil.Process, end: float) -> None:
    while time.monotonic() < end:
        run.samples.append((process.num_fds(), process.memory_info().rss))
        await asyncio.sleep(SAMPLE_S)


async def _until_ready(client: httpx.AsyncClient, spots: int) -> None:
    async with asyncio.timeout(30):
        while True:
            backends = (await client.get("/router/health")).json()["backends"]
            if sum(each["kind"] == "spot" and each["state"] == "READY" for each in backends) == spots:
                return
            await asyncio.sleep(0.05)


def _request(number: int) -> tuple[str, bytes]:
    asked: dict[str, Any] = {
        "model": "tiny", "temperature": 0, "stream": True, "max_tokens": TOKENS - number,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    prompt = f"Tell me of tuna number {number}."
    if number % 2:
        return "/v1/completions", json.dumps({**asked, "prompt": prompt}).encode()
    messages = [{"role": "user", "content": prompt}]
    return "/v1/chat/completions", json.dumps({**asked, "messages": messages}).encode()


def _undisturbed(engine: EngineProcess, path: str, body: bytes) -> tuple[Any, ...]:
    answer = httpx.post(
        engine.url + path, content=body, headers={"content-type": "application/json"}, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    return told(answer.content).essence


def _ports(count: int) -> list[int]:
    """Free ports that no outgoing connection is given: a killed engine must find its own again."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(lowest // 2, lowest)
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)):
                found.add(port)
    return sorted(found)


class _router:
    """A router process over these engines."""

    def __init__(self, folder: Path, serverless: str, spots: list[str]) -> None:
        backends = [{"name": "serverless", "kind": "serverless", "url": serverless}]
        backends += [{"name": f"spot-{n}", "kind": "spot", "url": url} for n, url in enumerate(spots)]
        settings = {
            "backends": backends, "api_key_sha256": [sha256_hex(KEY)], "max_concurrency": 400,
            "probe_interval_s": 0.2, "connect_timeout_s": 2,
            # Who dies so often would soon be left alone: here he shall be asked again at once.
            "cooldown_s": 0.5, "cooldown_max_s": 0.5,
        }  # fmt: skip
        self._config = folder / "router.json"
        self._config.write_text(json.dumps(settings))
        self._card = folder / "port.json"
        self._log = folder / "router.log"

    def __enter__(self) -> tuple[psutil.Process, str]:
        command = [sys.executable, "-m", "tuna_router", "--port", "0", "--port-file", str(self._card)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([*command, "--config", str(self._config)], stderr=log)
        deadline = time.monotonic() + 20
        while not self._card.exists():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return psutil.Process(self._process.pid), json.loads(self._card.read_text())["url"]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(20) == 0, self._log.read_text()[-2000:]
        assert "Traceback" not in self._log.read_text(), self._log.read_text()[-4000:]


def check(run: Run) -> None:
    """What must be true of every run, however long."""
    assert not run.wrong, run.wrong[:3]
    requests = run.stats["requests"]
    assert requests["started"] == requests["finished"] == run.streams
    assert requests["failed"] == requests["cancelled"] == requests["running"] == 0
    for backend in run.stats["backends"]:
        assert backend["started"] == backend["finished"] + backend["cancelled"] + backend["failed"]
        assert backend["running"] == 0
    assert run.last_fds <= run.first_fds
    warm_fds, warm_rss = run.quarter(1)
    fds, rss = run.quarter(3)
    assert fds <= warm_fds * 1.25
    assert rss <= warm_rss + 2 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two kills")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = asyncio.run(preempt(Path(folder), seconds=given.seconds, streams=given.streams, every_s=given.every))
    print(run)
    check(run)


if __name__ == "__main__":
    main()
