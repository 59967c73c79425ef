"""The engine of every cloud, described once: vLLM's image, its command line and its environment.

The flags are those that vLLM 0.32 takes; `tests/real_engine` parses them with vLLM itself.
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping
from typing import Final

from tuna_nb.backends.base import Engine
from tuna_nb.errors import RequestError, did_you_mean

IMAGE: Final = "vllm/vllm-openai:v0.32.0"
PORT: Final = 8000
START_S: Final = 1800
"""The longest a start may take: image, weights and compilation of a big model."""
PLACEHOLDERS: Final = ("model", "host", "port")


def image(engine: Engine) -> str:
    """The container image to run."""
    return engine.image or IMAGE


def command(engine: Engine, *, host: str = "0.0.0.0", port: int = PORT) -> list[str]:
    """The whole command line, program first. No secret is ever in it.

    Raises RequestError for a command of the user's that can't be split or filled in.
    """
    if engine.command is not None:
        return [*fill(engine.command, {"model": engine.model, "host": host, "port": str(port)}), *engine.args]
    words = ["vllm", "serve", engine.model, "--served-model-name", engine.model, "--host", host]
    words += ["--port", str(port), "--max-model-len", str(engine.max_model_len)]
    words += ["--tensor-parallel-size", str(engine.tp_size)]
    if engine.dtype is not None:
        words += ["--dtype", engine.dtype]
    if engine.quantization is not None:
        words += ["--quantization", engine.quantization]
    if engine.fast_boot:
        words.append("--enforce-eager")
    return [*words, *engine.args]


def environment(engine: Engine) -> dict[str, str]:
    """What the engine needs in its environment besides secrets."""
    if engine.command is not None:
        return {}
    return {"HF_XET_HIGH_PERFORMANCE": "1", "VLLM_NO_USAGE_STATS": "1"}


def fill(command: str, values: Mapping[str, str]) -> list[str]:
    """`command` split by shell rules, then every placeholder filled in per token.

    Splitting comes first so that a model name with a space stays one argument and can't inject another.
    Raises RequestError for an empty command, bad quoting, or a placeholder that we don't fill.
    """
    try:
        tokens = shlex.split(command)
    except ValueError as exc:
        raise RequestError(f"the engine command can't be split: {exc}", "close the quotes") from None
    if not tokens:
        raise RequestError("the engine command is empty", "for example 'vllm serve {model} --port {port}'")
    return [_fill_token(token, values) for token in tokens]


def _fill_token(token: str, values: Mapping[str, str]) -> str:
    try:
        pieces = list(string.Formatter().parse(token))
    except ValueError as exc:
        raise RequestError(
            f"the engine command's {token!r} can't be read: {exc}", "write a literal brace twice: {{ or }}"
        ) from None
    done = ""
    for literal, name, spec, conversion in pieces:
        done += literal
        if name is None:
            continue
        if name not in values or spec or conversion:
            raise RequestError(
                f"the engine command has an unknown placeholder {{{name}}}", did_you_mean(name, PLACEHOLDERS)
            )
        done += values[name]
    return done
