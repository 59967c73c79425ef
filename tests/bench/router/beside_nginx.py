"""The router's CPU beside nginx's, for the same requests in the same run.

    python -m tests.bench.router.beside_nginx [--rounds 3] [--workloads small,paced,body8k,body256k,idle1000]

Router and nginx share one core, engine and clients the other; medians over the rounds, which alternate.
On a busy machine trust the ratio. Without nginx the figures stand alone. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

KEY = "sk-bench"


class Workload(NamedTuple):
    """`per`: what CPU is divided by, "requests" or "tokens"."""

    chars: int
    connections: int
    seconds: float
    per: str
    stream: dict[str, int] | None = None
    asks: int = 0


WORKLOADS = {
    "small": Workload(430, 32, 2.0, "requests"),
    "paced": Workload(430, 50, 3.0, "tokens", {"max_tokens": 250, "seed": 20}),
    "body8k": Workload(8_000, 32, 1.5, "requests"),
    "body256k": Workload(256_000, 32, 1.5, "requests"),
    "idle1000": Workload(430, 1000, 25.0, "tokens", {"max_tokens": 10, "seed": 999}, 1),
}
NGINX = """worker_processes 1; pid {d}/pid; error_log {d}/error warn; daemon off;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 10000000; client_max_body_size 64m; client_body_buffer_size 1m;
 client_body_temp_path {d}/1; proxy_temp_path {d}/2; fastcgi_temp_path {d}/3; uwsgi_temp_path {d}/4;
 scgi_temp_path {d}/5;
 upstream engines {{ least_conn; server 127.0.0.1:{a}; server 127.0.0.1:{b}; keepalive 1024; }}
 server {{ listen 127.0.0.1:{port} backlog=4096; tcp_nodelay on;
  location / {{ proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
   proxy_buffering off; proxy_read_timeout 600s; }} }} }}
"""


def body_of(workload: Workload) -> bytes:
    messages = [{"role": "user", "content": "y" * workload.chars}]
    stream: dict[str, Any] = {"stream": True, **workload.stream} if workload.stream else {}
    return json.dumps({"model": "m", "messages": messages, "temperature": 0.7, **stream}).encode()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def core(number: int) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[min(number, len(cores) - 1)])]


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_s(pid: int) -> float:
    return float(sum(p.cpu_times().user + p.cpu_times().system for p in tree(pid)))


def rss_mb(pid: int) -> float:
    return sum(p.memory_info().rss for p in tree(pid)) / 2**20


def answers(port: int) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        b'{"model":"m","messages":[]}',
        {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def started(words: list[str], on: int, folder: Path) -> Iterator[int]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*core(on), *words], stdout=log, stderr=log, env={**os.environ, "KEY": KEY})
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(15)


def measure(name: str, pid: int, port: int, folder: Path) -> dict[str, Any]:
    """One workload against one proxy."""
    workload = WORKLOADS[name]
    body = folder / f"{name}.json"
    body.write_bytes(body_of(workload))
    words = [sys.executable, "-m", "tests.bench.router.clients", str(port), KEY, str(body)]
    words += [str(workload.connections), str(workload.seconds), *([str(workload.asks)] if workload.asks else [])]
    before = cpu_s(pid)
    run = subprocess.run([*core(1), *words], capture_output=True, text=True, timeout=120, check=True)
    used = cpu_s(pid) - before
    came = json.loads(run.stdout)
    return {**came, "cpu_us": used * 1e6 / max(came[workload.per], 1), "rss_mb": rss_mb(pid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", default="small,paced,body8k,body256k,idle1000")
    options = parser.parse_args()
    names = options.workloads.split(",")
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    a, b, router_port, nginx_port = free_ports(4)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = [sys.executable, "-m", "tests.bench.router.engine", str(a), str(b)]
        stack.enter_context(started(engine, 1, folder))
        router = [sys.executable, "-m", "tuna_router", "--port", str(router_port), "--api-key-env", "KEY"]
        router += ["--serverless", f"http://127.0.0.1:{a}", "--spot", f"http://127.0.0.1:{b}"]
        router += ["--max-concurrency", "1200"]
        proxies = {}
        if nginx is not None:
            (folder / "nginx.conf").write_text(NGINX.format(d=folder, a=a, b=b, port=nginx_port))
            pid = stack.enter_context(started([nginx, "-c", str(folder / "nginx.conf")], 0, folder))
            proxies["nginx"] = (pid, nginx_port)
        else:
            print("nginx is not installed: no ratio to it (Debian: apt-get install nginx-light)")
        proxies["router"] = (stack.enter_context(started(router, 0, folder)), router_port)
        deadline = time.monotonic() + 30
        for _, port in proxies.values():
            while not answers(port):
                if time.monotonic() > deadline:
                    raise SystemExit(f"no answer on port {port}: {(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.05)
        print(f"{'workload':9} {'proxy':7} {'CPU us':>8} {'x nginx':>8} {'errors':>7} {'done':>8} {'RSS MB':>7}")
        for name in names:
            rows: dict[str, list[dict[str, Any]]] = {proxy: [] for proxy in proxies}
            for _ in range(1 if name == "idle1000" else options.rounds):
                for proxy, (pid, port) in proxies.items():
                    rows[proxy].append(measure(name, pid, port, folder))
            for proxy, mine in rows.items():
                ratios = [r["cpu_us"] / n["cpu_us"] for r, n in zip(mine, rows.get("nginx", []), strict=False)]
                ratio = f"{statistics.median(ratios):8.2f}" if ratios else " " * 8
                cpu, memory = (statistics.median(row[key] for row in mine) for key in ("cpu_us", "rss_mb"))
                errors, done = sum(row["errors"] for row in mine), sum(row[WORKLOADS[name].per] for row in mine)
                print(f"{name:9} {proxy:7} {cpu:8.1f} {ratio} {errors:7d} {done:8d} {memory:7.0f}")


if __name__ == "__main__":
    main()
