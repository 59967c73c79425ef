"""The concurrency limit and its queue. One loop, no awaits, no clock: the counts are exact whatever is
cancelled when.

A freed place goes to whoever waits longest, interactive requests before batch ones. A deadline is the
affair of whoever waits: a timer there calls `Waiting.cancel`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType

from tuna_router.keys.live import LiveKey


class Admission:
    """Counts the requests that are being served, up to `limit`, and lets up to `max_queue` more wait."""

    def __init__(self, limit: int, max_queue: int = 0) -> None:
        self.limit = limit
        self.max_queue = max_queue
        self.in_flight = 0
        self.rejected = 0
        """Requests that found the queue full."""
        self._lines: tuple[OrderedDict[Waiting, None], ...] = (OrderedDict(), OrderedDict())
        self._handing_out = False

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._lines[0]) + len(self._lines[1])

    def enter(self, key: LiveKey | None = None) -> Ticket | None:
        """A place for one request, or None when there is none. Nobody who waits is overtaken."""
        if self.in_flight >= self.limit:
            return None
        self.in_flight += 1
        return Ticket(self, key)

    def wait(
        self, call: Callable[[Ticket], None], key: LiveKey | None = None, *, batch: bool = False
    ) -> Waiting | None:
        """Wait for a place: `call` gets the ticket. None, and counted, when the queue is full.

        The key was told of the request (`LiveKey.enter`): a cancelled one is counted out of it here.
        """
        if len(self._lines[0]) + len(self._lines[1]) >= self.max_queue:
            self.rejected += 1
            return None
        line = self._lines[batch]
        waiting = Waiting(line, call, key)
        line[waiting] = None
        return waiting

    def resize(self, limit: int, max_queue: int) -> None:
        """Take new limits over. What runs and waits above them stays."""
        self.limit = limit
        self.max_queue = max_queue
        self.hand_out()

    def hand_out(self) -> None:
        """Give free places to those who wait. Whoever gives one back inside a `call` does not recurse."""
        if self._handing_out:
            return
        self._handing_out = True
        try:
            while self.in_flight < self.limit:
                line = self._lines[0] or self._lines[1]
                if not line:
                    return
                waiting, _ = line.popitem(last=False)
                self.in_flight += 1
                waiting.call(Ticket(self, waiting.key))
        finally:
            self._handing_out = False

    def __repr__(self) -> str:
        return f"<Admission {self.in_flight}/{self.limit}, {self.waiting}/{self.max_queue} waiting>"


class Waiting:
    """One request in the queue."""

    __slots__ = ("_line", "call", "key")

    def __init__(
        self, line: OrderedDict[Waiting, None], call: Callable[[Ticket], None], key: LiveKey | None
    ) -> None:
        self._line = line
        self.call = call
        self.key = key

    def cancel(self) -> bool:
        """Wait no more. False when its place was given to it already, or it was cancelled before."""
        if self not in self._line:
            return False
        del self._line[self]
        if self.key is not None:
            self.key.in_flight -= 1
        return True


class Ticket:
    """One place under the limit, and one under its key's; given back once, however often `leave` is called."""

    __slots__ = ("_admission", "key")

    def __init__(self, admission: Admission, key: LiveKey | None = None) -> None:
        self._admission: Admission | None = admission
        self.key = key

    def leave(self) -> None:
        """Give the place back."""
        admission = self._admission
        if admission is None:
            return
        self._admission = None
        admission.in_flight -= 1
        if self.key is not None:
            self.key.in_flight -= 1
        admission.hand_out()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
