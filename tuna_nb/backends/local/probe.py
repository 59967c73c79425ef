"""Readiness: an engine is ready when it has really generated one token. A broken one can answer /health."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from tuna_nb.backends.local import upstream
from tuna_nb.backends.local.upstream import UpstreamBroken

ATTEMPT_S: Final = 30.0
_HEADERS: Final = ((b"content-type", b"application/json"), (b"accept", b"application/json"))


async def one_token(port: int, model: str) -> str | None:
    """Ask for one token. None: it came; else what was wrong, in a few words.

    Completions first, as it needs no chat template; chat where the engine has no completions.
    """
    completion = {"model": model, "prompt": "Hello", "max_tokens": 1}
    chat = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    status, trouble = await _ask(port, b"/v1/completions", completion)
    if status in (404, 405, 501):
        _, trouble = await _ask(port, b"/v1/chat/completions", chat)
    return trouble


async def _ask(port: int, path: bytes, body: dict[str, object]) -> tuple[int, str | None]:
    try:
        async with asyncio.timeout(ATTEMPT_S):
            async with await upstream.send(port, "POST", path, _HEADERS, json.dumps(body).encode()) as exchange:
                await exchange.head()
                answer = b"".join([piece async for piece in exchange.body()])
    except UpstreamBroken as exc:
        return 0, f"no answer: {exc}"
    except TimeoutError:
        return 0, f"no token within {ATTEMPT_S:g} s"
    if exchange.status != 200:
        return exchange.status, f"answers {exchange.status}: {answer[:200].decode(errors='replace')}"
    try:
        choices = json.loads(answer)["choices"]
    except (ValueError, KeyError, TypeError):
        return 200, "answers 200 without a completion"
    return 200, None if choices else "answers 200 without a choice"
