"""What happens in a router, as server-sent events: `/router/events`, for a live dashboard.

The last events are kept, so that whoever comes back with `Last-Event-ID` gets what was missed. A snapshot
of the figures goes out each second, only while somebody listens, and is not kept.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from tuna_router.books.meter import StateChange
from tuna_router.dataplane.wheel import Timer

KEPT: Final = 256
MOST_LISTENERS: Final = 100
SNAPSHOT_S: Final = 1.0
_SELDOM_S: Final = 10.0
_MOST_SUBJECTS: Final = 1000


class Listener(Protocol):
    """One who reads the events."""

    wants_snapshots: bool

    def push(self, frame: bytes) -> None:
        """The next event, as it is on the wire; never blocks, may drop."""

    def end(self) -> None:
        """There will be no more."""


class Events:
    """The events of one router. `clock` is monotonic, `wall` is unix time; `timer` makes a timer of the wheel."""

    def __init__(
        self,
        clock: Callable[[], float],
        wall: Callable[[], float],
        timer: Callable[[Callable[[], None]], Timer],
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._snapshot = snapshot
        self._timer = timer(self._tick)
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._last_id = 0
        self._seldom: dict[tuple[str, str], float] = {}
        self.listeners: set[Listener] = set()

    def publish(self, kind: str, data: dict[str, Any]) -> None:
        """Something happened: `kind` is a word, `data` small and without secrets; the time is added."""
        self._last_id += 1
        frame = b"id: %d\n" % self._last_id + _frame(kind, {"time": self._wall(), **data})
        self._kept.append((self._last_id, frame))
        for listener in list(self.listeners):
            listener.push(frame)

    def publish_seldom(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        """The same, at most once in ten seconds for one subject: for what happens with every request."""
        now = self._clock()
        if now < self._seldom.get((kind, subject), 0.0):
            return
        if len(self._seldom) >= _MOST_SUBJECTS:
            self._seldom.clear()
        self._seldom[kind, subject] = now + _SELDOM_S
        self.publish(kind, data)

    def listen(self, listener: Listener, last_id: int | None) -> bool:
        """Push events to it from now on, and first those after `last_id`. False when too many listen."""
        if len(self.listeners) >= MOST_LISTENERS:
            return False
        if last_id is not None:
            self._replay(listener, last_id)
        self.listeners.add(listener)
        if listener.wants_snapshots:
            listener.push(_frame("snapshot", self._snapshot()))
            if self._timer.at == math.inf:
                self._timer.set(SNAPSHOT_S)
        return True

    def leave(self, listener: Listener) -> None:
        """Push nothing more to it."""
        self.listeners.discard(listener)

    def close(self) -> None:
        """The router stops: end all, so that nobody who only watches holds it up."""
        for listener in list(self.listeners):
            listener.end()
        self.listeners.clear()
        self._timer.clear()

    def _replay(self, listener: Listener, last_id: int) -> None:
        if last_id > self._last_id:
            last_id = 0  # of an earlier router: all that this one knows is news
        first = self._kept[0][0] if self._kept else self._last_id + 1
        if last_id + 1 < first:
            listener.push(_frame("dropped", {"count": first - last_id - 1}))
        for number, frame in self._kept:
            if number > last_id:
                listener.push(frame)

    def _tick(self) -> None:
        who = [listener for listener in self.listeners if listener.wants_snapshots]
        if not who:
            return
        self._timer.set(SNAPSHOT_S)
        frame = _frame("snapshot", self._snapshot())
        for listener in who:
            listener.push(frame)


class Changes(deque[StateChange]):
    """The last state changes; `told` hears of each as it is noted."""

    def __init__(self, told: Callable[[StateChange], None], maxlen: int) -> None:
        super().__init__(maxlen=maxlen)
        self._told = told

    def append(self, change: StateChange) -> None:
        """Note one."""
        super().append(change)
        self._told(change)


def _frame(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def dropped_frame(count: int) -> bytes:
    """What a reader is told that was too slow for `count` events."""
    return _frame("dropped", {"count": count})
