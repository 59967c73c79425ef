"""Account: what an answer used, whether it ended well, and the counters. Never changes or delays a byte."""

from __future__ import annotations

import re
from typing import Final, Protocol

from tuna_router.books.load import Uses
from tuna_router.books.meter import Meter, Outcome, Tokens
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.fleet.live import Attempt, LiveBackend
from tuna_router.keys.live import LiveKey
from tuna_router.told.access_log import Entry

_BATCH_BYTES: Final = 64 * 1024
_KEEP_BYTES: Final = 1024 * 1024
_TAIL_BYTES: Final = 8 * 1024
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_PROMPT_TOKENS: Final = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,15})\b')
_COMPLETION_TOKENS: Final = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,15})\b')
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_DONE: Final = re.compile(rb"^data:\s*\[DONE\]", re.MULTILINE)
_TEXTS: Final = (
    b'"content":"',
    b'"text":"',
    b'"reasoning":"',
    b'"content": "',
    b'"text": "',
    b'"reasoning_content":"',
)
_ERROR: Final = re.compile(rb'^data:\s*\{\s*"error"\s*:\s*[{"]', re.MULTILINE)
_ERROR_FIRST: Final = re.compile(rb'\s*(?:event:\s*error\s*)?data:\s*\{\s*"error"\s*:\s*[{"]')
_COMPLETIONS: Final = re.compile(rb"/(?:chat/)?completions$")
_NONE: Final = Tokens()


def begins_with_an_error(first: bytes) -> bool:
    """True when the first bytes of an event stream are an error event: vLLM's answer when its engine dies."""
    return _ERROR_FIRST.match(first) is not None


def usage_of(data: bytes) -> Tokens | None:
    """The last `usage` in an OpenAI answer or event; None where there is none.

    Found by its quotes, which would be escaped in a text: decoding all of a long answer for its last line
    would be the dearest thing that is done with it.
    """
    at = data.rfind(b'"usage"')
    if at < 0 or _USAGE.match(data, at) is None:
        return None
    prompt, completion = _PROMPT_TOKENS.search(data, at), _COMPLETION_TOKENS.search(data, at)
    return Tokens(int(prompt[1]) if prompt is not None else 0, int(completion[1]) if completion is not None else 0)


class Account:
    """The books of one request: opened when it is admitted, closed once; `attempt` is the one that runs."""

    __slots__ = ("_meter", "_open", "_uses", "attempt", "began", "first_byte_at", "key", "reader", "tokens")

    _uses: Uses

    def __init__(self, meter: Meter, now: float, key: LiveKey | None = None) -> None:
        self._meter = meter
        self.key = key
        self.first_byte_at = 0.0
        self._open = True
        self.began = now
        self.attempt: Attempt | None = None
        self.reader: Told | None = None
        self.tokens: Tokens = _NONE
        meter.requests.begin(now)

    def tries(self, backend: LiveBackend, now: float, model: str = "") -> Attempt:
        """An attempt at a backend begins; the one before was closed. `model`: where it is known."""
        if self.attempt is None:
            key = self.key
            self._uses = self._meter.load.begin(now, model, None if key is None else key.settings.name)
        elif now >= self._meter.load.next_at:
            self._meter.load.advance(now)
        self.attempt = attempt = Attempt(backend, now, self.key)
        return attempt

    def answers(self, status: int, now: float) -> None:
        """The first bytes of an answer are there."""
        attempt = self.attempt
        assert attempt is not None
        self.first_byte_at = attempt.first_byte_at = now
        attempt.backend.tally.answer(status)

    def streams(self, reader: Told, now: float) -> None:
        """The answer is an event stream, whose first byte came now."""
        attempt = self.attempt
        assert attempt is not None
        self.reader = reader
        self._meter.requests.ttft.add(now - self.began)
        attempt.backend.tally.ttft.add(now - attempt.began)

    def continues(self, now: float) -> None:
        """The first byte of the rest of an answer came now."""
        attempt = self.attempt
        assert attempt is not None
        attempt.first_byte_at = now
        attempt.backend.tally.ttft.add(now - attempt.began)

    def close(self, outcome: Outcome, now: float, model: str = "") -> None:
        """The request is over, however it ended: what it used so far was used."""
        if not self._open:
            return
        self._open = False
        attempt = self.attempt
        if attempt is not None:
            if self.reader is not None:
                self.tokens = self.reader.tokens()
            tokens = self.tokens
            tally, completion = attempt.backend.tally, tokens.completion + tokens.estimated
            self._meter.load.end(self._uses, now - self.began, now, tokens.prompt, completion)
            tally.requests += 1
            if tokens is not _NONE:
                self._meter.requests.use(tokens)
                tally.use(tokens)
                if self.key is not None:
                    self.key.used(tokens.prompt, completion, now)
            attempt.close(outcome, now, model)
        self._meter.requests.end(outcome, self.began, now)

    def entry(
        self,
        head: RequestHead,
        outcome: Outcome,
        now: float,
        *,
        request_id: bytes,
        status: int,
        attempts: int,
        resumes: int,
        sent_bytes: int,
    ) -> Entry:
        """The request's line in the access log, when it is closed."""
        attempt, tokens, key, total_s = self.attempt, self.tokens, self.key, now - self.began
        return Entry(
            self._meter.wall() - total_s,
            request_id,
            head.method,
            head.target,
            status,
            attempt.backend.name if attempt is not None else None,
            attempts,
            resumes,
            self.first_byte_at - self.began if self.first_byte_at else None,
            total_s,
            tokens.prompt,
            tokens.completion + tokens.estimated,
            sent_bytes,
            key.settings.name if key is not None else None,
            outcome.value,
        )


