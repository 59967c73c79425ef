"""What sources that list many clouds have in common: one name for a cloud."""

from __future__ import annotations

from typing import Final

NAMES: Final = {"lambdalabs": "lambda"}
"""Where a source's word is not ours."""


def named(word: str) -> str:
    """Our name for a source's cloud."""
    return NAMES.get(word, word)
