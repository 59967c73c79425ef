"""Two real vLLM engines of one model, without anything of Tuna around them: one to break, one to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import psutil

from tests.real_engine.deployment import MODEL, SERVER, SETTINGS, START_S, members_of_session, wait_for

MOST_AT_ONCE = 128
FLAGS = f"--dtype float32 --max-model-len 512 --max-num-seqs {MOST_AT_ONCE} --enforce-eager".split()


class Vllm:
    """One engine in a session of its own. Ready when `wait` returns: it gave a token."""

    def __init__(self, python: Path, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        words = [str(python), "-m", SERVER, "--model", str(model), "--served-model-name", MODEL, *FLAGS]
        settings = dict(setting.split("=", 1) for setting in SETTINGS.split())
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ["nice", *words, "--host", "127.0.0.1", "--port", str(self.port)],
                env=os.environ | settings, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it has generated a token. Fails with the end of its log."""
        deadline = time.monotonic() + START_S
        body = {"model": MODEL, "prompt": "the", "max_tokens": 1}
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.post(f"{self.url}/v1/completions", json=body, timeout=60, trust_env=False).is_success:
                    return
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.2)

    def part(self, name: str) -> psutil.Process:
        """Its `EngineCore` or `Worker`."""
        [found] = [p for p in members_of_session(self.process.pid) if f"VLLM::{name}" in " ".join(p.cmdline())]
        return found

    def kill(self) -> None:
        """All of its processes, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        wait_for(lambda: not members_of_session(self.process.pid), 30)


class Pair:
    """Two engines with the same weights. `both` starts anew what was broken."""

    def __init__(self, python: Path, model: Path, folder: Path) -> None:
        self._python, self._model, self._folder = python, model, folder
        self._started = 0
        self._engines = [self._start(), self._start()]

    def both(self) -> tuple[Vllm, Vllm]:
        """The one that has run longer first: the next to be broken."""
        for engine in self._engines:
            engine.wait()
        return self._engines[0], self._engines[1]

    def replace(self) -> None:
        """End what is left of the first, and start another in its place."""
        self._engines.pop(0).kill()
        self._engines.append(self._start())

    def end(self) -> None:
        for engine in self._engines:
            engine.kill()

    def _start(self) -> Vllm:
        self._started += 1
        return Vllm(self._python, self._model, self._folder / f"vllm-{self._started}.log")
