"""What a request asks for, and whether vLLM would take it: parsing, schema errors, checks, in vLLM's order."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuna_nb.backends.local.engine import tokenizer
from tuna_nb.backends.local.engine.api_errors import ApiError, invalid, malformed, unknown_model
from tuna_nb.backends.local.engine.chat_template import message_text, render
from tuna_nb.backends.local.engine.fields import FIELDS, checked_fields
from tuna_nb.backends.local.engine.sampler import SamplingParams
from tuna_nb.backends.local.engine.vocabulary import LONGEST, SIZE

_MAX_LOGPROBS: Final = 20
_DEFAULT_COMPLETION_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class ServedModel:
    """names: under which it is served, the first one is shown. root: as it was given on the command line."""

    names: tuple[str, ...]
    root: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as ids, the sampling for it (max_tokens depends on its length), and its text."""

    ids: tuple[int, ...]
    text: str
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request that passed every check. `echo_text` is what chat prepends; completions echo each prompt's text."""

    chat: bool
    id: str
    model: str
    prompts: tuple[Prompt, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    stream_interval: int
    role: str = "assistant"
    echo: bool = False
    echo_only: bool = False
    echo_text: str | None = None
    return_prompt_text: bool = False
    usage_in_last_chunk: bool = False

    @property
    def n(self) -> int:
        """Choices per prompt."""
        return self.prompts[0].params.n


def parse_body(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object of a request; anything else is a schema error. Raises UnicodeDecodeError for no UTF-8."""
    if content_type.split(";", 1)[0].strip().lower() != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, message, "Bad Request")
    if not body:
        raise malformed("missing", "body", "Field required", None)
    try:
        data = json.loads(body)
    except json.JSONDecodeError as error:
        raise malformed("json_invalid", f"body.{error.pos}", "JSON decode error", {}) from None
    if not isinstance(data, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise malformed("model_attributes_type", "body", message, data)
    return data


def check_model(data: Mapping[str, Any], served: ServedModel) -> None:
    """404 for a model that is not served; none or an empty name is taken."""
    model = data.get("model")
    if model and model not in served.names:
        raise unknown_model(str(model), served.names)


def check_chat(
    body: Mapping[str, Any], served: ServedModel, header_id: str | None, *, reject_unknown: bool = False
) -> GenerationRequest:
    """A chat completion request, or the error that vLLM would answer."""
    _check_stream_options(body)
    _check_logprobs(body, "top_logprobs")
    _check_tools(body)
    if body.get("continue_final_message") and body.get("add_generation_prompt"):
        raise invalid("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    data = checked_fields(body, FIELDS["chat"], reject_unknown=reject_unknown)
    messages = data["messages"]
    check_model(data, served)
    max_tokens, name = data.get("max_completion_tokens"), "max_completion_tokens"
    if max_tokens is None:
        max_tokens, name = data.get("max_tokens"), "max_tokens"
    _check_max_tokens(max_tokens, name, served)
    open_turn = data.get("add_generation_prompt") is not False
    go_on = bool(data.get("continue_final_message"))
    if open_turn and go_on:
        raise invalid(
            "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when "
            "you want the model to continue the final message, and add_generation_prompt when you want to add a "
            "header that will prompt it to start a new assistant message instead."
        )
    if not messages:
        raise invalid("Cannot apply chat template to an empty conversation. Provide at least one message.")
    text = render(messages, add_generation_prompt=open_turn, continue_final_message=go_on)
    last = messages[-1]
    role = "assistant" if open_turn else str(last["role"])
    echo_text = message_text(last) if data.get("echo") and last.get("role") == role else None
    prompt = _truncated(_text_prompt(text, served, data), data, served)
    params = _sampling(data, _clamped(max_tokens, len(prompt), served))
    return GenerationRequest(
        chat=True,
        id=f"chatcmpl-{_request_id(data, header_id)}",
        model=served.names[0],
        prompts=(Prompt(tuple(prompt), text, params),),
        role=role,
        echo_text=echo_text,
        return_prompt_text=bool(data.get("return_prompt_text")),
        **_delivery(data),
    )


def check_completion(
    body: Mapping[str, Any], served: ServedModel, header_id: str | None, *, reject_unknown: bool = False
) -> GenerationRequest:
    """A text completion request, or the error that vLLM would answer."""
    _check_logprobs(body, "logprobs")
    _check_stream_options(body)
    if body.get("prompt") in (None, ""):
        raise invalid("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    data = checked_fields(body, FIELDS["completion"], reject_unknown=reject_unknown)
    check_model(data, served)
    max_tokens = data.get("max_tokens")
    if max_tokens is None:
        max_tokens = _DEFAULT_COMPLETION_TOKENS
    _check_max_tokens(max_tokens, "max_tokens", served)
    echo = bool(data.get("echo"))
    echo_only = echo and max_tokens == 0
    prompts = []
    for given in _given_prompts(data["prompt"]):
        if isinstance(given, str):
            ids, text = _truncated(_text_prompt(given, served, data), data, served), given
        else:
            ids = _id_prompt(_truncated(given, data, served), served)
            text = tokenizer.decode(ids) if echo else ""
        wanted = 1 if echo_only else _clamped(max_tokens, len(ids), served)
        prompts.append(Prompt(tuple(ids), text, _sampling(data, wanted)))
    return GenerationRequest(
        chat=False,
        id=f"cmpl-{_request_id(data, header_id)}",
        model=served.names[0],
        prompts=tuple(prompts),
        echo=echo,
        echo_only=echo_only,
        **_delivery(data),
    )


def _request_id(data: Mapping[str, Any], header_id: str | None) -> str:
    return header_id or data.get("request_id") or os.urandom(8).hex()


def _delivery(data: Mapping[str, Any]) -> dict[str, Any]:
    options = data.get("stream_options") or {}
    include_usage = bool(options.get("include_usage"))
    return {
        "stream": bool(data.get("stream")),
        "include_usage": include_usage,
        "continuous_usage": include_usage and bool(options.get("continuous_usage_stats")),
        "return_token_ids": bool(data.get("return_token_ids")),
        "stream_interval": data.get("stream_interval") or 1,
    }


def _check_stream_options(data: Mapping[str, Any]) -> None:
    if data.get("stream_options") and not data.get("stream"):
        raise invalid("Stream options can only be defined when `stream=True`.", "stream_options")


def _check_logprobs(data: Mapping[str, Any], name: str) -> None:
    value = data.get(name)
    if value is None:
        return
    if not isinstance(value, int | float):
        raise invalid(f"`{name}` must be an integer.", name, value)
    if value < 0 and value != -1:
        raise invalid(f"`{name}` must be a positive value or -1.", name, value)
    if name == "top_logprobs" and value and not data.get("logprobs"):
        raise invalid("when using `top_logprobs`, `logprobs` must be set to true.", name)


def _check_tools(data: Mapping[str, Any]) -> None:
    # The stand-in has no tool parser, as a vLLM that was started without one.
    if data.get("tools") == []:
        message = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise invalid(message, "tools")
    if data.get("tools") and data.get("tool_choice", "auto") == "auto":
        raise invalid('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')


def _check_max_tokens(max_tokens: int | None, name: str, served: ServedModel) -> None:
    if max_tokens is not None and max_tokens > served.max_model_len:
        raise invalid(
            f"{name}={max_tokens} cannot be greater than max_model_len={served.max_model_len}. "
            "Please request fewer output tokens.",
            name,
            max_tokens,
        )


def _given_prompts(prompt: Any) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("You must pass at least one prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _truncated(ids: list[int], data: Mapping[str, Any], served: ServedModel) -> list[int]:
    """The end (or the start, if asked) of a prompt that is to be cut to `truncate_prompt_tokens`."""
    wanted = data.get("truncate_prompt_tokens")
    if wanted is None:
        return ids
    length = served.max_model_len - 1 if wanted < 0 else wanted
    if length >= len(ids):
        return ids
    return ids[:length] if data.get("truncation_side") == "right" else ids[len(ids) - length :]


def _text_prompt(text: str, served: ServedModel, data: Mapping[str, Any]) -> list[int]:
    if data.get("truncate_prompt_tokens") is not None:
        return tokenizer.encode(text)
    bound = served.max_model_len * LONGEST
    if len(text) > bound:
        raise invalid(
            f"This model's maximum context length is {served.max_model_len} tokens. However, your prompt contains "
            f"{len(text)} characters (more than {bound} characters, which is the upper bound for "
            f"{served.max_model_len} input tokens). Please reduce the length of the input prompt.",
            "input_text",
            len(text),
        )
    ids = tokenizer.encode(text)
    # vLLM stops tokenising one token past the context and says "at least" then.
    _check_length(min(len(ids), served.max_model_len + 1), served)
    return ids


def _id_prompt(ids: list[int], served: ServedModel) -> list[int]:
    _check_length(len(ids), served)
    for extreme in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= extreme < SIZE:
            raise invalid(f"Token id {extreme} is out of vocabulary")
    return ids


def _check_length(count: int, served: ServedModel) -> None:
    if count == 0:
        raise invalid("The decoder prompt cannot be empty")
    if count > served.max_model_len:
        qualifier = "at least " if count == served.max_model_len + 1 else ""
        raise invalid(
            f"This model's maximum context length is {served.max_model_len} tokens. However, your prompt contains "
            f"{qualifier}{count} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            count,
        )


def _clamped(max_tokens: int | None, prompt_tokens: int, served: ServedModel) -> int:
    room = served.max_model_len - prompt_tokens
    return room if max_tokens is None else min(room, max_tokens)


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    wrong = [key for key in given if not key.lstrip("-").isdecimal()]
    if wrong:
        message = f"logit_bias contains key(s) that cannot be converted to integer token IDs: {wrong}"
        raise invalid(message, "logit_bias", wrong)
    # vLLM clamps biases to [-100, 100].
    return {int(key): min(100.0, max(-100.0, value)) for key, value in given.items()}


def _sampling(data: Mapping[str, Any], max_tokens: int) -> SamplingParams:
    def number(name: str, default: float) -> float:
        value = data.get(name)
        return default if value is None else value

    stop = data.get("stop") or []
    biases = _biases(data.get("logit_bias") or {})
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=number("temperature", 1.0),
        top_k=int(number("top_k", 0)),
        seed=data.get("seed"),
        n=int(number("n", 1)),
        min_tokens=int(number("min_tokens", 0)),
        ignore_eos=bool(data.get("ignore_eos")),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=frozenset(data.get("stop_token_ids") or ()),
        include_stop_str_in_output=bool(data.get("include_stop_str_in_output")),
        skip_special_tokens=data.get("skip_special_tokens") is not False,
        logit_bias=biases,
        allowed_token_ids=tuple(data.get("allowed_token_ids") or ()),
    )
    top_p, min_p = number("top_p", 1.0), number("min_p", 0.0)
    if params.n < 1:
        raise invalid(f"n must be at least 1, got {params.n}.")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2.0 <= number(name, 0.0) <= 2.0:
            raise invalid(f"{name} must be in [-2, 2], got {data[name]}.")
    if number("repetition_penalty", 1.0) <= 0:
        raise invalid(f"repetition_penalty must be greater than zero, got {data['repetition_penalty']}.")
    heat = params.temperature
    if not math.isfinite(heat):
        raise invalid(f"temperature must be a finite number, got {heat}.", "temperature", heat)
    if heat < 0:
        raise invalid(f"temperature must be non-negative, got {heat}.", "temperature", heat)
    if heat > 2:
        raise invalid(f"temperature must be in [0, 2], got {heat}.", "temperature", heat)
    if not 0.0 < top_p <= 1.0:
        raise invalid(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if params.top_k < -1:
        raise invalid(f"top_k must be 0 (disable), or at least 1, got {params.top_k}.")
    if not 0.0 <= min_p <= 1.0:
        raise invalid(f"min_p must be in [0, 1], got {min_p}.")
    if max_tokens < 1:
        raise invalid(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
    if params.min_tokens < 0:
        raise invalid(f"min_tokens must be greater than or equal to 0, got {params.min_tokens}.")
    if params.min_tokens > max_tokens:
        raise invalid(f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {params.min_tokens}.")
    if any(not text for text in params.stop):
        raise invalid("stop cannot contain an empty string.")
    if heat < 1e-5 and params.n > 1:
        raise invalid(f"n must be 1 when using greedy sampling, got {params.n}.")
    logprobs = data.get("top_logprobs") if "messages" in data else data.get("logprobs")
    if logprobs and logprobs > _MAX_LOGPROBS:
        raise invalid(
            f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {_MAX_LOGPROBS}",
            "logprobs",
            logprobs,
        )
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        unknown = [token_id for token_id in ids if not 0 <= token_id < SIZE]
        if unknown:
            raise invalid(
                f"token_id(s) {unknown} in {name} contain out-of-vocab token ids. Vocabulary size: {SIZE}",
                name,
                unknown,
            )
    if any(not 0 <= token_id < SIZE for token_id in params.allowed_token_ids):
        raise invalid("allowed_token_ids contains out-of-vocab token id!", "allowed_token_ids")
    return params
