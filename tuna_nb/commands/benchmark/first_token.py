"""One streamed request to an endpoint that is asleep: asked again while its provider only says that it starts."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from tuna_nb import tls
from tuna_nb.deployments.connection import Connection
from tuna_nb.errors import EngineError

if TYPE_CHECKING:
    import httpx

AGAIN_S: Final = 0.25
MAX_TOKENS: Final = 8
_FINAL: Final = (400, 401, 403, 422)
"""Statuses that no waiting mends."""
_TEXT: Final = ("content", "reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True)
class FirstToken:
    """at: monotonic seconds when it came. asked: how many requests it took. said: the last answer without one."""

    at: float
    asked: int
    said: str = ""


async def first_token(link: Connection, timeout_s: float) -> FirstToken:
    """Ask, streamed, until a token comes; then read the answer to its end.

    Raises EngineError where none has come in `timeout_s`, or where the endpoint refuses the request itself.
    """
    import httpx

    body = {
        "model": link.model,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    asked, said = 0, "nothing"
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(verify=tls.trusted(), timeout=timeout_s, trust_env=False) as client,
        ):
            while True:
                asked += 1
                came = None
                try:
                    came, said = await _ask(client, link, body)
                except httpx.HTTPError as e:
                    said = type(e).__name__
                if came is not None:
                    return FirstToken(came, asked, said)
                await asyncio.sleep(AGAIN_S)
    except TimeoutError:
        raise EngineError(
            f"{link.name}: no token within {timeout_s:.0f} s; the last answer was {said}",
            "--start-timeout SECONDS waits longer",
        ) from None


async def _ask(client: httpx.AsyncClient, link: Connection, body: dict[str, Any]) -> tuple[float | None, str]:
    """(When the first token came, what was said). Raises EngineError for an answer that stays the same."""
    method, url, content = "POST", f"{link.base_url}/chat/completions", json.dumps(body)
    headers = {**link.headers, "content-type": "application/json"}
    while True:
        async with client.stream(method, url, headers=headers, content=content) as answer:
            if answer.is_redirect:
                # A slow answer's later place; its headers open this host, and are no other's to see.
                place = urljoin(url, answer.headers["location"])
                if urlsplit(place)[:2] != urlsplit(url)[:2]:
                    return None, f"{answer.status_code} to another host"
                method, url, content = "GET", place, ""
                continue
            if answer.status_code != 200:
                text = (await answer.aread()).decode(errors="replace")[:200]
                if answer.status_code in _FINAL:
                    raise EngineError(f"{link.name} refuses a request: {answer.status_code}: {text}")
                return None, f"{answer.status_code}: {text}"
            came = None
            async for line in answer.aiter_lines():
                if came is None and _has_text(line):
                    came = time.monotonic()
            return came, "" if came is not None else "a stream without a token"


def _has_text(line: str) -> bool:
    if not line.startswith("data:") or line.endswith("[DONE]"):
        return False
    try:
        event = json.loads(line[5:])
    except ValueError:
        return False
    choices = event.get("choices") if isinstance(event, dict) else None
    return any((c.get("delta") or {}).get(k) for c in choices or () for k in _TEXT)
