"""vLLM 0.32's way from ids to chunks, on a script: the ids that a greedy model would sample are given.

`Detokenizer` follows `v1/engine/detokenizer.py` and the tokenizers library's DecodeStream line by line, its leak
included (vllm-project/vllm issue 48853), for a tokenizer whose tokens are byte strings.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROMPT = "say something "
PROMPT_IDS = [900, 901, 902]
EOS = 999


class Detokenizer:
    def __init__(self, kept: bytes, stop: Sequence[str], include: bool, min_tokens: int) -> None:
        self.stop, self.include, self.min_tokens = stop, include, min_tokens
        self.hold_back = max(len(s) for s in stop) - 1 if stop and not include else 0
        before = kept.decode("utf-8", "replace")
        # DecodeStream primes its prefix with the prompt; one that ends in a half character is no prefix.
        leaks = before.endswith("\N{REPLACEMENT CHARACTER}")
        self.prefix, self.held = (PROMPT, kept) if leaks else ("", b"")
        self.ids: list[int] = []
        self.text = ""
        self.sent = 0

    def decode_next(self, token: bytes) -> str:
        self.held += token
        text = self.held.decode("utf-8", "replace")
        if not text or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        text, self.prefix, self.held = self.prefix + text, "", b""
        return text

    def update(self, new: list[int], tokens: Sequence[bytes], *, stopped: bool) -> str | None:
        new, skipped = (new[:-1], new[-1:]) if stopped and not self.include else (new, [])
        previous = first = len(self.ids)
        offsets = [len(self.text)]
        for token_id in new:
            self.ids.append(token_id)
            self.text += self.decode_next(b"" if token_id == EOS else tokens[token_id])
            offsets.append(len(self.text))
        for token_id in skipped:
            self.ids.append(token_id)
            offsets.append(len(self.text))
        if not self.stop or len(self.ids) <= self.min_tokens:
            return None
        new_chars = len(self.text) - offsets[max(self.min_tokens - previous, 0)]
        found = self.find_stop(new_chars)
        if found is None:
            return None
        stop, cut_to = found
        end = len(self.text) if cut_to == -1 else cut_to
        if not self.include:
            end += len(stop)
        del self.ids[first + bisect_left(offsets, end, lo=1) :]
        if cut_to != -1:
            self.text = self.text[:cut_to]
        return stop

    def find_stop(self, new_chars: int) -> tuple[str, int] | None:
        if not new_chars:
            return None
        best: tuple[int, str, int] | None = None
        for stop in self.stop:
            index = self.text.find(stop, 1 - new_chars - len(stop))
            if index >= 0 and (best is None or index + len(stop) < best[0]):
                best = (index + len(stop), stop, index)
        if best is None:
            return None
        end, stop, index = best
        if self.include:
            return stop, -1 if end >= len(self.text) else end
        return stop, index

    def take(self, *, finished: bool) -> str:
        length = len(self.text) - (0 if finished else self.hold_back)
        if self.sent >= length:
            return ""
        piece, self.sent = self.text[self.sent : length], length
        return piece


@dataclass
class Engine:
    """A server whose model samples `script`, whatever it is asked, and then EOS.

    tokens: bytes of each id. steps: how many ids each step yields, in turn. together: a step is detokenized as
    one (speculative decoding), else a chunk waits for several steps (stream_interval).
    """

    tokens: Sequence[bytes]
    script: Sequence[int]
    steps: Sequence[int]
    together: bool = True

    def stream(self, body: bytes, *, chat: bool) -> list[bytes]:
        """The events of the answer; a prompt is PROMPT, or the ids of PROMPT and a beginning of the script."""
        data = json.loads(body)
        kept: list[int] = []
        if isinstance(data.get("prompt"), list):
            kept = data["prompt"][len(PROMPT_IDS) :]
            assert data["prompt"][: len(PROMPT_IDS)] == PROMPT_IDS
        assert list(self.script[: len(kept)]) == kept
        stop = data.get("stop") or []
        detokenizer = Detokenizer(
            b"".join(self.tokens[i] for i in kept),
            [stop] if isinstance(stop, str) else stop,
            bool(data.get("include_stop_str_in_output")),
            data.get("min_tokens", 0),
        )
        max_tokens = data["max_tokens"]
        assert max_tokens > 0
        rest = [*self.script, EOS][len(kept) :][:max_tokens]
        prompt_ids: list[int] | None = PROMPT_IDS + kept
        events = []
        if chat:
            role = {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            events.append(self.event(chat, role, {"prompt_token_ids": prompt_ids, "prompt_text": None}))
        place = sent = 0
        finish, reason = None, None
        while finish is None:
            size = self.steps[len(events) % len(self.steps)]
            for part in [size] if self.together else [1] * size:
                new = rest[place : place + part]
                place += len(new)
                ended = bool(new) and new[-1] == EOS
                reason = detokenizer.update(new, self.tokens, stopped=ended)
                finish = "stop" if reason is not None or ended else "length" if place >= len(rest) else None
                if finish is not None:
                    break
            text = detokenizer.take(finished=finish is not None)
            ids, sent = detokenizer.ids[sent:], len(detokenizer.ids)
            if chat:
                end = {} if finish is None else {"stop_reason": reason}
                choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish, **end}
                choice["token_ids"] = ids
            else:
                choice = {
                    "index": 0,
                    "text": text,
                    "logprobs": None,
                    "finish_reason": finish,
                    "stop_reason": reason,
                }
                choice |= {"prompt_token_ids": prompt_ids, "token_ids": ids}
                prompt_ids = None
            events.append(self.event(chat, choice, {}))
        prompt = len(PROMPT_IDS) + len(kept)
        usage = {"prompt_tokens": prompt, "total_tokens": prompt + sent, "completion_tokens": sent}
        events.append(self.event(chat, None, {"usage": usage, "system_fingerprint": "f"}))
        return [*events, b"data: [DONE]\n\n"]

    def event(self, chat: bool, choice: dict[str, Any] | None, more: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if chat else "text_completion"
        names = {"id": "x", "object": kind, "created": 1, "model": "m"}
        chunk = {**names, "choices": [] if choice is None else [choice], **more}
        return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
