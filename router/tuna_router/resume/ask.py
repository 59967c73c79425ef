"""Ask: which requests are worth recording, and the request that also asks for token ids.

Called once per request that streams a completion; a refusal is a value, with the reason for the logs.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

_STREAMS: Final = re.compile(rb'"stream"\s*:\s*true')
_SET: Final = ("echo", "use_beam_search", "prompt_embeds", "suffix", "return_prompt_text", "logprob_token_ids")
_GUIDES: Final = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_NUMBERS: Final = ("max_tokens", "max_completion_tokens", "min_tokens")
_OTHERS: Final = (
    "n",
    "best_of",
    "logprobs",
    "top_logprobs",
    "response_format",
    "thinking_token_budget",
    "tool_choice",
)
_SPEAKING: Final = frozenset(_SET + _GUIDES + _OTHERS)
"""The fields of a request of which one may speak against going on; most requests have none."""
_DECODER: Final = json.JSONDecoder()
_CONTEXT: Final = re.compile(rb"max_model_len\s*=\s*(\d+)")
_END_BYTES: Final = 2048
_READ_BYTES: Final = 4 * 1024 * 1024
"""A longer body is not read for this: its stream is passed on without being recorded."""


class Ask(NamedTuple):
    """How one request is sent, and whether its stream may be continued.

    body: what is sent upstream. hides_ids: the client did not ask for ids, so they are taken out of what it
    sees. chat: which of the two endpoints. refusal: why the stream can't be continued once text has been seen,
    or None.
    """

    body: bytes
    chat: bool
    hides_ids: bool = False
    refusal: str | None = None


def ask(path: bytes, body: bytes, *, token_ids: bool = True) -> Ask | None:
    """How to send the request `body` for `path` (without its query); None when it is no stream of one.

    Of a body of more than 4 KiB, `"stream": true` is looked for in its first and last 2 KiB.

    token_ids: False for a backend that is known to refuse `return_token_ids`.
    """
    if not path.endswith(b"/completions") or len(body) > _READ_BYTES:
        return None
    # The ends alone of a long body: looking through 256 KB costs as much as passing it on.
    if len(body) > 2 * _END_BYTES and _STREAMS.search(body[:_END_BYTES] + body[-_END_BYTES:]) is None:
        return None
    data = read_body(body)
    if data is None or data.get("stream") is not True:
        return None
    chat = path.endswith(b"/chat/completions")
    refusal = why_not(data, chat=chat)
    if refusal is not None:
        return Ask(body, chat, refusal=refusal)
    if not token_ids or "return_token_ids" in data or by_text_only(data) is not None:
        return Ask(body, chat)
    start = body.index(b"{") + 1
    return Ask(b'%b"return_token_ids":true,%b' % (body[:start], body[start:]), chat, hides_ids=True)


def read_body(body: bytes) -> dict[str, Any] | None:
    """The JSON object of a request, or None: what is wrong with it is for the backend to say."""
    try:
        text = body.decode("utf-8", "surrogatepass").strip(" \t\r\n")
        data, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and end == len(text) else None


def why_not(data: dict[str, Any], *, chat: bool) -> str | None:
    """Why the stream of this request can't be continued; None if it can."""
    if not _SPEAKING.isdisjoint(data) and (reason := _what_speaks_against(data)) is not None:
        return reason
    for name in _NUMBERS:
        if data.get(name) is not None and type(data[name]) is not int:
            return f"its {name} is no whole number"
    if chat:
        messages = data.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            return "it has no messages"
        return None
    prompt = data.get("prompt")
    if isinstance(prompt, str):
        return None
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        return None
    return "it has several prompts"


def _what_speaks_against(data: dict[str, Any]) -> str | None:
    for name in ("n", "best_of"):
        if data.get(name) not in (None, 1):
            return f"{name} is more than 1"
    if data.get("logprobs") not in (None, False) or data.get("top_logprobs"):
        return "it asked for logprobs"
    for name in _SET:
        if data.get(name):
            return f"it set {name}"
    for name in _GUIDES:
        if data.get(name) is not None:
            return "its output is guided"
    form = data.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        return "its output is guided"
    if data.get("thinking_token_budget") is not None:
        return "it set thinking_token_budget"
    choice = data.get("tool_choice")
    if choice == "required" or isinstance(choice, dict):
        return "a tool call is required"
    return None


def by_text_only(data: dict[str, Any]) -> str | None:
    """Why token ids would not help to continue this request; None if they would."""
    if data.get("tools") and data.get("tool_choice", "auto") != "none":
        return "it offers tools"
    messages = data.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and any(
            not isinstance(part, dict) or part.get("type") not in ("text", "input_text") for part in content
        ):
            return "its prompt is more than text"
    return None


def refuses_token_ids(status: int, body: bytes) -> bool:
    """True for a refusal by a backend that does not know `return_token_ids`: the request goes out unchanged."""
    return status in (400, 422) and b"return_token_ids" in body


def context_length_of(status: int, body: bytes) -> int | None:
    """The context length that a 400 for too large a max_tokens names, in tokens."""
    match = _CONTEXT.search(body) if status == 400 else None
    return int(match.group(1)) if match is not None else None
