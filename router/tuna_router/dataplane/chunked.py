"""The framing of a chunked body: which bytes are payload, which may be passed on as they are, where it ends.

Stricter than most parsers (no bare LF, no sign, no blank before a size, a size of at most 15 digits, a
bounded size line): whoever reads after us must not read something else. Trailers are checked and dropped.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

END: Final = b"0\r\n\r\n"
_LONGEST_LINE: Final = 4096
_MOST_TRAILERS: Final = 16 * 1024
_LONGEST_PADDING: Final = 64 * 1024
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
# A trailer that speaks of framing is not dropped in silence: somebody meant something by it.
_TRAILER: Final = re.compile(
    rb"(?i:(?!transfer-encoding:|content-length:|host:))[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*"
)
_LINE, _DATA, _CRLF, _TRAILERS = range(4)


def chunk_of(payload: bytes) -> bytes:
    """One whole chunk; not of nothing, which would be the end."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


@lru_cache(maxsize=4096)
def size_line(total: int) -> bytes | None:
    """How one whole chunk of `total` bytes, framing included, begins; None where none has so many."""
    for digits in range(1, 9):
        line = b"%x\r\n" % max(total - digits - 4, 0)
        if len(line) == digits + 2 and line != b"0\r\n":
            return line
    return None


class BadFraming(Exception):
    """A body whose end can't be known."""


@lru_cache(maxsize=4096)
def chunk_size(line: bytes) -> int:
    """The size in a chunk's first line. Raises BadFraming."""
    match = _SIZE.fullmatch(line)
    if match is None:
        raise BadFraming("a chunk without a size")
    return int(match[1], 16)


class ChunkedBody:
    """Follows one chunked body. After each `feed`:

    `payload` is what its chunks carried; `raw` the same with its framing, complete up to a point at
    which something may be added (see `closing`), without the terminator; `ended` is True at the end, and
    `rest` then holds what came after it.
    """

    __slots__ = ("_held", "_left", "_state", "_trailers", "ended", "payload", "raw", "rest")

    def __init__(self) -> None:
        self._state = _LINE
        self._left = 0
        self._held = b""
        self._trailers = 0
        self.payload = b""
        self.raw = b""
        self.rest = b""
        self.ended = False

    def feed(self, data: bytes) -> None:
        """The next bytes off the wire. Raises BadFraming."""
        if self._state == _LINE and not self._held:
            line_end = data.find(b"\r\n", 0, 18)
            if line_end > 0:
                size = chunk_size(data[:line_end])
                if size and len(data) == line_end + size + 4 and data.endswith(b"\r\n"):
                    # One read, one chunk: how engines write their tokens.
                    self.payload = data[line_end + 2 : -2]
                    self.raw = data
                    return
        self._walk(self._held + data if self._held else data)

    @property
    def at_rest(self) -> bool:
        """True between two chunks."""
        return self._state == _LINE and not self._held and not self.ended

    def closing(self) -> bytes | None:
        """What must be sent after all `raw` so far before a chunk of our own; None where that can't be.

        A chunk that was announced longer than what came is filled up with line ends, which mean nothing
        in an event stream.
        """
        if self._state == _DATA:
            return b"\n" * self._left + b"\r\n" if self._left <= _LONGEST_PADDING else None
        return b"\r\n" if self._state == _CRLF else b""

    def _walk(self, data: bytes) -> None:
        parts: list[bytes] = []
        at = safe = 0
        size = len(data)
        while True:
            if self._state == _LINE:
                end = data.find(b"\r\n", at, at + _LONGEST_LINE)
                if end < 0:
                    _partial(data, at)
                    break
                self._left = chunk_size(data[at:end])
                at = end + 2
                if self._left == 0:
                    self._state = _TRAILERS
                    continue
                self._state = _DATA
                safe = at
            if self._state == _DATA:
                piece = data[at : at + self._left]
                if piece:
                    parts.append(piece)
                at = safe = at + len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._state = _CRLF
            if self._state == _CRLF:
                if size - at < 2:
                    if data[at:] not in (b"", b"\r"):
                        raise BadFraming("a chunk longer than its size")
                    break
                if data[at : at + 2] != b"\r\n":
                    raise BadFraming("a chunk longer than its size")
                at = safe = at + 2
                self._state = _LINE
            elif self._state == _TRAILERS:
                end = data.find(b"\r\n", at, at + _LONGEST_LINE)
                if end < 0:
                    _partial(data, at)
                    break
                line = data[at:end]
                at = end + 2
                if not line:
                    self.ended = True
                    break
                self._trailers += len(line)
                if _TRAILER.fullmatch(line) is None or self._trailers > _MOST_TRAILERS:
                    raise BadFraming("a trailer that is none")
        self.payload = parts[0] if len(parts) == 1 else b"".join(parts)
        self.raw = data[:safe]
        self.rest = data[at:] if self.ended else b""
        # Trailer lines that were read are not held: only what is still incomplete is.
        held_from = at if self._state in (_TRAILERS, _CRLF) else safe
        self._held = b"" if self.ended else data[held_from:]


def _partial(data: bytes, at: int) -> None:
    """Raises BadFraming when what follows `at` can't become a line."""
    line = data[at:]
    if len(line) > _LONGEST_LINE or b"\n" in line or b"\r" in line[:-1]:
        raise BadFraming("a line that does not end")
