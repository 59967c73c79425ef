"""Hide: token ids that the router asked for are taken out, so that the client's bytes are those of a stream
without them.

vLLM writes `"token_ids":null` where they were not asked for. Done on bytes: inside a JSON string every quote
is escaped, so `token_ids":` with a bare quote can only be a key, and nothing in a text is ever touched.
"""

from __future__ import annotations

import re
from typing import Final

_BEGIN: Final = b'"token_ids":['
_SKIP: Final = len(_BEGIN) - 1
_IDS: Final = re.compile(rb'("(?:prompt_)?token_ids"\s*:\s*)\[[\d,\s]*\]')
_ONLY_IDS: Final = re.compile(rb'"delta"\s*:\s*\{\}')
_UNFINISHED: Final = re.compile(rb'"finish_reason"\s*:\s*null')


def hide_ids(payload: bytes) -> bytes:
    """`payload`, which may be several events, with null for ids; the same object where there are none."""
    start = payload.find(_BEGIN)
    if start < 0:
        return _IDS.sub(rb"\1null", payload) if b'token_ids"' in payload else payload
    start += _SKIP
    if payload.find(_BEGIN, start) >= 0 or b'"prompt_token_ids":[' in payload:
        return _IDS.sub(rb"\1null", payload)
    # One list, as in nearly every read: slicing costs a third of the expression.
    return payload[:start] + b"null" + payload[payload.index(b"]", start) + 1 :]


def is_only_ids(event: bytes) -> bool:
    """True for an event that vLLM sends only for the ids in it: a parser had nothing to say (`"delta":{}`)."""
    return _ONLY_IDS.search(event) is not None and _UNFINISHED.search(event) is not None
