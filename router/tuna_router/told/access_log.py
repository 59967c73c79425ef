"""The access log: a line for each request, written by a thread of its own so that a slow disk stalls no stream.

A line has no query, no body, no header and no key: only the name of the key. What the disk can't take in
time is dropped and counted, in the log itself too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from tuna_router.errors import SettingsError

MOST_WAITING: Final = 10_000
_BATCH_S: Final = 0.1
REFUSED: Final = "refused"
"""The outcome of a request that was never admitted."""


class Entry(NamedTuple):
    """One request. Durations in seconds, None where there was no first byte; `sent_bytes` of the answer's body."""

    unix_s: float
    request_id: bytes
    method: bytes
    target: bytes
    status: int
    backend: str | None
    attempts: int
    resumes: int
    ttft_s: float | None
    total_s: float
    prompt_tokens: int
    completion_tokens: int
    sent_bytes: int
    key: str | None
    outcome: str


class AccessLog:
    """Writes entries to `path`, or to stdout for `-`, as JSON lines or as text. Raises SettingsError."""

    def __init__(self, path: str, *, as_json: bool, most_waiting: int = MOST_WAITING) -> None:
        self._path = path
        self._line = json_line if as_json else text_line
        self._most = most_waiting
        self._waiting: deque[Entry] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._reopen = False
        self._told = 0
        self.dropped = 0
        """Entries that were never written."""
        self._file = self._open()
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def add(self, entry: Entry) -> None:
        """Log one request. Never waits."""
        waiting = self._waiting
        if len(waiting) >= self._most:
            self.dropped += 1
            return
        waiting.append(entry)
        if len(waiting) == 1:
            self._wake.set()

    def reopen(self) -> None:
        """The file was moved away: go on in a new one."""
        self._reopen = True
        self._wake.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for at most this long."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if not self._stopping:
                time.sleep(_BATCH_S)  # a batch for each turn: a write for each line would be dear
            if self._reopen:
                self._reopen = False
                self._renew()
            self._write_all()
            if self._stopping and not self._waiting:
                return

    def _write_all(self) -> None:
        batch: list[Entry] = []
        while self._waiting and len(batch) < 1000:
            batch.append(self._waiting.popleft())
        if self._waiting:
            self._wake.set()
        lines = [self._line(entry) for entry in batch]
        if self.dropped > self._told:
            lines.append(json.dumps({"dropped": self.dropped - self._told}))
            self._told = self.dropped
        if not lines:
            return
        try:
            self._file.write("\n".join(lines) + "\n")
            self._file.flush()
        except (OSError, ValueError):
            self.dropped += len(batch)  # a full disk: told when there is room again

    def _renew(self) -> None:
        try:
            renewed = self._open()
        except SettingsError:
            return  # the old one is still good
        if self._file is not sys.stdout:
            self._file.close()
        self._file = renewed

    def _open(self) -> TextIO:
        if self._path == "-":
            return sys.stdout
        try:
            descriptor = os.open(Path(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise SettingsError(f"can't write {self._path}: {error.strerror}", "check --access-log") from error
        return os.fdopen(descriptor, "a", encoding="utf-8")


def json_line(entry: Entry) -> str:
    """One entry as JSON."""
    shown: dict[str, Any] = {
        "time": _stamp(entry.unix_s),
        "request_id": _text(entry.request_id),
        "method": _text(entry.method),
        "path": _path(entry.target),
        "status": entry.status,
        "backend": entry.backend,
        "attempts": entry.attempts,
        "resumes": entry.resumes,
        "ttft_ms": None if entry.ttft_s is None else round(entry.ttft_s * 1000, 3),
        "total_ms": round(entry.total_s * 1000, 3),
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "bytes": entry.sent_bytes,
        "key": entry.key,
        "outcome": entry.outcome,
    }
    return json.dumps(shown, separators=(",", ":"))


def text_line(entry: Entry) -> str:
    """One entry for people."""
    ttft = "-" if entry.ttft_s is None else f"{entry.ttft_s * 1000:.0f}ms"
    return (
        f"{_stamp(entry.unix_s)} {_text(entry.method)} {_path(entry.target)} {entry.status} {entry.outcome} "
        f"backend={entry.backend or '-'} attempts={entry.attempts} resumes={entry.resumes} ttft={ttft} "
        f"total={entry.total_s * 1000:.0f}ms tokens={entry.prompt_tokens}+{entry.completion_tokens} "
        f"bytes={entry.sent_bytes} key={entry.key or '-'} id={_text(entry.request_id)}"
    )


def _stamp(unix_s: float) -> str:
    whole, milliseconds = divmod(int(unix_s * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _path(target: bytes) -> str:
    return _text(target.partition(b"?")[0])


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "backslashreplace")
