"""The concurrency limit. One loop, no awaits inside: the count is exact whatever is cancelled when."""

from __future__ import annotations

from types import TracebackType


class Admission:
    """Counts the requests that are being served and refuses those above `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.rejected = 0

    def try_enter(self) -> Ticket | None:
        """A ticket for one request, or None when the limit is reached. Never waits."""
        if self.in_flight >= self.limit:
            self.rejected += 1
            return None
        self.in_flight += 1
        return Ticket(self)

    def __repr__(self) -> str:
        return f"<Admission {self.in_flight}/{self.limit}>"


class Ticket:
    """One place under the limit; given back once, however often `leave` is called."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def leave(self) -> None:
        """Give the place back."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.in_flight -= 1

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
