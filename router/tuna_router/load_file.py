"""The load of all lives of a router, in a folder beside the state file: what `/router/load` answers from.

`2026-11-22.jsonl` has the minutes of that day (UTC), a line for each and for each life that is over; it is only
ever appended to, in single writes. A day goes as a whole, the oldest first, when there are too many or they are
too big. Two routers may write at once, while one follows the other: each line names its life, and minutes are
added up over lives when they are read, so that nothing is lost and a line that was written twice counts once.

A life that is not over has two files more: `LIFE.alive`, which its process keeps locked, so that the lock ends
with it however it ends; and `LIFE.now`, replaced at least every ten seconds: when it ran, and its minutes that are
in no other file yet. The next router takes over what a dead one has left. Nothing waits for the disk to have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple

from tuna_router.books.load import MINUTE_S, Load, Mine, Minute, Used, joined_spans, merged

_log = logging.getLogger("tuna_router.load_file")
HEARTBEAT_S: Final = 10.0
MOST_DAYS: Final = 46
"""Files that are kept: the last 45 whole days with traffic, and today."""
MOST_BYTES: Final = 64 * 1024 * 1024
_DAY_S: Final = 86400
_AFTER_S: Final = 0.02
_MINUTE: Final = b'{"at":'
_LIFE: Final = b'{"life":'
_KEPT_FROM: Final = "kept-from"
_BAD: Final = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


class Told(NamedTuple):
    """`lives` and `minutes` in order, each with whether all of it is there; `more`: some were cut."""

    lives: list[tuple[float, float]]
    minutes: list[tuple[Minute, bool]]
    more: bool


@dataclass(slots=True)
class _Found:
    """Minutes by their time, each by life."""

    since: float
    limit: int
    spans: list[tuple[float, float]] = field(default_factory=list)
    minutes: dict[int, dict[str, Minute]] = field(default_factory=dict)

    def add(self, life: str, minute: Minute) -> None:
        if minute.at + MINUTE_S > self.since:
            self.minutes.setdefault(minute.at, {})[life] = minute

    def told(self, unix_s: float, mine: Mine, whole_until: float, kept_from: float) -> Told:
        in_order = sorted(self.minutes)
        minutes = []
        for at in in_order[: self.limit]:
            whole = at + MINUTE_S <= whole_until and (mine.running is None or mine.running.at != at)
            first, *rest = self.minutes[at].values()
            for other in rest:
                first = merged(first, other)
            minutes.append((first, whole))
        lives = [span for span in joined_spans(self.spans, kept_from) if span[1] > self.since]
        return Told(lives, minutes, len(in_order) > self.limit)


class LoadFile:
    """The folder, for the life that `load` counts. `open` before, `close` after; `keep` runs in between.

    Where it can't be written, minutes are kept in memory until it can, as many as `load` keeps.
    """

    def __init__(
        self, folder: Path, load: Load, *, most_days: int = MOST_DAYS, most_bytes: int = MOST_BYTES
    ) -> None:
        self.folder = folder
        self._load = load
        self._most_days = most_days
        self._most_bytes = most_bytes
        self._alive = -1
        self._lock = threading.Lock()
        self._failing = False

    def open(self) -> None:
        """Say that this life has begun. A failure is logged: then nothing outlives it."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            # Locked before it has its name: who finds it unlocked takes it for a dead one's.
            unnamed = self.folder / f".{self._load.life}.alive"
            descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unnamed.rename(self._file("alive"))
            except OSError:
                os.close(descriptor)
                raise
            self._alive = descriptor
        except OSError as error:
            _log.warning("can't keep the load in %s: %s", self.folder, error.strerror)
        self.write(self._load.told())

    async def keep(self) -> None:
        """Write what is new at the end of each minute, and that this life goes on; until cancelled."""
        while True:
            left_s = MINUTE_S - time.time() % MINUTE_S + _AFTER_S
            await asyncio.sleep(min(HEARTBEAT_S, left_s))
            mine = self._load.told()
            if await asyncio.to_thread(self.write, mine):
                self._load.written(mine.minutes)

    def close(self) -> None:
        """This life is over, with the minute under way. Writes what is left."""
        mine = self._load.told()
        minutes = mine.minutes if mine.running is None else (*mine.minutes, mine.running)
        with self._lock:
            try:
                self._append(mine.life, minutes, mine.spans)
                self._file("now").unlink(missing_ok=True)
                self._file("alive").unlink(missing_ok=True)
            except OSError as error:
                _log.warning("can't keep the load in %s: %s", self.folder, error.strerror)
            if self._alive >= 0:
                os.close(self._alive)
                self._alive = -1

    def write(self, mine: Mine) -> bool:
        """Append the minutes that are over, and say that this life goes on. False when it can't; never raises for
        a disk. May be called in a thread."""
        with self._lock:
            if self._alive < 0:
                return False
            try:
                self._append(mine.life, mine.minutes)
                self._say(mine)
                for life in self._dead():
                    self._bury(life)
                self._let_go()
            except OSError as error:
                if not self._failing:
                    _log.warning("can't keep the load in %s: %s", self.folder, error.strerror)
                self._failing = True
                return False
            self._failing = False
            return True

    def read(self, mine: Mine, unix_s: float, since: float, limit: int) -> Told:
        """All lives' minutes that end after `since`, the first `limit`; `mine` is what memory has of this one."""
        found = _Found(since, limit)
        # First those that still change: what leaves them meanwhile is in the days then.
        whole_until = unix_s
        for life, lives in self._others():
            now = self._now_of(life)
            if now is None:
                continue
            found.spans += now.spans
            for minute in now.minutes:
                found.add(life, minute)
            if lives:
                whole_until = min(whole_until, now.spans[-1][1])
        found.spans += mine.spans
        for minute in mine.minutes if mine.running is None else (*mine.minutes, mine.running):
            found.add(mine.life, minute)
        for path in self._days():
            end = _end_of(path)
            if end > since:
                enough = sum(1 for at in found.minutes if at < end - _DAY_S) > limit
                self._read_day(path, found, enough=enough)
        return found.told(unix_s, mine, whole_until, self._kept_from())

    # Days

    def _append(self, life: str, minutes: Iterable[Minute], spans: Iterable[tuple[float, float]] = ()) -> None:
        lines: dict[str, list[bytes]] = {}
        for minute in minutes:
            lines.setdefault(_day_of(minute.at), []).append(_line(life, minute))
        for span in spans:
            ended = b'{"life":"%b","ran":%b}' % (life.encode(), json.dumps(span).encode())
            lines.setdefault(_day_of(span[1]), []).append(ended)
        for day, of_day in lines.items():
            descriptor = os.open(self.folder / f"{day}.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                data = (b"\n" if torn else b"") + b"\n".join(of_day) + b"\n"
                if os.write(descriptor, data) != len(data):
                    raise OSError(0, "the disk is full")
            finally:
                os.close(descriptor)

    def _days(self) -> list[Path]:
        """The days' files, oldest first."""
        with contextlib.suppress(OSError):
            return sorted(path for path in self.folder.glob("????-??-??.jsonl") if _end_of(path))
        return []

    def _read_day(self, path: Path, found: _Found, *, enough: bool) -> None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return  # let go of meanwhile
        for line in data.splitlines():
            try:
                if line.startswith(_MINUTE):
                    at = int(line[len(_MINUTE) : line.index(b",")])
                    if not enough and at + MINUTE_S > found.since:
                        stored = json.loads(line)
                        found.add(str(stored["life"]), _minute(stored))
                elif line.startswith(_LIFE):
                    begun, until = json.loads(line)["ran"]
                    found.spans.append((float(begun), float(until)))
            except _BAD:
                continue  # a line that a kill or a full disk cut short

    def _let_go(self) -> None:
        """Of the oldest days, where there is too much."""
        days = [(path, path.stat().st_size) for path in self._days()]
        total = sum(size for _, size in days)
        while len(days) > 1 and (len(days) > self._most_days or total > self._most_bytes):
            (path, size), *days = days
            self._replace(_KEPT_FROM, f"{max(_end_of(path), self._kept_from()):.0f}\n".encode())
            path.unlink(missing_ok=True)
            total -= size

    def _kept_from(self) -> float:
        """Of the time before this, nothing is known any more."""
        try:
            return float((self.folder / _KEPT_FROM).read_text())
        except (OSError, ValueError):
            return 0.0

    # Lives

    def _say(self, mine: Mine) -> None:
        minutes = () if mine.running is None else (mine.running,)
        said = {"spans": mine.spans, "minutes": [_stored(mine.life, minute) for minute in minutes]}
        self._replace(f"{mine.life}.now", json.dumps(said).encode())

    def _others(self) -> Iterator[tuple[str, bool]]:
        """The other lives that are not over in the days' files, and whether their process is there."""
        for path in list(self.folder.glob("*.alive")):
            life = path.name.removesuffix(".alive")
            if life == self._load.life or life.startswith("."):
                continue
            with _locked(path) as lock:
                yield life, not lock

    def _dead(self) -> list[str]:
        return [life for life, lives in self._others() if not lives]

    def _bury(self, life: str) -> None:
        """Write down what a router left that ended without a word."""
        path = self.folder / f"{life}.alive"
        with _locked(path) as lock:
            if not lock or not path.exists():
                return
            now = self._now_of(life)
            if now is not None:
                self._append(life, now.minutes, now.spans)
            for left in (*self.folder.glob(f".*{life}*"), self.folder / f"{life}.now", path):
                left.unlink(missing_ok=True)

    def _now_of(self, life: str) -> Mine | None:
        try:
            said = json.loads((self.folder / f"{life}.now").read_bytes())
            spans = tuple((float(begun), float(until)) for begun, until in said["spans"])
            minutes = tuple(_minute(stored) for stored in said["minutes"])
        except (OSError, *_BAD):
            return None
        return Mine(life, spans, minutes, None) if spans else None

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self._load.life}.{kind}"

    def _replace(self, name: str, data: bytes) -> None:
        beside = self.folder / f".{name}.{self._load.life}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(0, "the disk is full")
        finally:
            os.close(descriptor)
        beside.replace(self.folder / name)


