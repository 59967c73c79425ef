"""How much of all requests' bodies is held in memory at once, to be sent again if a backend fails.

Counted are bodies that did not come in one read: the others are no larger than a read, and as many as the
concurrency limit lets in.
"""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    """A request. `held_bytes` is its share, kept by `Bodies`."""

    held_bytes: int


class Bodies:
    """The sum over all requests, in bytes. `flowed` counts the bodies that found no room."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.flowed = 0

    def __repr__(self) -> str:
        return f"<Bodies {self.held} of {self.limit} bytes>"

    def keep(self, holder: Holder, size: int) -> bool:
        """So many more bytes of a body came. False where there is no room for more of it: let it flow through."""
        holder.held_bytes += size
        self.held += size
        if self.held <= self.limit:
            return True
        self.flowed += 1
        return False

    def let_go(self, holder: Holder) -> None:
        """Nothing of this body is held any more."""
        self.held -= holder.held_bytes
        holder.held_bytes = 0
