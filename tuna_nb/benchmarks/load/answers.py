"""What an answer's bytes say, as they come: tokens, usage, its end, and what was wrong with it. No I/O.

An answer counts only when it came whole: with a finish reason, without an error event and, as a stream, with its
`[DONE]`. A chunk that only names a role is no token; reasoning and tool calls are text like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from tuna_router.dataplane.events import EventSplitter, data_of, is_error_event

_TEXTS: Final = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal")
_TEXT: Final = re.compile(rb'"(?:content|reasoning_content|reasoning|text)": ?"([^"\\]+)"')
_LESSONS: Final = 8
_MOST_BODY: Final = 64 << 20
_MOST_TAIL: Final = 4 << 20
_MOST_SHOWN: Final = 4096

Judgement = tuple[str | None, str]
"""One of rows.ERRORS, or None; and the error in words."""


class Told:
    """What all answers tell. Times are those that `feed` was given; `first_at` is 0 while there is none."""

    __slots__ = ("chunks", "finish_reason", "first_at", "gaps_us", "input_tokens", "output_tokens", "wrong")

    def __init__(self) -> None:
        self.chunks = 0
        self.first_at = 0.0
        self.gaps_us: list[int] = []
        self.finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.wrong: Judgement | None = None
        """The first thing that was wrong, once something is."""

    def feed(self, piece: bytes, at: float) -> bool:
        """The next bytes of the body. False when nothing more of it is wanted."""
        raise NotImplementedError

    def judge(self) -> Judgement:
        """What is to be said of it, now that all of it came."""
        raise NotImplementedError

    def _blame(self, error: str, detail: str) -> None:
        if self.wrong is None:
            self.wrong = (error, detail)

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
            self.input_tokens = read if isinstance(read, int) else self.input_tokens
            self.output_tokens = written if isinstance(written, int) else self.output_tokens


class EventsTold(Told):
    """A stream of events.

    Most of them differ in one string only: an event that begins and ends as one that was read before, with neither
    quote nor backslash between, is JSON of the same shape, and need not be taken apart to know that it brings text.
    """

    __slots__ = ("_begins", "_done", "_ends", "_last_at", "_lessons", "_shortest", "_splitter")

    def __init__(self) -> None:
        super().__init__()
        self._begins = self._ends = b""
        self._shortest = 0
        self._lessons = _LESSONS
        self._splitter = EventSplitter()
        self._last_at = 0.0
        self._done = False

    def feed(self, piece: bytes, at: float) -> bool:
        """See Told."""
        splitter = self._splitter
        begins = self._begins
        if begins and not splitter.tail and piece.startswith(begins) and piece.endswith(self._ends):
            text = piece[len(begins) : -len(self._ends)]
            if len(piece) >= self._shortest and b'"' not in text and b"\\" not in text:
                self.gaps_us.append(round((at - self._last_at) * 1e6))
                self._last_at = at
                self.chunks += 1
                return True
        if (
            not splitter.tail
            and piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.find(b"\n") == len(piece) - 2
        ):
            # One read, one event: how engines write their tokens.
            if self._event(piece[6:-2], at) and self._lessons:
                self._learn(piece)
            return True
        for event in splitter.feed(piece):
            if is_error_event(event):
                self._blame("error event", _message_in(data_of(event) or b""))
                continue
            data = data_of(event)
            if data is not None:
                self._event(data, at)
        if len(splitter.tail) > _MOST_TAIL:
            self._blame("malformed", "an event without an end")
            return False
        return True

    def judge(self) -> Judgement:
        """See Told."""
        if self._splitter.tail:
            self.feed(b"\n\n", self._last_at)  # some leave the last blank line out
        if self.wrong is not None:
            return self.wrong
        if not self._done or self.finish_reason is None:
            if not self.chunks and self.finish_reason is None:
                return "cut", "the stream ended without any text"
            return "cut", "the stream ended before its end"
        return None, ""

    def _learn(self, piece: bytes) -> None:
        """Remember the shape of an event that brings text and says nothing else."""
        self._lessons -= 1
        texts = list(_TEXT.finditer(piece))
        if len(texts) == 1:
            self._begins, self._ends = piece[: texts[0].start(1)], piece[texts[0].end(1) :]
            self._shortest = len(self._begins) + len(self._ends) + 1

    def _event(self, data: bytes, at: float) -> bool:
        """True when it brings text and says nothing else."""
        plain = False
        try:
            event = json.loads(data.decode())
            choices = event.get("choices")
            if choices:
                for choice in choices:
                    if _has_text(choice):
                        if self.chunks:
                            self.gaps_us.append(round((at - self._last_at) * 1e6))
                        else:
                            self.first_at = at
                        self.chunks += 1
                        self._last_at = at
                        plain = len(choices) == 1
                        break
                reason = choices[0].get("finish_reason")
                if reason is not None:
                    self.finish_reason = str(reason)
                    plain = False
            usage = event.get("usage")
            if usage is not None:
                self._count(usage)
                plain = False
            if event.get("error") is not None:
                self._blame("error event", _words(event["error"]))
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            if data.strip() == b"[DONE]":
                self._done = True
            else:
                self._blame("malformed", "an event that is no OpenAI chunk")
            return False
        return plain


class BodyTold(Told):
    """An answer in one piece."""

    __slots__ = ("_body",)

    def __init__(self) -> None:
        super().__init__()
        self._body = bytearray()

    def feed(self, piece: bytes, at: float) -> bool:
        """See Told."""
        if not self.first_at:
            self.first_at = at
        self._body += piece
        if len(self._body) > _MOST_BODY:
            self._blame("malformed", "an answer of more than 64 MiB")
            return False
        return True

    def judge(self) -> Judgement:
        """See Told."""
        if self.wrong is not None:
            return self.wrong
        try:
            answer = json.loads(self._body)
            if answer.get("error") is not None:
                return "malformed", f"an error with the status 200: {_words(answer['error'])}"
            choice = answer["choices"][0]
            self.finish_reason = choice.get("finish_reason")
            self.chunks = int(_has_text(choice))
        except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
            return "malformed", "the answer is no OpenAI answer"
        self._count(answer.get("usage"))
        if self.finish_reason is None:
            return "cut", "the answer has no finish reason"
        return None, ""


class FailureTold(Told):
    """An answer of another status, or of another kind than was asked for."""

    __slots__ = ("_body", "_error", "_what")

    def __init__(self, error: str, what: str) -> None:
        super().__init__()
        self._error, self._what = error, what
        self._body = b""

    def feed(self, piece: bytes, at: float) -> bool:
        """See Told."""
        self._body += piece
        return len(self._body) < _MOST_SHOWN

    def judge(self) -> Judgement:
        """See Told."""
        said = _message_in(self._body)
        return self._error, f"{self._what}: {said}" if said else self._what


def reader_of(status: int, content_type: bytes, *, stream: bool) -> Told:
    """Who reads the body of an answer with this head."""
    if status != 200:
        return FailureTold("status", f"status {status}")
    if not stream:
        return BodyTold()
    if content_type != b"text/event-stream":
        kind = content_type.decode("latin-1") or "something without a type"
        return FailureTold("not a stream", f"a stream was asked for, and {kind} came")
    return EventsTold()


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Of a chunk's or an answer's choice, in chat or completions."""
    said = choice.get("delta")
    if said is None:
        said = choice.get("message")
    if said is None:
        return bool(choice.get("text"))
    if said.get("content"):
        return True
    return any(said.get(name) for name in _TEXTS)


def _message_in(body: bytes) -> str:
    """The words of an error's body, which may be JSON."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
    return _words(told.get("error", told) if isinstance(told, dict) else told)


def _words(error: Any) -> str:
    if isinstance(error, dict):
        for name in ("message", "detail", "error", "type"):
            if error.get(name):
                return str(error[name])
    return str(error)
