"""`$name` and `{expr}` in a magic's line, expanded inside each word after splitting.

So a value with blanks stays one argument, and an undefined name is an error; IPython's own expansion works on
the whole line before splitting and leaves what it can't expand in place without a word.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from tuna_nb.errors import UsageError

_VARIABLE = re.compile(r"\$\$|\$(?P<name>[A-Za-z_]\w*)|\{(?P<expr>[^{}]+)\}")
_HELD = re.compile("\0(\\d+)\0")
_ENGINE_PLACEHOLDERS = frozenset({"model", "host", "port"})


def split(line: str, namespace: Mapping[str, Any]) -> list[str]:
    """The words of a line. Raises UsageError for an open quote or a name that can't be expanded."""
    # An expression is held back while splitting, which would take its quotes and cut it at its blanks.
    expressions: list[str] = []

    def hold(match: re.Match[str]) -> str:
        if match["expr"] is None:
            return match[0]
        expressions.append(match[0])
        return f"\0{len(expressions) - 1}\0"

    try:
        words = shlex.split(_VARIABLE.sub(hold, line))
    except ValueError as e:
        raise UsageError(f"%tuna: {str(e).lower()}", "close the quote, or write a backslash before it") from None
    words = [_HELD.sub(lambda match: expressions[int(match[1])], word) for word in words]
    # {model}, {host} and {port} belong to --engine-cmd: they are filled in when an engine starts.
    return [
        _expand(word, namespace, keep=word.startswith("--engine-cmd=") or before == "--engine-cmd")
        for before, word in zip(["", *words], words, strict=False)
    ]


def _expand(word: str, namespace: Mapping[str, Any], keep: bool) -> str:
    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        source = match["name"] or match["expr"]
        if keep and match["expr"] in _ENGINE_PLACEHOLDERS:
            return match[0]
        try:
            return str(eval(source, {"__builtins__": __builtins__}, dict(namespace)))  # noqa: S307 - the user's own cell
        except Exception as e:  # noqa: BLE001 - the user's own expression may raise anything
            raise UsageError(
                f"%tuna: can't expand {match[0]}: {type(e).__name__}: {e}", "$$ is a plain dollar sign"
            ) from None

    return _VARIABLE.sub(one, word)
