"""Account: what an answer used, whether it ended well, and the counters. Never changes or delays a byte."""

from __future__ import annotations

import json
import re

from tuna_router.dataplane.response_head import ResponseHead
from tuna_router.fleet import Attempt
from tuna_router.meter import Meter, Outcome, Tokens

_KEEP_BYTES = 1024 * 1024
_BATCH_BYTES = 4096
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')
_CHOICE = re.compile(rb'"choices"\s*:\s*\[\s*\{')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_DECODER = json.JSONDecoder()
_NO_TEXT = re.compile(rb'"(?:content|text)"\s*:\s*""')
_ERROR = re.compile(rb'\s*\{\s*"error"\s*:\s*[{"]')
_ERROR_FIRST = re.compile(rb'\s*(?:event:\s*error\s*)?data:\s*\{\s*"error"\s*:\s*[{"]')
_COMPLETIONS = re.compile(rb"/(?:chat/)?completions$")


def begins_with_an_error(first: bytes) -> bool:
    """True when the first bytes of an event stream are an error event: vLLM's answer when its engine dies."""
    return _ERROR_FIRST.match(first) is not None


class Account:
    """The books of one request: opened when it is admitted, closed once."""

    __slots__ = ("_attempt", "_mark", "_path", "_read", "reader")

    def __init__(self, meter: Meter, target: bytes) -> None:
        self._mark = meter.request()
        self._path = target
        self._attempt: Attempt | None = None
        self._read = False
        self.reader: Reader | None = None

    def answers(self, attempt: Attempt, head: ResponseHead) -> Reader:
        """The first byte of an answer is there."""
        self._attempt = attempt
        self._mark.first_byte()
        attempt.mark.first_byte()
        self.reader = Reader(self._path.partition(b"?")[0], head.status, head.content_type)
        return self.reader

    def close(self, outcome: Outcome) -> None:
        """The request is over, however it ended: what it used so far was used."""
        if self.reader is not None and self._attempt is not None and not self._read:
            self._read = True
            tokens = self.reader.tokens()
            self._mark.tokens(tokens)
            self._attempt.mark.tokens(tokens)
        self._mark.close(outcome)


class Reader:
    """Follows one answer of `path` with a body of `kind`; feed it every piece."""

    __slots__ = (
        "_chunks",
        "_error_seen",
        "_finished",
        "_held",
        "_lines",
        "_must_finish",
        "_unread",
        "_unread_bytes",
        "_usage",
        "_whole",
    )

    def __init__(self, path: bytes, status: int, kind: bytes) -> None:
        self._lines = kind == b"text/event-stream"
        self._whole = kind == b"application/json"
        self._must_finish = self._lines and status == 200 and _COMPLETIONS.search(path) is not None
        self._held = b""
        self._usage: dict[str, object] | None = None
        self._chunks = 0
        self._finished = False
        self._error_seen = False
        self._unread: list[bytes] = []
        self._unread_bytes = 0

    def feed(self, piece: bytes) -> None:
        """The next bytes of the body. Events are read in batches: a token on its way waits for nothing."""
        if self._lines:
            self._unread.append(piece)
            self._unread_bytes += len(piece)
            if self._unread_bytes > _BATCH_BYTES:
                self._catch_up()
        elif self._whole and len(self._held) <= _KEEP_BYTES:
            self._held = self._held + piece if self._held else piece

    def _catch_up(self) -> None:
        """Read what was fed."""
        if not self._unread:
            return
        *lines, rest = b"".join([self._held, *self._unread]).split(b"\n")
        self._unread.clear()
        self._unread_bytes = 0
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())
        self._held = rest[:_KEEP_BYTES]

    @property
    def error_seen(self) -> bool:
        """True when one of the events was an error."""
        self._catch_up()
        return self._error_seen

    @property
    def cut_short(self) -> bool:
        """True for a completion stream without a finish, a [DONE] or an error: its end is not one."""
        self._catch_up()
        if self._lines and self._held.startswith(b"data:"):
            self._event(self._held[5:].strip())
            self._held = b""
        return self._must_finish and not self._finished and not self._error_seen

    def tokens(self) -> Tokens:
        """What was used so far."""
        self._catch_up()
        if self._whole:
            self._read_usage(self._held)
        if self._usage is None:
            return Tokens(estimated=self._chunks)
        return Tokens(_count(self._usage, "prompt_tokens"), _count(self._usage, "completion_tokens"))

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._finished = True
            return
        if b'"usage"' in data:
            self._read_usage(data)
        if b'"error"' in data and _ERROR.match(data):
            self._error_seen = True
        elif b'"choices"' in data and _CHOICE.search(data):
            if not _NO_TEXT.search(data):
                self._chunks += 1
            if _FINISH.search(data):
                self._finished = True

    def _read_usage(self, data: bytes) -> None:
        # The object alone: in text the quotes around "usage" would be escaped, and decoding all of a
        # long answer for its last line would be the dearest thing that is done with it.
        match = _USAGE.match(data, data.rfind(b'"usage"'))
        if match is None:
            return
        try:
            usage, _ = _DECODER.raw_decode(data[match.end() - 1 :].decode("utf-8", "replace"))
        except ValueError:
            return  # not ours to judge: the client gets it as it is
        self._usage = usage


def _count(usage: dict[str, object], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
