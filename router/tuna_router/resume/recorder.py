"""Recorder: what one stream has said, kept cheaply, and how it ends, known before the client is told.

A piece that is one ordinary event is known by its two ends, and passed on. Anything else (half an event, a finish,
`[DONE]`, something that may be an error) is read event by event, and only whole events that belong to a good
stream are let through: the client never sees the error, or the `[DONE]` after it, of a stream that will be
continued. A good stream has a chunk with a finish_reason and no error; `[DONE]` alone proves nothing.
"""

from __future__ import annotations

import json
import re
from typing import Final

from tuna_router.dataplane.events import EventSplitter, data_of, is_error_event
from tuna_router.resume.hide import hide_ids, is_only_ids
from tuna_router.resume.packing import PackedEvents, Template, learn

CAP_BYTES: Final = 1024 * 1024
_PACK_PARTS: Final = 64
_OBJECT_BYTES: Final = 41
"""What a part takes besides its bytes: its object and its place in a list."""
_LEARNS: Final = 8
"""A stream whose events share less than that (running usage in each) is read event by event."""
_NEVER: Final = b"\x00"
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"(\w+)"')
_TEXT: Final = re.compile(rb'"(?:content|text|reasoning|reasoning_content)"\s*:\s*"[^"]')
_NO_FINISH: Final = frozenset({b"abort", b"error"})


