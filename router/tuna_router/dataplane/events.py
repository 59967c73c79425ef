"""Server-sent events in bytes as they come: which are whole, and what is still on its way.

An event is complete with the blank line after it. Lines may end in LF or CRLF; one event may have several
`data:` lines, which are joined by LF, and comments (`:`), which are nobody's data.
"""

from __future__ import annotations

import re
from typing import Final

_BLANK: Final = re.compile(rb"\r?\n\r?\n")
_LINE: Final = re.compile(rb"\r?\n")


class EventSplitter:
    """Cuts a stream of bytes into whole events, wherever the reads have cut it.

    `tail` is the beginning of an event that is not complete: empty after a whole one.
    """

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that are complete with this piece, each with its blank line, joined equal to what came."""
        text = self.tail + piece if self.tail else piece
        if b"\r" not in text:
            *whole, self.tail = text.split(b"\n\n")
            return [event + b"\n\n" for event in whole]
        events = []
        # What is known of the tail holds no blank line; one may begin in its last three bytes.
        start, search = 0, max(0, len(self.tail) - 3)
        while (match := _BLANK.search(text, search)) is not None:
            events.append(text[start : match.end()])
            start = search = match.end()
        self.tail = text[start:] if start else text
        return events


def data_of(event: bytes) -> bytes | None:
    """The data of one event, its lines joined by LF; None for an event without data (a comment, a ping)."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n"):
        data = event[6:-2]
        if b"\n" not in data:  # the form in which every engine writes them
            return data
    lines = [line for line in _LINE.split(event) if line.startswith(b"data:")]
    if not lines:
        return None
    return b"\n".join(line[6:] if line[5:6] == b" " else line[5:] for line in lines)


def is_error_event(event: bytes) -> bool:
    """True when the event is called an error; one that says so in its data is for the reader of the data."""
    if b"event:" not in event:
        return False
    return any(line[6:].strip() == b"error" for line in _LINE.split(event) if line.startswith(b"event:"))
