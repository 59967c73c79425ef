"""Text to token ids and back.

Text is cut into words as GPT-2's tokenizer does (a leading space belongs to its word), and each word is written
with the longest known tokens from the left. It is deterministic and loses nothing: every text that is valid
UTF-8 comes back unchanged. As with real tokenizers, several id lists may stand for one text; `encode` picks one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from tuna_nb.backends.local.engine.vocabulary import FIRST_BYTE, IDS, LONGEST, SPECIAL_TOKENS, TOKENS

_WORD = re.compile(r" ?[A-Za-z]+|\n\n|\.\.\.| ?[^\sA-Za-z]|\s")
_SPECIAL = re.compile("(" + "|".join(re.escape(name) for name in SPECIAL_TOKENS) + ")")
_CACHE_LIMIT: Final = 20_000
_cache: dict[str, tuple[int, ...]] = {}

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def _encode_word(word: str) -> tuple[int, ...]:
    # A lone surrogate can come out of JSON but has no UTF-8 form; it is read as "?", as a lenient decoder would.
    raw = word.encode("utf-8", "replace")
    whole = IDS.get(raw)
    if whole is not None and whole >= FIRST_BYTE:
        return (whole,)
    ids = []
    start = 0
    while start < len(raw):
        for length in range(min(LONGEST, len(raw) - start), 0, -1):
            found = IDS.get(raw[start : start + length])
            if found is not None and found >= FIRST_BYTE:
                ids.append(found)
                start += length
                break
    return tuple(ids)


def encode(text: str) -> list[int]:
    """The token ids of a text. The names of special tokens inside it become those tokens."""
    ids: list[int] = []
    parts = _SPECIAL.split(text) if "<|" in text else [text]
    for part in parts:
        if part in SPECIAL_TOKENS:
            ids.append(SPECIAL_TOKENS.index(part))
            continue
        for word in _WORD.findall(part):
            known = _cache.get(word)
            if known is None:
                known = _encode_word(word)
                if len(_cache) < _CACHE_LIMIT:
                    _cache[word] = known
            ids.extend(known)
    return ids


def decode(ids: Iterable[int], *, skip_special: bool = False) -> str:
    """The text of token ids; bytes that are no UTF-8 become the replacement character."""
    wanted = [TOKENS[i] for i in ids if not (skip_special and i < FIRST_BYTE)]
    return b"".join(wanted).decode("utf-8", "replace")


def token_strings(ids: Sequence[int]) -> list[str]:
    """Each token on its own, for /tokenize; a half character shows as the replacement character."""
    return [TOKENS[i].decode("utf-8", "replace") for i in ids]
