"""The "model": the next token as a pure function of the tokens before it.

A small grammar keeps the sentences readable; a rolling hash of the whole prefix picks the words. Because the
state is a function of the prefix and nothing else, `prompt + ids so far` on any engine goes on exactly where
another stopped. The end of an answer comes by itself at a full stop, once the answer has some length.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tuna_nb.backends.local.engine.vocabulary import (
    CLASSES,
    FIRST_BYTE,
    THINK_END,
    TOKENS,
    TURN_END,
    TURN_START,
    WordClass,
    ids_of,
)

_MASK: Final = (1 << 64) - 1
_C = WordClass
# What may follow what. A choice that stands twice is twice as likely.
_NEXT: Final[dict[WordClass, tuple[WordClass, ...]]] = {
    _C.NONE: (_C.SUBJECT_DETERMINER,),
    _C.FULL_STOP: (_C.SUBJECT_DETERMINER,),
    _C.SUBJECT_DETERMINER: (_C.SUBJECT_ADJECTIVE, _C.SUBJECT),
    _C.SUBJECT_ADJECTIVE: (_C.SUBJECT,),
    _C.SUBJECT: (_C.VERB, _C.VERB, _C.ADVERB),
    _C.ADVERB: (_C.VERB,),
    _C.VERB: (_C.DETERMINER,),
    _C.DETERMINER: (_C.ADJECTIVE, _C.OBJECT),
    _C.ADJECTIVE: (_C.OBJECT,),
    _C.OBJECT: (_C.PREPOSITION, _C.CONJUNCTION, _C.FULL_STOP, _C.FULL_STOP),
    _C.PREPOSITION: (_C.DETERMINER,),
    _C.CONJUNCTION: (_C.VERB,),
}
_FULL_STOP_ID: Final = TOKENS.index(b".")
_SPACED: Final = {c: (_FULL_STOP_ID,) if c is _C.FULL_STOP else ids_of(c, after_space=True) for c in _C}
_LINE_START: Final = ids_of(_C.SUBJECT_DETERMINER, after_space=False)
_CHOICES: Final = {c: tuple(_SPACED[after] for after in follow) for c, follow in _NEXT.items()}
_THOUGHT_TOKENS: Final = 12
"""A thought is at least so long, the head of the turn included."""
_WHITESPACE: Final = frozenset(i for i, token in enumerate(TOKENS) if token.isspace())
_MULTIBYTE: Final = tuple(c.encode() for c in ("é", "ü", "ñ", "€", "日", "本", "→", "😀", "🐟", "🚀"))


def scramble(value: int) -> int:
    """Spread a 64-bit value so that every bit of it is fit for a choice (the finaliser of MurmurHash3)."""
    value &= _MASK
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & _MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ value >> 33


class Prefix:
    """What the model remembers of all tokens so far; `push` adds one in constant time."""

    __slots__ = ("half_character", "hash", "last_class", "length_of_turn", "line_start", "thought")

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.hash = 0x243F6A8885A308D3
        self.length_of_turn = 0
        """Tokens since the last special token: an answer may end only after some length."""
        self.half_character = b""
        """The bytes of a character that is not complete yet."""
        self.last_class: WordClass = _C.NONE
        self.line_start = True
        self.thought = False
        """Whether the thinking of this turn is over."""
        for token_id in ids:
            self.push(token_id)

    def push(self, token_id: int) -> None:
        """Add one token."""
        self.hash = (self.hash * 6364136223846793005 + token_id * 0x9E3779B97F4A7C15 + 1442695040888963407) & _MASK
        if token_id < FIRST_BYTE:
            self.length_of_turn = 0
            self.half_character = b""
            self.last_class = _C.NONE
            self.line_start = token_id != TURN_END
            if token_id == TURN_START:
                self.thought = False
            return
        self.length_of_turn += 1
        if token_id < FIRST_BYTE + 256 and token_id >= FIRST_BYTE + 128:
            # A piece of a longer character leaves the sentence where it was.
            self.half_character = _open_character(self.half_character + TOKENS[token_id])
            return
        self.half_character = b""
        self.last_class = CLASSES[token_id]
        self.line_start = token_id in _WHITESPACE
        if token_id == THINK_END:
            self.thought = self.line_start = True


def _open_character(tail: bytes) -> bytes:
    """The end of `tail` that is the start of one of our multi-byte characters, or nothing."""
    for start in range(len(tail)):
        end = tail[start:]
        if any(len(end) < len(c) and c.startswith(end) for c in _MULTIBYTE):
            return end
    return b""


class Language:
    """Chooses tokens.

    min_answer_tokens: an answer never ends by itself before that many tokens. raw_bytes: now and then a
    multi-byte character is written, one byte per token, as real models do outside English. thinks: an answer
    begins with a sentence or two of reasoning, which `</think>` ends.
    """

    def __init__(self, *, min_answer_tokens: int = 40, raw_bytes: bool = False, thinks: bool = False) -> None:
        self.min_answer_tokens = min_answer_tokens
        self.raw_bytes = raw_bytes
        self.thinks = thinks

    def next_id(self, prefix: Prefix, noise: int = 0) -> int:
        """The token after `prefix`; `noise` 0 is the likeliest one (greedy), other values draw others."""
        bits = scramble(prefix.hash ^ noise)
        if prefix.half_character:
            fitting = [c for c in _MULTIBYTE if c.startswith(prefix.half_character)]
            chosen = fitting[bits % len(fitting)]
            return FIRST_BYTE + chosen[len(prefix.half_character)]
        if self.raw_bytes and bits >> 58 < 12:
            return FIRST_BYTE + _MULTIBYTE[bits % len(_MULTIBYTE)][0]
        last = prefix.last_class
        if last is _C.NONE and prefix.line_start:
            return _LINE_START[bits % len(_LINE_START)]
        if self.thinks and last is _C.FULL_STOP and not prefix.thought and prefix.length_of_turn >= _THOUGHT_TOKENS:
            return THINK_END
        if last is _C.FULL_STOP and prefix.length_of_turn >= self.min_answer_tokens and (bits >> 40) % 3 == 0:
            return TURN_END
        choices = _CHOICES[last]
        words = choices[(bits >> 32) % len(choices)]
        return words[(bits & 0xFFFFFFFF) % len(words)]
