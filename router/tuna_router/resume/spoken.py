"""Spoken: what a stream has said, read from its chunks when that matters: at a break, and while it is continued.

Positions are in characters of what the client sees, reasoning and content together, from the start. Text lags
ids, so each chunk with text leaves a `Mark`: with which id it came and how far the text then was.
"""

from __future__ import annotations

import json
from array import array
from typing import Any, NamedTuple

from tuna_router.dataplane.events import EventSplitter, data_of

REASONING_FIELDS = ("reasoning", "reasoning_content")


class Mark(NamedTuple):
    """After `ids` token ids of the current prompt's answer, the text stood at `position`.

    sure: one id came with this text, so it ended no character half way; of several ids the last may have.
    """

    ids: int
    position: int
    sure: bool


class Spoken:
    """One stream up to now.

    prompt_ids: of the prompt whose answer `ids` are; None where they were not told. ids_complete: every text
    came with its ids. base: position at which that prompt ends; prior_tokens: tokens before that position.
    position: how far the backend's text went; shown: how far the client's (beyond it, or not yet as far, while
    a continuation says again what is known). chunks: texts that came without ids, about one token each.
    """

    def __init__(self, *, chat: bool) -> None:
        self.chat = chat
        self.names: dict[str, Any] = {}
        """id, object, created, model of the first chunk."""
        self.role: str | None = None
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.reasoning_field = "reasoning"
        self.reasoning_length = 0
        self.shown = 0
        self.prompt_ids: array[int] | None = None
        self.ids: array[int] = array("q")
        self.ids_complete = True
        self.marks: list[Mark] = []
        self.base = 0
        self.prior_tokens = 0
        self.counted = True
        """Every token before `base` was known by its id."""
        self.position = 0
        self.chunks = 0
        self.prompt_tokens: int | None = None
        self.careful = False
        """A continuation began inside a character: from now on only a sure mark will do."""
        self.finished = False
        self.usage_sent = False
        self.unknown: str | None = None
        """Something said that a continuation could not go on with, by name."""

    @classmethod
    def read(cls, events: bytes, *, chat: bool) -> Spoken:
        """From the events of a first stream. Chunks that are no JSON are passed over."""
        spoken = cls(chat=chat)
        for event in EventSplitter().feed(events):
            data = data_of(event)
            try:
                chunk = json.loads(data) if data else None
            except (ValueError, RecursionError):
                continue
            if isinstance(chunk, dict):
                spoken.take(chunk)
        return spoken

    @property
    def text(self) -> str:
        """The content so far."""
        return "".join(self.content)

    @property
    def visible(self) -> str:
        """All that the client was shown: reasoning, then content."""
        return "".join(self.reasoning) + self.text

    @property
    def tokens(self) -> int:
        """Tokens generated so far; without ids an estimate."""
        return self.prior_tokens + (len(self.ids) if self.ids_complete else self.chunks)

    @property
    def exact(self) -> bool:
        """True when `tokens` is a count and no estimate."""
        return self.counted and self.ids_complete

    @property
    def memory_bytes(self) -> int:
        """About what is kept, in bytes."""
        ids = (len(self.ids) + len(self.prompt_ids or ())) * 8
        return ids + len(self.marks) * 120 + self.shown * 4 + 80 * (len(self.content) + len(self.reasoning))

    def take(self, chunk: dict[str, Any]) -> None:
        """One chunk of a stream of this kind."""
        if not self.names:
            self.names = {key: chunk[key] for key in ("id", "object", "created", "model") if key in chunk}
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            prompt_tokens = usage.get("prompt_tokens")
            if self.prompt_tokens is None and isinstance(prompt_tokens, int):
                self.prompt_tokens = prompt_tokens
            self.usage_sent = not chunk.get("choices")
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        choice = choices[0]
        ids = choice.get("token_ids")
        if self.chat:
            self._prompt(chunk.get("prompt_token_ids"))
            delta = choice.get("delta")
            reasoning, content = self._delta(delta if isinstance(delta, dict) else {})
        else:
            self._prompt(choice.get("prompt_token_ids"))
            reasoning, content = "", text_of(choice.get("text"))
        self.say(reasoning, content, ids if isinstance(ids, list) else None, len(reasoning) + len(content))
        if choice.get("finish_reason") is not None:
            self.finished = True

    def say(self, reasoning: str, content: str, ids: list[int] | None, length: int) -> None:
        """The client is shown this; the backend's text grew by `length` with these ids (None: not told)."""
        if reasoning:
            self.reasoning.append(reasoning)
            self.reasoning_length += len(reasoning)
        if content:
            self.content.append(content)
        self.shown += len(reasoning) + len(content)
        self.position += length
        if ids is not None and all(type(item) is int for item in ids):
            self.ids.extend(ids)
        else:
            ids = None
        if length:
            self.chunks += 1
            if ids is None:
                self.ids_complete = False
            else:
                self.marks.append(Mark(len(self.ids), self.position, len(ids) == 1))

    def rewind(self, keep: int, position: int) -> None:
        """A continuation goes on after `keep` of the ids, where the text stood at `position`."""
        del self.ids[keep:]
        while self.marks and self.marks[-1].ids > keep:
            self.marks.pop()
        self.position = position

    def rebase(self, tokens: int, position: int) -> None:
        """A continuation goes on from a prompt of its own, which ends at `position` after `tokens` tokens."""
        self.counted = self.exact
        self.prior_tokens, self.base, self.position = tokens, position, position
        self.prompt_ids = None
        self.ids = array("q")
        self.ids_complete = True
        self.marks = []
        self.chunks = 0

    def _prompt(self, ids: object) -> None:
        if self.prompt_ids is not None or self.ids or not isinstance(ids, list) or not ids:
            return
        if all(type(item) is int for item in ids):
            self.prompt_ids = array("q", ids)
            if self.prompt_tokens is None:
                self.prompt_tokens = len(ids)

    def _delta(self, delta: dict[str, Any]) -> tuple[str, str]:
        if self.role is None and isinstance(delta.get("role"), str):
            self.role = delta["role"]
        reasoning = ""
        for key, value in delta.items():
            if key in REASONING_FIELDS:
                if value:
                    self.reasoning_field, reasoning = key, text_of(value)
            elif key not in ("role", "content") and value:
                self.unknown = key
        return reasoning, text_of(delta.get("content"))


def text_of(value: object) -> str:
    """A string, or nothing for what is none."""
    return value if isinstance(value, str) else ""
