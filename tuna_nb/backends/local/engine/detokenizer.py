"""Token ids to text, one at a time, and the search for stop strings.

Text lags ids: half a character is held until it is complete (and lost if the answer ends there), and with stop
strings the last characters are held in case they begin one. So at any cut a client has at least as many ids as
text. Follows vLLM's `v1/engine/detokenizer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuna_nb.backends.local.engine.tokenizer import REPLACEMENT, decode
from tuna_nb.backends.local.engine.vocabulary import FIRST_BYTE, TOKENS


def _plain(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


_TEXT = tuple(_plain(token) for token in TOKENS)


class Detokenizer:
    """The text of one answer as it grows.

    stop: strings that end the answer. leak: copy vLLM's bug (issue 48853) that puts the whole prompt into the
    first piece of text when the prompt ends inside a character; without it the character is completed.
    """

    __slots__ = (
        "_held",
        "_hold_back",
        "_include_stop",
        "_min_tokens",
        "_prompt",
        "_sent",
        "_skip_special",
        "_stop",
        "count",
        "text",
    )

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special: bool = True,
        leak: bool = True,
    ) -> None:
        self.text = ""
        self.count = 0
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._skip_special = skip_special
        self._hold_back = max(map(len, stop)) - 1 if stop and not include_stop else 0
        self._sent = 0
        self._held = b""
        self._prompt = ""
        tail = b"".join(TOKENS[i] for i in prompt_ids[-4:])
        if tail and tail[-1] >= 0x80:
            for start in range(max(0, len(tail) - 4), len(tail)):
                if tail[start] >= 0xC0:
                    self._held = tail[start:]
            if not _is_open(self._held):
                self._held = b""
            elif leak:
                self._prompt = decode(prompt_ids, skip_special=skip_special).rstrip(REPLACEMENT)

    def push(self, token_id: int, *, silent: bool = False) -> str | None:
        """Add a token and return the stop string that it completed, if any; `silent` adds none of its text."""
        self.count += 1
        before = len(self.text)
        if not silent and not (token_id < FIRST_BYTE and self._skip_special):
            plain = _TEXT[token_id]
            if plain is not None and not self._held:
                self.text += plain
            else:
                self._held += TOKENS[token_id]
                complete = self._held.decode("utf-8", "replace")
                if not complete.endswith(REPLACEMENT):
                    self.text += self._prompt + complete
                    self._held = b""
                    self._prompt = ""
        if self._stop and self.count > self._min_tokens and len(self.text) > before:
            return self._find_stop(len(self.text) - before)
        return None

    def _find_stop(self, new: int) -> str | None:
        found: tuple[int, str] | None = None
        for stop in self._stop:
            index = self.text.find(stop, max(0, len(self.text) - new - len(stop) + 1))
            if index >= 0 and (found is None or index + len(stop) < found[0]):
                found = (index + len(stop), stop)
        if found is None:
            return None
        end, stop = found
        self.text = self.text[: end if self._include_stop else end - len(stop)]
        return stop

    def take(self, *, finished: bool) -> str:
        """The text that may be sent and has not been."""
        end = len(self.text) if finished else len(self.text) - self._hold_back
        if end <= self._sent:
            return ""
        piece = self.text[self._sent : end]
        self._sent = end
        return piece


def _is_open(tail: bytes) -> bool:
    """Whether these bytes are the start of a character that more bytes could complete."""
    if not tail:
        return False
    lead = tail[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4 if lead < 0xF8 else 1
    return len(tail) < length