class Told(Protocol):
    """An answer that is followed as it comes."""

    def tokens(self) -> Tokens:
        """What was used so far."""


class Reader:
    """Follows the event stream that answers `path`: whether it ends well, and what it used.

    It is read in batches, most streams at their end only: a token on its way waits for nothing.
    """

    __slots__ = ("_chunks", "_error", "_finished", "_must_finish", "_size", "_unread", "_usage")

    def __init__(self, path: bytes, status: int) -> None:
        self._must_finish = status == 200 and _COMPLETIONS.search(path) is not None
        self._unread: list[bytes] = []
        self._size = 0
        self._usage: Tokens | None = None
        self._chunks = 0
        self._finished = False
        self._error = False

    def feed(self, piece: bytes) -> None:
        """The next bytes of the body."""
        self._unread.append(piece)
        self._size += len(piece)
        if self._size > _BATCH_BYTES:
            self._read(whole=False)

    @property
    def error_seen(self) -> bool:
        """True when one of the events was an error."""
        self._read(whole=False)
        return self._error

    @property
    def cut_short(self) -> bool:
        """True for a completion stream without a finish, a [DONE] or an error: its end is not one."""
        self._read(whole=True)
        return self._must_finish and not self._finished and not self._error

    def tokens(self) -> Tokens:
        """What was used so far."""
        self._read(whole=False)
        return Tokens(estimated=self._chunks) if self._usage is None else self._usage

    def _read(self, *, whole: bool) -> None:
        """Read what was fed, up to its last line end; with `whole`, the rest too."""
        if not self._unread:
            return
        data = b"".join(self._unread)
        end = len(data) if whole else data.rfind(b"\n") + 1
        rest = data[end:][:_KEEP_BYTES]
        data = data[:end]
        self._unread = [rest] if rest else []
        self._size = len(rest) if len(rest) < _BATCH_BYTES else 0
        if not data:
            return
        usage = usage_of(data)
        if usage is not None:
            self._usage = usage
        if self._usage is None:
            self._chunks += _count_texts(data)
        self._finished = self._finished or _finishes(data)
        self._error = self._error or (b'"error"' in data and _ERROR.search(data) is not None)


def _count_texts(data: bytes) -> int:
    """How many events bring text. One stream writes it in one way: the first that occurs is counted."""
    return next((n - data.count(text + b'"') for text in _TEXTS if (n := data.count(text))), 0)


def _finishes(data: bytes) -> bool:
    # At the end, where a finish is; and first as engines write it: patterns are ten times as slow.
    tail = data[-_TAIL_BYTES:]
    if b'"finish_reason":"' in tail or b"\ndata: [DONE]" in tail:
        return True
    return _FINISH.search(tail) is not None or _DONE.search(tail) is not None
