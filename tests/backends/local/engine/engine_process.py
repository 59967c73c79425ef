"""A real engine process for tests: started on a free port, its log kept, ended by its id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx

COMMAND = (sys.executable, "-m", "tuna_nb.backends.local.engine")
AT_ONCE = ("--decode-tokens-per-s", "0", "--prefill-tokens-per-s", "0")
"""Flags for an engine in which no time passes."""


class EngineProcess:
    """`with EngineProcess(*flags) as engine:` runs one; `engine.url` has no path."""

    def __init__(self, *flags: str, model: str = "tiny") -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.port_file = Path(self.folder.name) / "port.json"
        self.log_path = Path(self.folder.name) / "log"
        self.arguments = [*COMMAND, "--model", model, "--port", "0", "--port-file", str(self.port_file), *flags]
        self.port = 0
        self._start()

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "VLLM_API_KEY"}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(self.arguments, stderr=log, env=environment)

    def __enter__(self) -> EngineProcess:
        deadline = time.monotonic() + 20
        while not self.port_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"the engine did not start: {self.log_path.read_text()}")
            time.sleep(0.005)
        told = json.loads(self.port_file.read_text())
        assert told["pid"] == self.process.pid
        self.port = told["port"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self.folder.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def again(self) -> None:
        """Another process like this one, which was killed; returns when it listens. Give `--port` a number."""
        self.process.wait(10)
        self.port_file.unlink(missing_ok=True)
        self._start()
        self.__enter__()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(10)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def client_of(engine: EngineProcess) -> httpx.Client:
    return httpx.Client(base_url=engine.url, timeout=10, trust_env=False)


def running(client: httpx.Client) -> float:
    """The gauge of running requests."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{"))


def idle_within(client: httpx.Client, seconds: float) -> bool:
    """Whether no request runs any more before so many seconds have passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running(client) == 0:
            return True
    return False