def in_memory(load: Load, mine: Mine, unix_s: float, since: float, limit: int) -> Told:
    """The same for a router that keeps no files: of this life, what is in memory."""
    found = _Found(since, limit, list(mine.spans))
    for minute in mine.minutes if mine.running is None else (*mine.minutes, mine.running):
        found.add(mine.life, minute)
    return found.told(unix_s, mine, unix_s, load.dropped_until)


def load_folder(state: Path) -> Path:
    """Where the load is kept, beside the state file."""
    return state.with_name(f"{state.name.removesuffix('.json').removesuffix('.state')}.load")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock was to be had, which then is held."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _day_of(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix_s))


def _end_of(path: Path) -> float:
    """When the day of this file ends; 0 for a file that is no day's."""
    try:
        day = date.fromisoformat(path.name.partition(".")[0])
    except ValueError:
        return 0.0
    return float((day - date(1970, 1, 1)).days + 1) * _DAY_S


def _stored(life: str, minute: Minute) -> dict[str, Any]:
    """`at` and `life` are first: they are read without the rest."""
    return {"at": minute.at, "life": life, **minute._asdict()}


def _line(life: str, minute: Minute) -> bytes:
    return json.dumps(_stored(life, minute), separators=(",", ":")).encode()


def _minute(stored: dict[str, Any]) -> Minute:
    return Minute(
        int(stored["at"]),
        int(stored["in_flight"]),
        _counts(stored["arrivals"]),
        _counts(stored["ends"]),
        _used(stored["backends"]),
        _used(stored["models"]),
        _used(stored["keys"]),
    )


def _counts(stored: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    counts = tuple((int(second), int(count)) for second, count in stored)
    if any(not 0 <= second < MINUTE_S for second, _ in counts):
        raise ValueError("no second of a minute")
    return counts


def _used(stored: dict[str, Any]) -> dict[str, Used]:
    return {
        str(name): Used(int(one[0]), float(one[1]), float(one[2]), int(one[3]), int(one[4]))
        for name, one in stored.items()
    }
