"""One resource's log: what its engines print and what the cloud does with them, each line with time and source.

Kept in a file of JSON lines that is turned over at a size, so that a chatty engine can't fill the disk.
No key is ever handed to an engine, and the gateway passes none on, so none can be printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from tuna_nb.backends.base import LogLine

_ERROR: Final = re.compile(r"\b\w*(?:Error|Exception): .+")
FOLDER_NAME: Final = "logs"
MAX_BYTES: Final = 1_000_000
MAX_LINE: Final = 4000
KEPT_FILES: Final = 100
CLOUD: Final = "cloud"
"""Source of the lines that the cloud writes itself."""


class LogBook:
    """The log of the resource `name`; at most about twice MAX_BYTES on disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = path_of(folder, name)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._followers: set[asyncio.Queue[LogLine | None]] = set()
        self._file = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, text: str, source: str = CLOUD) -> None:
        """Add a line; longer ones are cut."""
        line = LogLine(time.time(), source, text[:MAX_LINE])
        os.write(self._file, _encode(line))
        if os.fstat(self._file).st_size > MAX_BYTES:
            os.close(self._file)
            os.replace(self._path, _older(self._path))
            self._file = self._open()
        for follower in self._followers:
            if follower.full():
                # A reader that doesn't keep up loses the oldest lines; the file has them.
                follower.get_nowait()
            follower.put_nowait(line)

    async def follow(self, since: float | None) -> AsyncIterator[LogLine]:
        """What is there, then what comes, until the reader stops or the book is closed."""
        queue: asyncio.Queue[LogLine | None] = asyncio.Queue(maxsize=2000)
        self._followers.add(queue)
        try:
            for line in list(_read(self._path, since)):
                yield line
            while (coming := await queue.get()) is not None:
                yield coming
        finally:
            self._followers.discard(queue)

    def close(self) -> None:
        os.close(self._file)
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
            follower.put_nowait(None)


def read(folder: Path, name: str, since: float | None = None) -> list[LogLine]:
    """The lines on disk from `since` (Unix seconds) on; of a destroyed resource too. No file, no lines."""
    return list(_read(path_of(folder, name), since))


def prune(folder: Path, most: int = KEPT_FILES) -> None:
    """Remove the oldest logs beyond `most` files. Called before any is open; one in use is merely begun anew."""
    if not (folder / FOLDER_NAME).is_dir():
        return
    files = sorted((folder / FOLDER_NAME).glob("*.jsonl"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files[most:]:
        path.unlink(missing_ok=True)


def path_of(folder: Path, name: str) -> Path:
    return folder / FOLDER_NAME / f"{name}.jsonl"


def _older(path: Path) -> Path:
    return path.with_suffix(".1.jsonl")


def _read(path: Path, since: float | None) -> Iterator[LogLine]:
    for part in (_older(path), path):
        try:
            with part.open("rb") as lines:
                for raw in lines:
                    line = _decode(raw)
                    if line is not None and (since is None or line.at >= since):
                        yield line
        except FileNotFoundError:
            continue


def _encode(line: LogLine) -> bytes:
    return json.dumps([line.at, line.source, line.text]).encode() + b"\n"


def _decode(raw: bytes) -> LogLine | None:
    try:
        at, source, text = json.loads(raw)
    except ValueError:
        return None  # half a line: its daemon was killed while it wrote
    return LogLine(at, source, text)


class LastWords:
    """Why an engine failed, in one line of its output: the first error it named, else its last line.

    The first, because what follows it is how the rest of the program noticed.
    """

    def __init__(self) -> None:
        self._error = ""
        self._last = ""

    def add(self, text: str) -> None:
        if text.strip():
            self._last = text.strip()[:300]
            found = _ERROR.search(text)
            if found and not self._error:
                self._error = found[0][:300]

    def __str__(self) -> str:
        return self._error or self._last
