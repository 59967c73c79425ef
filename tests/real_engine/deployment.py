"""`tuna` as its user runs it, in a data folder of its own, and a look at the real processes behind it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psutil

from tuna_nb.backends.local.processes import marked_processes

T = TypeVar("T")
MODEL = "tiny"
"""The name under which the model is served, the same as in the recorded description: errors tell it."""
SERVER = "vllm.entrypoints.openai.api_server"
START_S = 300.0
"""The longest that vLLM may take to its first token; on a busy machine its imports alone take minutes."""

SETTINGS = (
    "HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 "
    "VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind"
)
"""Nothing is fetched or reported, and one engine takes 2.6 GB."""


@dataclass(frozen=True)
class Engine:
    """One vLLM: its API server, which leads a session in which EngineCore and Worker run too."""

    server: psutil.Process
    port: int
    replica: str

    @property
    def side(self) -> str:
        """`serverless` or `spot`, read off its replica's name: tuna-SERVICE-ID-SIDE-NUMBER."""
        return self.replica.split("-")[-2]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def family(self) -> list[psutil.Process]:
        """Every living process of its session."""
        return members_of_session(self.server.pid)


class Tuna:
    """One user's Tuna: its records and its local cloud in `folder`, and vLLM with `model`, a folder of its own."""

    def __init__(self, folder: Path, python: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        # The `vllm` program itself does not start in this build, its module does.
        self.engine_command = (
            f"{shlex.quote(str(python))} -m {SERVER} --model {shlex.quote(str(model))} "
            "--served-model-name {model} --host {host} --port {port} "
            "--dtype float32 --max-model-len 2048 --max-num-seqs 8 --enforce-eager"
        )
        self._sessions: set[int] = set()
        ours = {k: v for k, v in os.environ.items() if not k.startswith("TUNA_")}
        self.environment: Mapping[str, str] = ours | {"TUNA_DATA_DIR": str(folder)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Run `tuna WORD...` beside the test."""
        return subprocess.Popen(
            [sys.executable, "-m", "tuna_nb", *words],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start_deploy(self, name: str, *more: str) -> subprocess.Popen[str]:
        words = f"deploy --model {MODEL} --gpu L4 --service-name {name} --wait".split()
        settings = [f"engine_start_timeout_s={START_S:g}", f"engine_env={SETTINGS}", "cold_start_s=0"]
        options = [word for setting in settings for word in ("--option", setting)]
        return self.start(*words, "--engine-cmd", self.engine_command, *options, *more)

    def run(self, *words: str, within: float = 120) -> str:
        """Run `tuna WORD...` to its good end; returns what it printed."""
        process = self.start(*words)
        out, err = process.communicate(timeout=within)
        assert process.returncode == 0, err
        return out

    def state(self, name: str) -> Any:
        return json.loads(self.run("status", "--service-name", name, "-o", "json"))

    def connect(self, name: str) -> Client:
        """As a user's shell gets at the endpoint and its key."""
        said = self.run("connect", name, "--env", within=START_S)
        lines = [shlex.split(line)[1].partition("=") for line in said.splitlines()]
        return Client({name: value for name, _, value in lines})

    def engines(self) -> list[Engine]:
        """Every vLLM that this local cloud runs."""
        found = []
        for process, marker in marked_processes():
            line = command_line(process)
            if SERVER in line and str(self.model) in line and process.pid == os.getsid(process.pid):
                found.append(Engine(process, int(line[line.index("--port") + 1]), marker.partition("/")[2]))
        self._sessions |= {engine.server.pid for engine in found}
        return found

    def engine(self, side: str) -> Engine:
        """The only engine of one side."""
        [found] = [engine for engine in self.engines() if engine.side == side]
        return found

    def log(self, side: str) -> list[tuple[float, str, str]]:
        """The local cloud's log of one side: when (Unix seconds), which replica or the cloud itself, what."""
        [file] = (self.folder / "local-cloud" / "logs").glob(f"*-{side}.jsonl")
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()]

    def processes(self) -> list[psutil.Process]:
        """Every process that names the data folder or runs in it, and the families of all engines seen so far."""
        self.engines()
        found = {p.pid: p for session in self._sessions for p in members_of_session(session)}
        for process in psutil.process_iter():
            try:
                about = any(str(self.folder) in word for word in (*process.cmdline(), process.cwd()))
                if about and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return list(found.values())


class Client:
    """What `tuna connect NAME --env` gave: an OpenAI client, and plain HTTP with the same key."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        base, key = environment["OPENAI_BASE_URL"], environment["OPENAI_API_KEY"]
        self.openai = openai.OpenAI(base_url=base, api_key=key, timeout=120, max_retries=0)
        self.http = httpx.Client(
            base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False
        )

    def chat(self, words: str = "hello world", **more: Any) -> tuple[str, Any]:
        """One greedy answer, and which backend gave it."""
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24, **more}
        raw = self.openai.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": words}], **asked
        )
        return raw.headers["x-tuna-backend"], raw.parse()

    def until_answered_by(self, backend: str) -> None:
        """Ask until that backend answers; every answer on the way must be a good one."""
        wait_for(lambda: self.chat(max_tokens=1)[0] == backend, START_S, every=1.0)


def direct_client(engine: Engine) -> openai.OpenAI:
    """A client of the engine itself, past every part of Tuna."""
    return openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", timeout=120, max_retries=0)


def wait_for(condition: Callable[[], T], within: float, every: float = 0.1) -> T:
    """The first true value of `condition`; fails the test at the deadline."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s"
        time.sleep(every)
    return found


def members_of_session(session: int) -> list[psutil.Process]:
    """Every living process of a session, whatever has become of its leader."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(psutil.Process(pid))
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return found


def command_line(process: psutil.Process) -> list[str]:
    """Empty where the process has ended meanwhile."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def listening(processes: list[psutil.Process]) -> set[int]:
    """The TCP ports that these processes listen on."""
    return {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def answers(port: int) -> bool:
    """Whether someone listens on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
