"""Splice: the events of a continuation, told in the terms of the stream that broke.

The first stream's id, created and model; no second role; text that the client has is left out (and compared);
a completion of ids becomes chat deltas again; one finish, one usage that adds up, one [DONE].
"""

from __future__ import annotations

import json
from typing import Any, Final

from tuna_router.dataplane.events import EventSplitter, data_of, is_error_event
from tuna_router.resume.bodies import dumps
from tuna_router.resume.plan import Closing, Continuation, How
from tuna_router.resume.spoken import Spoken, text_of

_DONE: Final = b"data: [DONE]\n\n"
_NO_FINISH: Final = ("abort", "error")
_TAIL: Final = 24


class Splice:
    """Follows the answer to `continuation`; feed it every piece of the body.

    It goes on writing into `spoken`, so that a continuation that breaks can be continued in its turn.
    broken: what broke it, or None; that may be a prompt which ended inside a character, and the next plan avoids
    that. finished: the client's finish_reason is known. done: [DONE] is out.
    """

    def __init__(self, spoken: Spoken, continuation: Continuation) -> None:
        self._spoken = spoken
        self._continuation = continuation
        self._splitter = EventSplitter()
        self._begun = False
        self._thinks = continuation.thinks
        self._known = ""
        self._known_ids = 0
        self._told_text = False
        self._last: dict[str, Any] | None = None
        self._usage: dict[str, Any] | None = None
        self._fingerprint: object = None
        self.broken: str | None = None
        self.finished = False
        self.done = False

    def feed(self, payload: bytes) -> bytes:
        """The next bytes of the body; returns what the client is sent: whole events, or nothing."""
        if self.broken is not None or self.done:
            return b""
        return b"".join([self._event(event) for event in self._splitter.feed(payload)])

    def end(self) -> bytes:
        """The body came to its framed end; returns the rest. One without a finish is broken."""
        return self.lost("the stream ended without a finish")

    def lost(self, reason: str) -> bytes:
        """The backend broke off; returns the rest where all was said, else `broken` is set."""
        if self.finished:
            return self._close()
        if self.broken is None:
            self.broken = reason
        return b""

    def _event(self, event: bytes) -> bytes:
        if self.broken is not None or self.done:
            return b""
        data = data_of(event)
        if data is None:
            return event
        if data.strip() == b"[DONE]":
            return self.lost("[DONE] came without a finish")
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            return self.lost("an event that is no chunk")
        if is_error_event(event) or chunk.get("error") is not None:
            return self.lost("an error event")
        return self._chunk(chunk)

    def _chunk(self, chunk: dict[str, Any]) -> bytes:
        if chunk.get("system_fingerprint") is not None:
            self._fingerprint = chunk["system_fingerprint"]
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict) or self.finished:
            return b""
        choice = choices[0]
        finish = choice.get("finish_reason")
        if finish in _NO_FINISH:
            return self.lost(f"finish_reason {finish}")
        if not self._begun:
            self._begin()
        of_ids = self._continuation.how is How.IDS
        told = self._of_ids(choice) if of_ids else self._same_kind(chunk, choice)
        if told is None:
            return b""
        if finish is not None:
            self.finished = self._spoken.finished = True
            self._last = told
            return b""
        return self._told(told)

    def _begin(self) -> None:
        spoken, continuation = self._spoken, self._continuation
        self._begun = True
        if continuation.how is How.IDS:
            self._known = spoken.visible[continuation.position :]
            self._known_ids = len(spoken.ids) - continuation.keep if continuation.client.ids else 0
            spoken.rewind(continuation.keep, continuation.position)
        else:
            spoken.rebase(continuation.tokens, continuation.position)

    def _same_kind(self, chunk: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any] | None:
        """A chunk of the same endpoint, under the first stream's names and without a second role."""
        spoken = self._spoken
        shown, had_role = spoken.shown, spoken.role is not None
        ids = choice.get("token_ids")
        spoken.take(chunk)
        told = {**choice}
        if not self._continuation.client.ids:
            for name in ("token_ids", "prompt_token_ids"):
                if name in told:
                    told[name] = None
        if spoken.chat:
            delta = dict(choice["delta"]) if isinstance(choice.get("delta"), dict) else {}
            if had_role and "role" in delta:
                if spoken.shown == shown:
                    return None
                del delta["role"]
            told["delta"] = delta
            says = any(value for value in delta.values()) or (self._continuation.client.ids and ids)
        else:
            says = spoken.shown > shown or self._continuation.client.ids
        return told if says or choice.get("finish_reason") is not None else None

    def _of_ids(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """A chunk of a completion of ids, as a chunk of the first stream's endpoint."""
        spoken = self._spoken
        text = text_of(choice.get("text"))
        ids = choice.get("token_ids")
        ids = ids if isinstance(ids, list) else None
        if text and not self._told_text:
            self._told_text = True
            tail = (spoken.text or "".join(spoken.reasoning))[-_TAIL:]
            if not self._continuation.sure and tail in text:
                self.broken, spoken.careful = "it told the prompt", True
                return None
        reasoning, content = self._parts(text)
        length = len(reasoning) + len(content)
        if self._known:
            said = reasoning + content
            overlap = min(len(said), len(self._known))
            if said[:overlap] != self._known[:overlap]:
                self.broken = "it says something else than was said"
                return None
            self._known = self._known[overlap:]
            cut = min(overlap, len(reasoning))
            reasoning, content = reasoning[cut:], content[overlap - cut :]
        spoken.say(reasoning, content, ids, length)
        new_ids = self._new_ids(ids)
        finish = choice.get("finish_reason")
        if not (reasoning or content or new_ids or finish is not None):
            return None
        if not spoken.chat:
            return {
                "index": 0, "text": content, "logprobs": None, "finish_reason": finish,
                "stop_reason": choice.get("stop_reason"), "prompt_token_ids": None, "token_ids": new_ids,
            }  # fmt: skip
        delta = {}
        if reasoning:
            delta[spoken.reasoning_field] = reasoning
        if content or not (reasoning or self._thinks):
            delta["content"] = content
        told = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if finish is not None:
            told["stop_reason"] = choice.get("stop_reason")
        return {**told, "token_ids": new_ids}

    def _parts(self, text: str) -> tuple[str, str]:
        """Reasoning and content of a piece of the model's own text."""
        if not self._thinks:
            return "", text
        # The mark is one token in models that are parsed by it, so it comes in one piece.
        reasoning, mark, content = text.partition(self._continuation.reasoning_end)
        if mark:
            self._thinks = False
        return reasoning, content

    def _new_ids(self, ids: list[int] | None) -> list[int] | None:
        """Those that the client has not seen; None where it asked for none."""
        if not self._continuation.client.ids or ids is None:
            return None
        known = min(self._known_ids, len(ids))
        self._known_ids -= known
        return ids[known:]

    def _told(self, choice: dict[str, Any], fingerprint: object = None) -> bytes:
        chunk: dict[str, Any] = {**self._spoken.names, "choices": [choice]}
        if self._continuation.client.running_usage:
            chunk["usage"] = usage_of(self._spoken, self._spoken.tokens)
        if fingerprint is not None:
            chunk["system_fingerprint"] = fingerprint
        return event_of(chunk)

    def _close(self) -> bytes:
        """The finish, which waited for the fingerprint, the usage and [DONE]."""
        if self.done:
            return b""
        self.done = True
        client, spoken = self._continuation.client, self._spoken
        told = b""
        if self._last is not None:
            told = self._told(self._last, None if client.usage else self._fingerprint)
        if client.usage:
            usage = self._usage or {}
            prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if spoken.prompt_tokens is None and isinstance(prompt, int):
                spoken.prompt_tokens = max(0, prompt - self._continuation.tokens)
            tokens = self._continuation.tokens + completion if isinstance(completion, int) else spoken.tokens
            told += usage_event(spoken, tokens, self._fingerprint)
        return told + _DONE


def usage_of(spoken: Spoken, tokens: int) -> dict[str, int]:
    """The usage object of the client's one stream."""
    prompt = spoken.prompt_tokens or 0
    return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}


def usage_event(spoken: Spoken, tokens: int, fingerprint: object = None) -> bytes:
    """The chunk without choices that closes a stream which asked for usage."""
    chunk = {**spoken.names, "choices": [], "usage": usage_of(spoken, tokens)}
    if fingerprint is not None:
        chunk["system_fingerprint"] = fingerprint
    return event_of(chunk)


def closing_events(spoken: Spoken, closing: Closing) -> bytes:
    """The end of a stream of which all was generated: what is missing of finish, usage and [DONE]."""
    told = b""
    if closing.finish_reason is not None:
        nothing: dict[str, Any] = {"delta": {"content": ""}} if spoken.chat else {"text": ""}
        finish = {
            "index": 0,
            **nothing,
            "logprobs": None,
            "finish_reason": closing.finish_reason,
            "stop_reason": None,
        }
        told = event_of({**spoken.names, "choices": [finish]})
    if closing.client.usage and not spoken.usage_sent and spoken.prompt_tokens is not None:
        told += usage_event(spoken, spoken.tokens)
    return told + _DONE


def event_of(chunk: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(chunk) + b"\n\n"
