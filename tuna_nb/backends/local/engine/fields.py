"""The fields of requests and their types: what vLLM's schema (pydantic, lax mode) takes and how it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tuna_nb.backends.local.engine.api_errors import ApiError, malformed

_SHARED: Final = {
    "model": "str", "frequency_penalty": "float", "logit_bias": "biases", "max_tokens": "int", "n": "int",
    "presence_penalty": "float", "response_format": "dict", "seed": "int64", "stop": "stop", "stream": "bool",
    "stream_options": "dict", "temperature": "float", "top_p": "float", "user": "str", "use_beam_search": "bool",
    "top_k": "int", "min_p": "float", "repetition_penalty": "float", "length_penalty": "float",
    "stop_token_ids": "ints", "include_stop_str_in_output": "bool", "ignore_eos": "bool", "min_tokens": "int",
    "skip_special_tokens": "bool", "spaces_between_special_tokens": "bool", "truncate_prompt_tokens": "int",
    "truncation_side": "str", "prompt_logprobs": "int", "logprob_token_ids": "ints", "allowed_token_ids": "ints",
    "bad_words": "list", "echo": "bool", "add_special_tokens": "bool", "structured_outputs": "dict",
    "priority": "int", "request_id": "str", "return_tokens_as_token_ids": "bool", "return_token_ids": "bool",
    "cache_salt": "str", "kv_transfer_params": "dict", "vllm_xargs": "dict", "stream_interval": "positive",
}  # fmt: skip
FIELDS: Final[dict[str, dict[str, str]]] = {
    "chat": _SHARED
    | {
        "messages": "messages", "logprobs": "bool", "top_logprobs": "int", "max_completion_tokens": "int",
        "tools": "list", "tool_choice": "any", "reasoning_effort": "str", "include_reasoning": "bool",
        "parallel_tool_calls": "bool", "add_generation_prompt": "bool", "continue_final_message": "bool",
        "documents": "list", "chat_template": "str", "chat_template_kwargs": "dict", "return_prompt_text": "bool",
    },
    "completion": _SHARED | {"prompt": "prompt", "logprobs": "int", "suffix": "str"},
    "tokenize": {"model": "str", "prompt": "str", "return_token_strs": "bool"},
    "tokenize chat": {"model": "str", "messages": "messages", "add_generation_prompt": "bool"},
    "detokenize": {"model": "str", "tokens": "ints"},
}  # fmt: skip
"""Type names by field and kind of request."""
_REQUIRED: Final = frozenset({"messages", "tokens"})
_INT64: Final = 2**63
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


def checked_fields(
    body: Mapping[str, Any], fields: Mapping[str, str], *, reject_unknown: bool = False
) -> dict[str, Any]:
    """The body with its values in their types; raises the schema error of the first field that does not fit.

    reject_unknown: refuse fields that are not known with 422, as other engines do; vLLM ignores them.
    """
    if reject_unknown:
        unknown = set(body) - set(fields)
        if unknown:
            raise ApiError(422, f"Unexpected fields in the request: {unknown}", "Unprocessable Entity")
    for name in fields:
        # A completion's prompt is looked for before its schema, with an error of its own.
        if name not in body and (name in _REQUIRED or (fields[name] == "str" and name == "prompt")):
            raise malformed("missing", f"body.{name}", "Field required", dict(body))
    data = dict(body)
    for name, kind in fields.items():
        value = body.get(name)
        if value is not None:
            data[name] = _value(value, kind, f"body.{name}")
        elif name in body and name in _REQUIRED:
            raise malformed("list_type", f"body.{name}", "Input should be a valid list", value)
    return data


def _value(value: Any, kind: str, location: str) -> Any:
    match kind:
        case "int":
            return _integer(value, location)
        case "float":
            return _float(value, location)
        case "bool":
            return _boolean(value, location)
        case "int64":
            number = _integer(value, location)
            if number >= _INT64:
                message = f"Input should be less than or equal to {_INT64 - 1}"
                raise malformed("less_than_equal", location, message, value)
            if number < -_INT64:
                message = f"Input should be greater than or equal to {-_INT64}"
                raise malformed("greater_than_equal", location, message, value)
            return number
        case "positive":
            number = _integer(value, location)
            if number < 1:
                raise malformed("greater_than_equal", location, "Input should be greater than or equal to 1", value)
            return number
        case "str":
            if not isinstance(value, str):
                raise malformed("string_type", location, "Input should be a valid string", value)
        case "dict" | "biases":
            if not isinstance(value, dict):
                raise malformed("dict_type", location, "Input should be a valid dictionary", value)
            if kind == "biases":
                return {key: _float(bias, f"{location}.{key}") for key, bias in value.items()}
        case "list" | "ints" | "messages":
            if not isinstance(value, list):
                raise malformed("list_type", location, "Input should be a valid list", value)
            if kind == "ints":
                return [_integer(item, f"{location}.{place}") for place, item in enumerate(value)]
            for place, item in enumerate(value if kind == "messages" else ()):
                if not isinstance(item, dict):
                    # pydantic names the first member of a union that it tried.
                    where = f"{location}.{place}.ChatCompletionDeveloperMessageParam"
                    raise malformed("dict_type", where, "Input should be a valid dictionary", item)
                if "role" not in item:
                    where = f"{location}.{place}.ChatCompletionDeveloperMessageParam.role"
                    raise malformed("missing", where, "Field required", item)
        case "stop":
            if not isinstance(value, str) and not _all(value, str):
                raise malformed("string_type", location, "Input should be a valid string", value)
        case "prompt":
            if isinstance(value, list) and value and all(type(item) is int for item in value):
                for place, item in enumerate(value):
                    if item < 0:
                        message = "Input should be greater than or equal to 0"
                        raise malformed("greater_than_equal", f"{location}.{place}", message, item)
            if isinstance(value, list) and not (_all(value, str) or _ids(value) or _all_ids(value)):
                message = "Input should be a valid integer"
                raise malformed("int_type", f"{location}.0", message, value[0])
            if not (isinstance(value, str) or _all(value, str) or _ids(value) or _all_ids(value)):
                raise malformed("list_type", location, "Input should be a valid list", value)
    return value


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _all_ids(value: Any) -> bool:
    return isinstance(value, list) and all(_ids(item) for item in value)


def _integer(value: Any, location: str) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        message = "Input should be a valid integer, got a number with a fractional part"
        raise malformed("int_from_float", location, message, value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise malformed("int_parsing", location, message, value) from None
    raise malformed("int_type", location, "Input should be a valid integer", value)


def _float(value: Any, location: str) -> float:
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            raise malformed("float_parsing", location, message, value) from None
    raise malformed("float_type", location, "Input should be a valid number", value)


def _boolean(value: Any, location: str) -> bool:
    if isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    message = "Input should be a valid boolean, unable to interpret input"
    raise malformed("bool_parsing", location, message, value)
