"""CPU seconds of starting, time to the router's first answer, and its memory, each the median of five;
then the router's data plane beside nginx, in our own benchmark and in `../shared`'s where it is."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

TIMES = 5
SHARED = Path(__file__).parents[2].parent / "shared/tools/router_bench/bench.py"
IPYTHON = "from IPython.core.interactiveshell import InteractiveShell\nshell = InteractiveShell.instance()\n"
LOAD = IPYTHON + "shell.run_line_magic('load_ext', 'tuna_nb')\n"


def cpu_s(*words: str) -> float:
    """User and system seconds of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def median(measure: Callable[[], float]) -> float:
    measure()  # once for nothing: the disk cache and the bytecode
    return statistics.median(measure() for _ in range(TIMES))


def router() -> tuple[float, float, float]:
    """(seconds from start to the first answer, CPU seconds until then, peak memory in MB)."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "router.json"
        begun = time.perf_counter()
        started = subprocess.Popen(
            [sys.executable, "-m", "tuna_router", "--host", "127.0.0.1", "--port", "0", "--no-auth",
             "--serverless", "http://127.0.0.1:9", "--port-file", str(port_file)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not port_file.exists():
                if started.poll() is not None:
                    raise SystemExit(f"the router ended with {started.returncode}")
                time.sleep(0.002)
            url = json.loads(port_file.read_text())["url"]
            with urllib.request.urlopen(f"{url}/router/health", timeout=10) as answer:
                answer.read()
            seconds = time.perf_counter() - begun
            process = psutil.Process(started.pid)
            used = process.cpu_times()
            return seconds, used.user + used.system, peak_mb(started.pid)
        finally:
            started.terminate()
            started.wait(10)


def peak_mb(pid: int) -> float:
    """The highest resident memory so far: from the kernel where it tells, else what it is now."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return psutil.Process(pid).memory_info().rss / 2**20


def main() -> None:
    python = median(lambda: cpu_s("-c", "pass"))
    ipython = median(lambda: cpu_s("-c", IPYTHON))
    loaded = median(lambda: cpu_s("-c", LOAD))
    helped = median(lambda: cpu_s("-m", "tuna_nb", "--help"))
    runs = [router() for _ in range(TIMES)]
    seconds, used, memory = (statistics.median(column) for column in zip(*runs, strict=True))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {load:.1f}; medians of {TIMES}")
    print(f"%load_ext tuna_nb    {loaded - ipython:6.3f} CPU s over Python and IPython ({ipython:.3f})")
    print(f"tuna --help          {helped - python:6.3f} CPU s over Python ({python:.3f})")
    print(f"router, first answer {seconds:6.3f} s, {used:.3f} CPU s")
    print(f"router, peak memory  {memory:6.1f} MB", flush=True)
    if sys.platform == "linux":
        subprocess.run([sys.executable, "-m", "tests.bench.router.beside_nginx"], check=True)
    if SHARED.exists() and shutil.which("gcc"):
        command = f"{sys.executable} -m tuna_router --port 8200 --serverless {{up1}} --spot {{up2}}"
        command += " --api-key-env KEY --max-concurrency 1200"
        workloads = "small,paced,body8k,body256k,idle1000"
        words = ["--router", command, "--port", "8200", "--header", "Authorization: Bearer sk-bench"]
        environ = {**os.environ, "KEY": "sk-bench"}
        subprocess.run([sys.executable, str(SHARED), *words, "--workloads", workloads], check=True, env=environ)


if __name__ == "__main__":
    main()
