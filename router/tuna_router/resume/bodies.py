"""Bodies: the request for the rest of an answer, from the request for the whole.

Defaults of vLLM 0.32 that differ: a completion without max_tokens (or with null) gets 16 tokens, a chat gets
what the context leaves. `add_generation_prompt` is true unless it is said to be false.
"""

from __future__ import annotations

import json
from typing import Any, Final

COMPLETION_MAX_TOKENS: Final = 16
UNLIMITED: Final = 2**31 - 1
"""Asked for where the chat had no limit and the context is unknown; vLLM refuses it, naming its context."""
_SAME_IN_BOTH: Final = (
    "model", "frequency_penalty", "logit_bias", "presence_penalty", "seed", "stop", "temperature", "top_p", "user",
    "top_k", "min_p", "repetition_penalty", "length_penalty", "stop_token_ids", "include_stop_str_in_output",
    "ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens", "allowed_token_ids",
    "bad_words", "priority", "cache_salt", "vllm_xargs", "stream_interval", "watermarking", "session_id",
    "repetition_detection",
)  # fmt: skip
_GREEDY_BELOW: Final = 1e-5
_INT64: Final = 2**63


def by_ids(data: dict[str, Any], prompt: list[int], *, kept: int, max_tokens: int) -> bytes:
    """A completion of token ids that samples as the chat or completion `data` does, `kept` tokens later."""
    body: dict[str, Any] = {name: data[name] for name in _SAME_IN_BOTH if data.get(name) is not None}
    body["prompt"] = prompt
    body["max_tokens"] = max_tokens
    body["return_token_ids"] = True
    return _finished(body, data, kept)


def by_text(data: dict[str, Any], text: str, *, chat: bool, kept: int, max_tokens: int | None, ids: bool) -> bytes:
    """The same request with the answer so far as the beginning of its answer; ids: token ids are asked for."""
    body = dict(data)
    if chat:
        messages = list(data["messages"])
        if data.get("continue_final_message") and isinstance(messages[-1].get("content"), str):
            messages[-1] = {**messages[-1], "content": messages[-1]["content"] + text}
        else:
            messages.append({"role": "assistant", "content": text})
        body |= {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    else:
        body["prompt"] = data["prompt"] + text
    body |= _limits(data, max_tokens)
    if ids:
        body["return_token_ids"] = True
    return _finished(body, data, kept)


def again(data: dict[str, Any], *, ids: bool) -> bytes:
    """The same request: nothing that the client saw has to be kept."""
    body = dict(data)
    if ids:
        body["return_token_ids"] = True
    return _finished(body, data, 0)


def limit_of(data: dict[str, Any], *, chat: bool) -> int | None:
    """How many tokens the request lets an answer have; None for as many as the context takes."""
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    for name in names:
        value = data.get(name)
        if value is not None:
            return int(value)
    return None if chat else COMPLETION_MAX_TOKENS


def stops_of(data: dict[str, Any]) -> list[str]:
    """The stop strings of a request."""
    stop = data.get("stop")
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return [text for text in stops if isinstance(text, str) and text]


def hold_back_of(data: dict[str, Any]) -> int:
    """Characters that vLLM's text stays behind its ids in case they begin a stop string."""
    if data.get("include_stop_str_in_output"):
        return 0
    return max(map(len, stops_of(data)), default=1) - 1


def begun_stop_of(data: dict[str, Any], shown: str) -> int:
    """Characters at the end of `shown` that may begin a stop string: only where nothing is held back."""
    if not data.get("include_stop_str_in_output"):
        return 0
    lengths = [n for stop in stops_of(data) for n in range(1, len(stop)) if shown.endswith(stop[:n])]
    return max(lengths, default=0)


def is_greedy(data: dict[str, Any]) -> bool:
    """True when the request itself makes its answer certain; an unset temperature is for the server to say."""
    temperature = data.get("temperature")
    if isinstance(temperature, int | float) and temperature < _GREEDY_BELOW:
        return True
    return data.get("top_k") == 1


def remembers_its_answer(data: dict[str, Any]) -> bool:
    """True when what was said changes what is drawn: a continuation has it in its prompt, where it counts less."""
    return bool(data.get("presence_penalty") or data.get("frequency_penalty") or data.get("repetition_detection"))


def _limits(data: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    if max_tokens is None:
        return {}
    return {"max_completion_tokens" if data.get("max_completion_tokens") is not None else "max_tokens": max_tokens}


def _finished(body: dict[str, Any], data: dict[str, Any], kept: int) -> bytes:
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    least = data.get("min_tokens")
    if type(least) is int:
        body["min_tokens"] = max(0, least - kept)
    seed = data.get("seed")
    if type(seed) is int and kept and not is_greedy(data):
        # The random stream of a request begins with it: the same seed would repeat the draws of the beginning.
        body["seed"] = (seed + kept + _INT64) % (2 * _INT64) - _INT64
    return dumps(body)


def dumps(value: object) -> bytes:
    """Compact JSON in UTF-8; half a surrogate pair, which JSON can carry and UTF-8 can't, stays escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
