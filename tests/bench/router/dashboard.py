"""What one live dashboard costs the router: its CPU at 200 paced streams with and without a reader of the events.

    python -m tests.bench.router.dashboard [--streams 200] [--interval-ms 50] [--rounds 8] [--window-s 4]

One run: windows with a reader alternate with windows without; the medians are of their pairs, in per cent of a
core, and the ratio is of the two. Below it the cost of the snapshots themselves, which the noise of a busy
machine does not reach: the same router's figures, taken in this process. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.bench.router.beside_nginx import KEY, answers, core, cpu_s, free_ports, started
from tuna_router.app import Router
from tuna_router.settings import parse_settings
from tuna_router.told.events import Listener


@contextlib.contextmanager
def listening(port: int, folder: Path) -> Iterator[None]:
    """A reader in a process of its own, as a browser is."""
    request = f"GET /router/events HTTP/1.1\\r\\nhost: x\\r\\nx-api-key: {KEY}\\r\\n\\r\\n"
    words = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'{request}')\n"
    words += "while s.recv(65536): pass"
    with (folder / "log").open("ab") as log:
        reader = subprocess.Popen([*core(1), sys.executable, "-c", words], stdout=log, stderr=log)
    try:
        yield
    finally:
        reader.kill()
        reader.wait(10)


def window(pid: int, seconds: float) -> float:
    """Per cent of a core that a process used."""
    before, begun = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_s(pid) - before) / (time.monotonic() - begun)


def running(port: int) -> int:
    """Requests in flight."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/router/stats", headers={"x-api-key": KEY})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.load(answer)["in_flight"])


class Sink(Listener):
    """Takes everything."""

    wants_snapshots = True

    def push(self, frame: bytes) -> None:
        self.last = frame

    def end(self) -> None: ...


async def snapshots_us(backends: int, streams: int) -> tuple[float, int]:
    """Microseconds of CPU for one snapshot on its way to one listener, and its bytes."""
    entries = [{"name": f"spot-{n}", "kind": "spot", "url": f"http://127.0.0.1:{n + 1}"} for n in range(backends)]
    router = Router(parse_settings({"backends": entries, "max_concurrency": 1000}), open_door=True)
    made, sink = router.core, Sink()

    class Told:
        progress = 7

    made.streams.update(Told() for _ in range(streams))  # type: ignore[misc]  # all that is asked of a stream
    for number in range(5000):
        tally = made.meter.backends[f"spot-{number % backends}"]
        tally.ttft.add(number / 1000)
        made.counts.itl(f"spot-{number % backends}").add(0.02)
    made.events.listen(sink, None)
    for _ in range(20):
        made.events._tick()
    begun, times = time.process_time(), 300
    for _ in range(times):
        made.events._tick()
    spent = time.process_time() - begun
    made.events.close()
    made.wheel.stop()
    return spent / times * 1e6, len(sink.last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--interval-ms", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--window-s", type=float, default=4.0)
    options = parser.parse_args()
    a, b, port = free_ports(3)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(started([sys.executable, "-m", "tests.bench.router.engine", str(a), str(b)], 1, folder))
        words = [sys.executable, "-m", "tuna_router", "--port", str(port), "--api-key-env", "KEY"]
        words += ["--serverless", f"http://127.0.0.1:{a}", "--spot", f"http://127.0.0.1:{b}"]
        pid = stack.enter_context(started([*words, "--max-concurrency", "1000"], 0, folder))
        while not answers(port):
            time.sleep(0.05)
        seconds = options.rounds * 2 * (options.window_s + 0.5) + 5
        body = {"model": "m", "messages": [{"role": "user", "content": "y"}], "stream": True}
        body |= {"max_tokens": 10**6, "seed": options.interval_ms}
        (folder / "body").write_text(json.dumps(body))
        client = [sys.executable, "-m", "tests.bench.router.clients", str(port), KEY, str(folder / "body")]
        stack.enter_context(started([*client, str(options.streams), str(seconds)], 1, folder))
        time.sleep(3)
        without, beside = [], []
        for _ in range(options.rounds):
            without.append(window(pid, options.window_s))
            with listening(port, folder):
                time.sleep(0.5)
                beside.append(window(pid, options.window_s))
        more = statistics.median(y - x for x, y in zip(without, beside, strict=True))
        ratio = statistics.median(y / x for x, y in zip(without, beside, strict=True))
        print(f"{running(port)} streams, a token each {options.interval_ms} ms, per cent of a core")
        print(f"without {statistics.median(without):.2f}  with {statistics.median(beside):.2f}", end="  ")
        print(f"more {more:+.2f}  ratio {ratio:.3f}")
    for backends in (2, 20):
        microseconds, size = min(asyncio.run(snapshots_us(backends, options.streams)) for _ in range(3))
        share = microseconds / 1e4
        print(f"a snapshot of {backends} backends: {microseconds:.0f} us, {size} bytes: {share:.3f} % of a core")


if __name__ == "__main__":
    main()