class Recorder:
    """Follows the stream of one backend to its end; feed it every piece of the body.

    hides_ids: the client did not ask for token ids. given_up: why the stream can't be continued (the refusal of
    its request; more than `cap_bytes`), or None: then nothing is kept, but the end is still judged.
    broken: what broke the stream, or None; nothing is let through after it.
    finished: a chunk with a finish_reason has been let through. done: so has [DONE].
    """

    __slots__ = (
        "_cap_bytes",
        "_end",
        "_head",
        "_hides_ids",
        "_learns",
        "_middle",
        "_middle_length",
        "_null_end",
        "_packed",
        "_part",
        "_parts",
        "_splitter",
        "_template",
        "_texts",
        "broken",
        "done",
        "finished",
        "given_up",
        "usage",
    )

    def __init__(self, *, hides_ids: bool, given_up: str | None = None, cap_bytes: int = CAP_BYTES) -> None:
        self._hides_ids = hides_ids
        self._cap_bytes = cap_bytes
        self._parts: list[bytes] = []
        """Of the last ordinary events: what stands between the head and the end of the template."""
        self._part = slice(0)
        self._packed = PackedEvents()
        self._splitter = EventSplitter()
        self._template: Template | None = None
        self._learns = _LEARNS
        self._head = _NEVER
        self._middle = self._end = self._null_end = b""
        self._middle_length = 0
        self.given_up = given_up
        self.broken: str | None = None
        self.finished = False
        self.done = False
        self.usage = b""
        """The data of the last event that tells usage."""
        self._texts = 0

    @property
    def texts(self) -> int:
        """How many events brought text: about one token each."""
        return self._texts + len(self._parts)

    def feed(self, payload: bytes) -> bytes:
        """The next bytes of the body; returns what may be sent to the client now, `payload` itself if it can."""
        # One whole event like those before: begun alike, ended alike, one line.
        if (
            payload.startswith(self._head)
            and payload.endswith(self._end)
            and payload.find(b"\n") == len(payload) - 2
        ):
            if not self._middle_length:
                parts = self._parts
                parts.append(payload[self._part])
                if len(parts) > _PACK_PARTS:
                    self._pack()
                return payload
            start = payload.rfind(b"[")
            if payload.startswith(self._middle, start - self._middle_length):
                parts = self._parts
                parts.append(payload[self._part])
                if len(parts) > _PACK_PARTS:
                    self._pack()
                return payload[:start] + self._null_end if self._hides_ids else payload
        return self._read(payload)

    @property
    def ordinary(self) -> tuple[bytes, bytes]:
        """How an event begins and ends that may be passed on unseen, if it is one line; then tell `took`.

        Beginnings that no event has, where each must be seen.
        """
        if self._middle_length or self._splitter.tail or self.broken is not None:
            return _NEVER, b""
        return self._head, self._end

    def took(self, parts: list[bytes]) -> int:
        """Ordinary events were passed on unseen; returns how many bytes they were. `parts` is what they had between
        beginning and end."""
        self._parts += parts
        if len(self._parts) > _PACK_PARTS:
            self._pack()
        return sum(map(len, parts)) + len(parts) * (len(self._head) + len(self._end))

    def end(self) -> bytes:
        """The body came to its framed end; returns what may still be sent. A stream without a finish is broken."""
        tail = self._splitter.tail
        passed = b""
        if tail and self.broken is None:
            self._splitter.tail = b""
            if _is_whole(tail):
                # A stream may end without the blank line; what it said last counts.
                passed = self._event(tail)
        if not self.finished:
            self.lost("the stream ended without a finish")
        return passed

    def lost(self, reason: str) -> None:
        """The backend broke off, or has been silent for too long."""
        if self.broken is None and not self.done:
            self.broken = reason
            self._head = _NEVER

    @property
    def memory_bytes(self) -> int:
        """About what is kept, in bytes."""
        parts = sum(map(len, self._parts)) + len(self._parts) * _OBJECT_BYTES
        return parts + self._packed.memory_bytes + len(self._splitter.tail)

    def events(self) -> bytes | None:
        """All whole events so far, as the backend sent them; None once given up."""
        self._pack()
        return None if self.given_up is not None else self._packed.events()

    def _read(self, payload: bytes) -> bytes:
        """Bytes that may be anything, event by event."""
        if self.broken is not None:
            return b""
        passed = [self._event(event) for event in self._splitter.feed(payload)]
        tail = self._splitter.tail
        if len(tail) > self._cap_bytes and self.broken is None:
            self.broken = f"an event of more than {self._cap_bytes} bytes"
        if tail or self.broken is not None:
            self._head = _NEVER
        elif self._template is not None:
            self._head = self._template.head
        told = b"".join(passed)
        return payload if told == payload else told

    def _event(self, event: bytes) -> bytes:
        """One whole event: what may be sent of it."""
        if self.broken is not None or self.done:
            return b""  # nothing is behind [DONE]
        template = self._template
        if template is not None and event.startswith(template.head) and event.endswith(template.end):
            start = event.rfind(b"[")
            if event.startswith(self._middle, start - self._middle_length):
                parts = self._parts
                parts.append(event[self._part])
                if len(parts) > _PACK_PARTS:
                    self._pack()
                return event[:start] + self._null_end if self._middle_length and self._hides_ids else event
        data = data_of(event)
        if data is None:
            return event
        said = data.strip()
        if not (said.startswith(b"{") and said.endswith(b"}")):
            if said == b"[DONE]" and self.finished:
                self.done = True
                return event
            # Or half an event whose end somebody else has put there: no client could read it.
            self.broken = "[DONE] came without a finish" if said == b"[DONE]" else "an event that is no chunk"
            return b""
        if is_error_event(event) or (b'"error"' in data and _is_error(data)):
            self.broken = "an error event"
            return b""
        finish = _FINISH.search(data)
        if finish is not None:
            if finish.group(1) in _NO_FINISH:
                self.broken = f"finish_reason {finish.group(1).decode()}"
                return b""
            self.finished = True
        elif self._learns:
            self._learn(event)
        if b'"usage"' in data:
            self.usage = data
        if _TEXT.search(data) is not None:
            self._texts += 1
        self._keep(event if event.endswith(b"\n") else event + b"\n\n")
        if not self._hides_ids:
            return event
        return b"" if is_only_ids(event) else hide_ids(event)

    def _keep(self, event: bytes) -> None:
        """An event that is like no others."""
        self._pack()
        if self.given_up is None:
            self._packed.add_whole(event)
            self._check_cap()

    def _learn(self, event: bytes) -> None:
        """Take `event` for the example of those to come."""
        template = learn(event)
        if template is None:
            return
        self._learns -= 1
        self._pack()
        self._template = template
        # Without the bracket, so that it is compared up to where that was found.
        self._middle, self._end = template.middle[:-1], template.end
        self._middle_length = len(self._middle)
        self._part = slice(len(template.head), -len(template.end))
        self._null_end = b"null" + template.end[1:]

    def _pack(self) -> None:
        parts = self._parts
        if not parts:
            return
        self._texts += len(parts)
        if self.given_up is None and self._template is not None:
            self._packed.add(parts, self._template)
            self._check_cap()
        parts.clear()

    def _check_cap(self) -> None:
        if self._packed.memory_bytes > self._cap_bytes:
            self.given_up = f"more than {self._cap_bytes} bytes were said"
            self._packed.clear()


def _is_error(data: bytes) -> bool:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("error") is not None


def _is_whole(tail: bytes) -> bool:
    data = data_of(tail)
    if data is None:
        return False
    if data.strip() == b"[DONE]":
        return True
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
