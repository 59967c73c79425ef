"""Packing: the chunks of one stream differ in a word and a number, so what they share is kept once.

Nothing is parsed and nothing is lost: 250 bytes per token become some ten.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TEXT: Final = re.compile(rb'"(?:content|text|reasoning|reasoning_content)":"')
_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*')
_IDS: Final = b'"token_ids":['
_BETWEEN, _WITHIN = b"\x01", b"\x02"
"""Control characters never stand bare in JSON."""


class Template(NamedTuple):
    """What a stream's ordinary events share: `head` text `middle` ids `end`, or head, text and end without ids.

    All of them are one line; the end has the blank line, and `finish_reason` null stands behind the text.
    """

    head: bytes
    middle: bytes
    end: bytes


def learn(event: bytes) -> Template | None:
    """The template of which `event` is an example; None for an event of another kind."""
    key = _TEXT.search(event)
    if key is None or not event.endswith(b"\n\n") or event.find(b"\n") != len(event) - 2:
        return None
    string = _STRING.match(event, key.end())
    assert string is not None  # it matches the empty string too
    head, after = event[: key.end()], string.end()
    ids = event.find(_IDS, after)
    end = event.find(b"]", ids) if ids >= 0 else -1
    middle = event[after : ids + len(_IDS)] if end >= 0 else b""
    rest = event[end:] if end >= 0 else event[after:]
    if b'"finish_reason":null' not in (middle or rest) or b"[" in rest or b"[" in middle[:-1]:
        return None  # lists besides the ids: the first chunk, with the prompt's
    return Template(head, middle, rest)


class _Run:
    """Variable parts of events that share a template, or (None) whole events."""

    __slots__ = ("packed", "template")

    def __init__(self, template: Template | None) -> None:
        self.template = template
        self.packed = bytearray()

    def events(self) -> bytes:
        template, packed = self.template, bytes(self.packed)
        if template is None:
            return packed
        if template.middle:
            packed = packed.replace(_WITHIN, template.middle)
        return template.head + packed.replace(_BETWEEN, template.end + template.head) + template.end


class PackedEvents:
    """Events of one stream, in order. `memory_bytes` is about what they take."""

    __slots__ = ("_runs", "memory_bytes")

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self.memory_bytes = 0

    def add(self, parts: list[bytes], template: Template) -> None:
        """Keep events of which these are the parts between the template's head and end."""
        packed = _BETWEEN.join(parts)
        if packed.count(_BETWEEN) != len(parts) - 1 or _WITHIN in packed:
            self.add_whole(b"".join([template.head + part + template.end for part in parts]))
            return
        if template.middle:
            packed = packed.replace(template.middle, _WITHIN)
        run = self._run(template)
        if run.packed:
            run.packed += _BETWEEN
        run.packed += packed
        self.memory_bytes += len(packed) + 1

    def add_whole(self, events: bytes) -> None:
        """Keep events that are like no others."""
        self._run(None).packed += events
        self.memory_bytes += len(events)

    def events(self) -> bytes:
        """All of them, byte for byte."""
        return b"".join([run.events() for run in self._runs])

    def clear(self) -> None:
        """Forget everything."""
        self._runs.clear()
        self.memory_bytes = 0

    def _run(self, template: Template | None) -> _Run:
        if not self._runs or self._runs[-1].template is not template:
            self._runs.append(_Run(template))
            self.memory_bytes += 200 + (sum(map(len, template)) if template is not None else 0)
        return self._runs[-1]
