"""Keeps one router running: `python -m tuna_router.supervise FOLDER`. Standard library only.

It opens the listening socket and hands it to each router it starts, so that connections which come while one
router follows another wait in the socket's queue, and none is refused. In FOLDER:

`launch.json`: {"host", "ports": [the first free one is taken], "public", "memory_mb"}; `current`: the environment
whose `bin/python` runs the router, read anew at each start; `config.json`, `router.json` (the port file),
`router.log`, `port` (the one that is kept from one life to the next), `supervisor.pid`, `swapped`.

SIGUSR2 swaps: a new router is started beside the old one, which retires once the new one listens and may take
an hour to finish its streams; `swapped` then says "ok" or why not. SIGTERM stops all, running requests first. A
router that ends by itself is started again, later each time; one that grows above `memory_mb` is swapped.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

LOOK_S: Final = 0.1
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 30.0
STEADY_S: Final = 60.0
"""A router that lived so long is started again at once when it ends."""
START_S: Final = 30.0
STOP_S: Final = 10.0
"""For running requests, when all is stopped."""
RETIRE_S: Final = 3600.0
BIND_S: Final = 20.0
"""A router whose supervisor has just died may hold the port until it has ended too."""
WEIGH_S: Final = 5.0
LOG_BYTES: Final = 20 << 20
_BACKLOG: Final = 4096
_PDEATHSIG: Final = 1


class Supervisor:
    """One folder's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launch: dict[str, Any] = json.loads((folder / "launch.json").read_text())
        self.current: subprocess.Popen[bytes] | None = None
        self.retired: list[subprocess.Popen[bytes]] = []
        self.stopping = self.swapping = False
        self._started_at = self._weigh_at = 0.0
        self._wait_s = FIRST_WAIT_S
        self.restarts = 0

    def run(self) -> None:
        """Until SIGTERM. Raises OSError where no port can be had."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGUSR2, self._on_swap)
        with contextlib.suppress(OSError):
            # Where memory runs out, this goes before what else lives on the machine.
            Path("/proc/self/oom_score_adj").write_text("500")
        self.sock = self._listen()
        _write(self.folder / "supervisor.pid", str(os.getpid()))
        self._start_again_at = 0.0
        while not self.stopping:
            self._look(time.monotonic())
            time.sleep(LOOK_S)
        self._stop()

    def _on_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopping = True

    def _on_swap(self, _signal: int, _frame: FrameType | None) -> None:
        self.swapping = True

    def _listen(self) -> socket.socket:
        last: list[int] = []
        with contextlib.suppress(OSError, ValueError):
            last = [int((self.folder / "port").read_text())]
        end = time.monotonic() + BIND_S
        while True:
            # The one it had before is waited for: clients have it in their configuration.
            for port in last or self.launch["ports"]:
                try:
                    sock = _listening(self.launch["host"], port)
                except OSError as error:
                    trouble = error
                else:
                    _write(self.folder / "port", str(sock.getsockname()[1]))
                    return sock
            if self.stopping or time.monotonic() > end:
                raise trouble
            time.sleep(LOOK_S)

    def _look(self, now: float) -> None:
        self.retired = [old for old in self.retired if old.poll() is None]
        if self.current is not None and (code := self.current.poll()) is not None:
            _say(f"the router ended with {code}")
            self._wait_s = FIRST_WAIT_S if now - self._started_at > STEADY_S else self._wait_s
            self._start_again_at = now + self._wait_s
            self._wait_s = min(self._wait_s * 2, LONGEST_WAIT_S)
            self.restarts += 1
            _write(self.folder / "restarts", str(self.restarts))
            self.current = None
        if self.swapping:
            self.swapping = False
            self._swap()
        if self.current is None and now >= self._start_again_at:
            self.current = self._started()
        if now >= self._weigh_at:
            self._weigh_at = now + WEIGH_S
            self._weigh()

    def _started(self) -> subprocess.Popen[bytes]:
        folder, sock = self.folder, self.sock
        log = folder / "router.log"
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > LOG_BYTES:
                log.replace(folder / "router.log.1")
        command = [str(folder / "current" / "bin" / "python"), "-m", "tuna_router", "--fd", str(sock.fileno())]
        command += ["--host", str(self.launch["host"]), "--config", str(folder / "config.json")]
        command += ["--port-file", str(folder / "router.json"), "--shutdown-timeout-s", str(RETIRE_S)]
        command += ["--no-auth"] if self.launch.get("public") else []
        if (certificate := folder / "cert.pem").exists():
            command += ["--tls-cert", str(certificate), "--tls-key", str(folder / "key.pem")]
        self._started_at = time.monotonic()
        with log.open("ab") as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(sock.fileno(),),
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has one thread
            )

    def _swap(self) -> None:
        old, new = self.current, self._started()
        if self._listens(new):
            self.current, self._wait_s = new, FIRST_WAIT_S
            if old is not None and old.poll() is None:
                old.send_signal(signal.SIGUSR2)
                self.retired.append(old)
            _write(self.folder / "swapped", "ok")
            return
        _say("the new router did not start; the old one goes on")
        if new.poll() is None:
            new.kill()
        new.wait()
        _write(self.folder / "swapped", f"it ended with {new.returncode}, the old one goes on; see router.log")

    def _listens(self, router: subprocess.Popen[bytes]) -> bool:
        end = time.monotonic() + START_S
        while router.poll() is None and time.monotonic() < end and not self.stopping:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.loads((self.folder / "router.json").read_text())["pid"] == router.pid:
                    return True
            time.sleep(LOOK_S / 4)
        return False

    def _weigh(self) -> None:
        limit = int(self.launch.get("memory_mb") or 0)
        if self.current is None or not limit or time.monotonic() - self._started_at < WEIGH_S:
            return
        used = memory_mb(self.current.pid)
        if used > limit:
            _say(f"the router uses {used} MiB of {limit}: another one takes over")
            self.swapping = True
            for old in self.retired:
                # What has not ended since the last time must not add up.
                old.terminate()

    def _stop(self) -> None:
        every = [r for r in (self.current, *self.retired) if r is not None]
        if self.current is not None:
            self.current.terminate()
        end = time.monotonic() + STOP_S
        while any(r.poll() is None for r in every) and time.monotonic() < end:
            time.sleep(LOOK_S)
        for router in every:
            # A second one ends it at once; so does the first, for one that has retired.
            if router.poll() is None:
                router.terminate()
        for router in every:
            try:
                router.wait(3)
            except subprocess.TimeoutExpired:
                router.kill()
                router.wait()
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "supervisor.pid").unlink()


def memory_mb(pid: int) -> int:
    """What a process has in memory (MiB), as /proc tells; 0 where it tells nothing."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024
    return 0


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _end_with_parent() -> None:
    # A router without a supervisor would hold the port against the next one.
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {text}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> int:
    """Returns the exit code: 0 when it was told to stop, 1 when it could not begin."""
    folder = Path(sys.argv[1]).resolve()
    os.umask(0o077)
    try:
        Supervisor(folder).run()
    except (OSError, ValueError) as error:
        _say(f"can't begin: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
