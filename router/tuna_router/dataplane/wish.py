"""What a request wants of the choice: its priority, its model, its session. Read only as far as something
configured asks for it: in the ordinary case the body is not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from tuna_router.dataplane.headers import PRIORITY
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.policy import PLAIN, Priority, Wish
from tuna_router.settings import Settings

_PRIORITIES: Final = {each.value.encode(): each for each in Priority}
_STRING: Final = rb'"[^"\\\x00-\x1f]*+"'
_SCALAR: Final = rb"(?:" + _STRING + rb"|[-+.0-9eE]++|true|false|null)\s*+"
_ARRAY: Final = rb"\[\s*+(?:" + _SCALAR + rb",?+\s*+)*+\]\s*+"
_OBJECT: Final = rb"\{\s*+(?:" + _STRING + rb"\s*+:\s*+" + _SCALAR + rb",?+\s*+)*+\}\s*+"
_PAIR: Final = _STRING + rb"\s*+:\s*+(?:" + _SCALAR + rb"|" + _ARRAY + rb"|" + _OBJECT + rb")"
# Possessive, so that a body made to be slow is not.
_FLAT_BEFORE: Final = re.compile(rb"\s*+\{\s*+(?:" + _PAIR + rb",\s*+)*+")
_FLAT_AFTER: Final = re.compile(rb"\s*+(?:,\s*+" + _PAIR + rb")*+\}\s*+")
_PLAIN_VALUE: Final = re.compile(rb"\s*+:\s*+(" + _STRING + rb")")
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_STRING_VALUE: Final = re.compile(rb'\s*+:\s*+("(?:[^"\\]++|\\.)*+")?', re.DOTALL)
_COLON: Final = re.compile(rb"\s*+:")


class BadWish(NamedTuple):
    """A header that makes no sense: the answer is a 400 with this message."""

    message: str
    code: str = "bad_priority"


class Wishes:
    """Reads requests as far as one configuration needs it; made once for each."""

    __slots__ = ("_batch_above", "_by_model", "_plain", "_session")

    def __init__(self, settings: Settings) -> None:
        self._by_model = any(backend.models is not None for backend in settings.backends)
        self._session = None if settings.session_header is None else settings.session_header.encode()
        self._batch_above = settings.batch_above_bytes
        self._plain = not self._by_model and self._session is None and self._batch_above is None

    def read(self, head: RequestHead, pieces: Sequence[bytes], size: int) -> Wish | BadWish:
        """What this request wants. `pieces` are its body as far as it is here, `size` bytes."""
        priority, session = head.special.get(PRIORITY), None
        if priority is None and self._plain:
            return PLAIN
        if self._session is not None:
            session = next((value for name, value in reversed(head.headers) if name == self._session), None)
        model = model_of(pieces[0] if len(pieces) == 1 else b"".join(pieces)) if self._by_model and pieces else None
        kind = Priority.INTERACTIVE
        if priority is not None:
            given = _PRIORITIES.get(priority.lower())
            if given is None:
                return BadWish("x-tuna-priority must be interactive or batch.")
            kind = given
        elif self._batch_above is not None and size > self._batch_above:
            kind = Priority.BATCH
        if model is None and not session and kind is Priority.INTERACTIVE:
            return PLAIN
        return Wish(kind, model, session or None)


def model_of(body: bytes) -> str | None:
    """The `"model"` at the top level of a JSON object; None where there is no such string."""
    found = _find(body)
    if found is not None:
        return found[0]
    if b"model" not in body and b"\\u006" not in body:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None  # the backend's to refuse
    model = value.get("model") if isinstance(value, dict) else None
    return model if isinstance(model, str) else None


def with_model(body: bytes, name: str) -> bytes:
    """`body` with another model name, every other byte as it was; unchanged where it names no model."""
    found = _find(body) or _walk(body)
    if found is None:
        return body
    return b"%b%b%b" % (body[: found[1]], json.dumps(name).encode(), body[found[2] :])


def _find(body: bytes) -> tuple[str, int, int] | None:
    """The name, and where its string begins and ends, where that can be had quickly.

    That is where "model" is there once, spelled without escapes, and only pairs that are flat or nearly so
    stand between it and one end of the object: then it can't be inside of anything.
    """
    at = body.find(b'"model"')
    if at < 0 or body.find(b'"model"', at + 7) >= 0 or b"\\u006" in body:
        return None
    value = _PLAIN_VALUE.match(body, at + 7)
    if value is None:
        return None
    if not _FLAT_BEFORE.fullmatch(body, 0, at) and (
        body[at - 1 : at] == b"\\" or not _FLAT_AFTER.fullmatch(body, value.end())
    ):
        return None
    start, end = value.span(1)
    try:
        return body[start + 1 : end - 1].decode(), start, end
    except UnicodeDecodeError:
        return None


def _walk(body: bytes) -> tuple[str, int, int] | None:
    """Every string and bracket in turn. Of two models the last one counts, as it does for a JSON reader."""
    depth = 0
    found: tuple[str, int, int] | None = None
    for token in _TOKEN.finditer(body):
        first = token[0][:1]
        if first in b"{[":
            if not depth and first == b"[":
                return None
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif depth == 1 and _is_model(token[0]) and _COLON.match(body, token.end()):
            value = _STRING_VALUE.match(body, token.end())
            found = None
            if value is not None and value[1] is not None:
                name = _text(value[1])
                found = None if name is None else (name, *value.span(1))
    return found


def _is_model(token: bytes) -> bool:
    return token == b'"model"' or (b"\\" in token and _text(token) == "model")


def _text(token: bytes) -> str | None:
    try:
        value = json.loads(token)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
