"""Engine processes: started in a session of their own, ended as a whole group, found again after a crash.

A killed server can leave workers behind (vLLM's outlive it), so what is ended is the process group, and beyond it
every process that carries the replica's marker in its environment. The marker is inherited by descendants and is
unique to one cloud and one replica, so no stranger is ever taken for ours, whatever number its process has. vLLM's
workers overwrite their environment (setproctitle), so what has none at all is known by the session it is in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from tuna_nb.backends.local.options import LOOPBACK
from tuna_nb.errors import BackendError, EngineError

MARKER: Final = "TUNA_LOCAL_REPLICA"
_POLL_S: Final = 0.05
_GONE_DEADLINE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine. Its pid is also its process group's and its session's number."""

    popen: subprocess.Popen[bytes]
    pid: int
    create_time: float
    marker: str

    @property
    def output(self) -> IO[bytes]:
        """Its stdout and stderr together."""
        assert self.popen.stdout is not None
        return self.popen.stdout


def spawn(argv: list[str], environment: Mapping[str, str], cwd: str | None, marker: str) -> EngineProcess:
    """Start an engine. Raises EngineError where the program can't be started."""
    if cwd is not None and not Path(cwd).is_dir():
        raise EngineError(f"the engine's folder {cwd} is not there any more", "deploy again from a folder that is")
    try:
        popen = subprocess.Popen(
            argv,
            env={**environment, MARKER: marker},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as exc:
        raise EngineError(
            f"the engine's program {argv[0]!r} can't be started: {exc.strerror or exc}",
            "install it, or give its full path in --engine-cmd",
        ) from exc
    try:
        created = psutil.Process(popen.pid).create_time()
    except psutil.NoSuchProcess:
        created = time.time()
    return EngineProcess(popen, popen.pid, created, marker)


def engine_environment(path: str | None, extra: Mapping[str, str]) -> dict[str, str]:
    """What an engine sees: the daemon's environment without Tuna's own settings and keys, the user's PATH.

    VLLM_API_KEY goes too: it would make vLLM ask for a key that nobody here sends.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNA_") and k != "VLLM_API_KEY"}
    if path is not None:
        environment["PATH"] = path
    # Line by line, so that a log that is read while the engine runs is not minutes behind.
    return {"PYTHONUNBUFFERED": "1", **environment, **extra}


def free_port() -> int:
    """A loopback port that nobody has at this moment. Raises BackendError where none can be had."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((LOOPBACK, 0))
            return int(probe.getsockname()[1])
    except OSError as exc:
        raise BackendError(
            f"no loopback port can be bound: {exc}", "check the machine's limits on sockets"
        ) from exc


async def end(process: EngineProcess, grace_s: float, hurry: asyncio.Event) -> None:
    """End the whole group: SIGTERM, `grace_s` seconds (cut short by `hurry`), SIGKILL. Returns when all is gone.

    Raises BackendError where something outlives SIGKILL.
    """
    if grace_s > 0 and not hurry.is_set():
        _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and not hurry.is_set():
            process.popen.poll()
            if not group_alive(process.pid):
                break
            await asyncio.sleep(_POLL_S)
    _signal_group(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + _GONE_DEADLINE_S
    while True:
        process.popen.poll()
        strays = await asyncio.to_thread(marked, process.marker)
        if not strays and not group_alive(process.pid):
            break
        if time.monotonic() > deadline:
            raise BackendError(
                f"engine process group {process.pid} does not end", f"look at it with `ps -g {process.pid}`"
            )
        for stray in strays:
            _kill(stray)
        await asyncio.sleep(_POLL_S)


def end_orphan(pid: int | None, create_time: float | None, marker: str) -> bool:
    """End what a dead daemon left of one replica. True where something still ran.

    Only what is proved ours is touched: a process with our marker, the very process (number and time of birth)
    that the journal names together with its group, or one without any environment in the session of its number.
    """
    found = False
    deadline = time.monotonic() + _GONE_DEADLINE_S
    while True:
        ours = marked(marker)
        leader = _same(pid, create_time)
        if leader is not None:
            ours += [leader, *_members(leader.pid)]
        elif pid is not None and create_time is not None:
            ours += _wiped_in_session(pid, create_time)
        if not ours:
            return found
        found = True
        if time.monotonic() > deadline:
            raise BackendError(f"orphaned engine processes {sorted({p.pid for p in ours})} do not end")
        for process in ours:
            _kill(process)
        time.sleep(_POLL_S)


def marked(marker: str) -> list[psutil.Process]:
    """Every living process whose environment carries `marker`, wherever it has moved to."""
    return [process for process, carried in marked_processes() if carried == marker]


def marked_processes() -> Iterable[tuple[psutil.Process, str]]:
    """Living processes of this user that some local cloud started, each with its marker."""
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            carried = process.environ().get(MARKER)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            # Gone meanwhile, or another user's, which we did not start.
            continue
        if carried is not None:
            yield process, carried


def group_alive(pgid: int) -> bool:
    """Whether a process of the group still runs; one that is dead but not yet collected does not count."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    return bool(_members(pgid))


def _members(pgid: int) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == pgid:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _wiped_in_session(sid: int, create_time: float) -> list[psutil.Process]:
    """What a dead engine left in its session with its environment overwritten.

    The kernel gives a number to no new process while a session has it. Should the session have ended whole and
    its number gone to a stranger's, then the stranger's processes have environments, or are older than ours.
    """
    found = []
    for pid in psutil.pids():
        try:
            if pid == sid or os.getsid(pid) != sid:
                continue
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE or process.create_time() < create_time - 0.02:
                continue
            if not process.environ():
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _same(pid: int | None, create_time: float | None) -> psutil.Process | None:
    if pid is None or create_time is None:
        return None
    try:
        process = psutil.Process(pid)
        alive = abs(process.create_time() - create_time) < 0.02 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if alive else None


def _signal_group(pgid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pgid, number)
    except (ProcessLookupError, PermissionError):
        return


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return
