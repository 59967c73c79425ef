"""The JSON of answers: which keys, in which order, with which values. Taken from vLLM 0.32's response models.

vLLM leaves out of a chunk what was not set and writes `null` for what was set to nothing; both are copied. The
chunks of a stream differ in little, so what they share is written once per request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring  # the C function behind json.dumps
from typing import Any, Final

from tuna_nb.backends.local.engine.checks import GenerationRequest

DONE: Final = b"data: [DONE]\n\n"


def dumps(value: object) -> bytes:
    """Compact JSON in UTF-8, as pydantic and Starlette write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def quote(text: str) -> str:
    """A JSON string; half a surrogate pair, which a client may have sent, becomes a question mark."""
    quoted: str = encode_basestring(text)
    return quoted


def event(payload: str) -> bytes:
    """One server-sent event."""
    return f"data: {payload}\n\n".encode("utf-8", "replace")


def _ids(ids: Sequence[int] | None) -> str:
    return "null" if ids is None else f"[{','.join(map(str, ids))}]"


class StreamWriter:
    """Writes the chunks of one streamed request."""

    def __init__(
        self,
        request: GenerationRequest,
        created: int,
        fingerprint: str,
        prompt_tokens: int,
        *,
        parses_reasoning: bool = False,
    ) -> None:
        self.request = request
        self.prompt_tokens = prompt_tokens
        self._fingerprint = fingerprint
        self._parses_reasoning = parses_reasoning and request.chat
        self._chat = request.chat
        kind = "chat.completion.chunk" if request.chat else "text_completion"
        names = f'"id":{quote(request.id)},"object":"{kind}","created":{created},"model":{quote(request.model)}'
        self._head = f'{{{names},"choices":['

    def _usage(self, prompt_tokens: int, completion_tokens: int, *, running: bool) -> str:
        total = prompt_tokens + completion_tokens
        # Set to null by the chat server on its running usage only; left out everywhere else.
        details = ',"completion_tokens_details":null' if running and self._chat else ""
        if self._parses_reasoning:
            # deepseek_r1 counts behind a `<think>` that the model wrote; here it stands in the prompt, if anywhere.
            details = ',"completion_tokens_details":{"reasoning_tokens":0}'
        return (
            f',"usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},'
            f'"completion_tokens":{completion_tokens}{details}}}'
        )

    def role(self, index: int, prompt_ids: Sequence[int] | None, prompt_text: str | None) -> bytes:
        """Chat only: the first chunk of a choice. It carries the prompt's ids, at the top level."""
        usage = self._usage(self.prompt_tokens, 0, running=True) if self.request.continuous_usage else ""
        text = "null" if prompt_text is None else quote(prompt_text)
        return event(
            f'{self._head}{{"index":{index},"delta":{{"role":{quote(self.request.role)},"content":""}},'
            f'"logprobs":null,"finish_reason":null}}]{usage},"prompt_token_ids":{_ids(prompt_ids)},"prompt_text":{text}}}'
        )

    def echo(self, index: int, text: str) -> bytes:
        """Chat only: the message that is continued, before its continuation."""
        usage = self._usage(self.prompt_tokens, 0, running=True) if self.request.continuous_usage else ""
        return event(
            f'{self._head}{{"index":{index},"delta":{{"content":{quote(text)}}},"logprobs":null,'
            f'"finish_reason":null}}]{usage}}}'
        )

    def piece(
        self,
        index: int,
        text: str,
        ids: Sequence[int] | None,
        *,
        completion_tokens: int,
        prompt_tokens: int,
        finish_reason: str | None = None,
        stop_reason: str | int | None = None,
        prompt_ids: Sequence[int] | None = None,
        delta: str | None = None,
    ) -> bytes:
        """A chunk with the tokens of one or more steps; the last one also carries finish and stop reason.

        delta: JSON of a chat's delta, where it is more than the text as content.
        """
        finish = "null" if finish_reason is None else f'"{finish_reason}"'
        stop = json.dumps(stop_reason, ensure_ascii=False) if stop_reason is not None else "null"
        if self._chat:
            stop_key = "" if finish_reason is None else f',"stop_reason":{stop}'
            if delta is None:
                delta = f'{{"content":{quote(text)}}}'
            choice = (
                f'{{"index":{index},"delta":{delta},"logprobs":null,'
                f'"finish_reason":{finish}{stop_key},"token_ids":{_ids(ids)}}}'
            )
        else:
            choice = (
                f'{{"index":{index},"text":{quote(text)},"logprobs":null,"finish_reason":{finish},'
                f'"stop_reason":{stop},"prompt_token_ids":{_ids(prompt_ids)},"token_ids":{_ids(ids)}}}'
            )
        tail = ""
        if self.request.continuous_usage:
            tail = self._usage(prompt_tokens, completion_tokens, running=True)
        elif self.request.usage_in_last_chunk and finish_reason is not None:
            tail = self._usage(prompt_tokens, completion_tokens, running=False)
        if finish_reason is not None and not self.request.include_usage:
            tail += f',"system_fingerprint":"{self._fingerprint}"'
        return event(f"{self._head}{choice}]{tail}}}")

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The chunk without choices that closes a stream which asked for usage."""
        usage = self._usage(prompt_tokens, completion_tokens, running=False)
        return event(f'{self._head}]{usage},"system_fingerprint":"{self._fingerprint}"}}')


def chat_answer(
    request: GenerationRequest,
    created: int,
    fingerprint: str,
    choices: Sequence[dict[str, Any]],
    usage: dict[str, Any],
) -> dict[str, Any]:
    """A whole chat completion. Each choice brings text, reasoning, token_ids, finish_reason and stop_reason."""
    asked = request.return_token_ids
    return {
        "id": request.id,
        "object": "chat.completion",
        "created": created,
        "model": request.model,
        "choices": [
            {
                "index": index,
                "message": {
                    "role": request.role,
                    "content": None if choice["text"] is None else (request.echo_text or "") + choice["text"],
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning": choice["reasoning"],
                },
                "logprobs": None,
                "finish_reason": choice["finish_reason"],
                "stop_reason": choice["stop_reason"],
                "token_ids": choice["token_ids"] if asked else None,
                "routed_experts": None,
            }
            for index, choice in enumerate(choices)
        ],
        "service_tier": None,
        "system_fingerprint": fingerprint,
        "usage": usage,
        "prompt_logprobs": None,
        "prompt_token_ids": list(request.prompts[0].ids) if asked else None,
        "prompt_text": request.prompts[0].text if request.return_prompt_text else None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def completion_answer(
    request: GenerationRequest,
    created: int,
    fingerprint: str,
    choices: Sequence[dict[str, Any]],
    usage: dict[str, Any],
) -> dict[str, Any]:
    """A whole text completion. Each choice brings text, token_ids, prompt_ids, finish_reason and stop_reason."""
    asked = request.return_token_ids
    return {
        "id": request.id,
        "object": "text_completion",
        "created": created,
        "model": request.model,
        "choices": [
            {
                "index": index,
                "text": choice["text"],
                "logprobs": None,
                "finish_reason": choice["finish_reason"],
                "stop_reason": choice["stop_reason"],
                "token_ids": choice["token_ids"] if asked else None,
                "prompt_logprobs": None,
                "prompt_token_ids": list(choice["prompt_ids"]) if asked else None,
                "routed_experts": None,
            }
            for index, choice in enumerate(choices)
        ],
        "service_tier": None,
        "system_fingerprint": fingerprint,
        "usage": usage,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def whole_usage(prompt_tokens: int, completion_tokens: int, *, parses_reasoning: bool = False) -> dict[str, Any]:
    """The usage of an answer that is not streamed."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None,
        "completion_tokens_details": {"reasoning_tokens": 0} if parses_reasoning else None,
    }
