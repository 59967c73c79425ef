"""A steady stream of chat requests, each checked to its last byte.

Open loop: a request leaves when the schedule says so, whatever the endpoint does, so that a stalled endpoint
can't hide. An answer counts only when the stream has a finish reason, no error event, and its terminator.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

REQUEST_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. sent_at: Unix seconds. ttft_s: to the first token; duration_s: to the last byte.

    backend: who answered, as the router says. error: None when the answer came whole. tokens: chunks with text.
    """

    number: int
    sent_at: float
    backend: str | None
    ttft_s: float | None
    duration_s: float
    tokens: int
    error: str | None


async def send(
    base_url: str,
    headers: dict[str, str],
    model: str,
    *,
    requests: int,
    per_second: float,
    max_tokens: int,
    done: Callable[[Outcome], None] = lambda _outcome: None,
) -> list[Outcome]:
    """Send `requests` streamed chats at a fixed rate and return their outcomes in order of sending.

    base_url: with `/v1`. done: called as each ends.
    """
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    timeout = httpx.Timeout(REQUEST_TIMEOUT_S)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, headers=headers, trust_env=False) as client:
        started = time.monotonic()

        async def one(number: int) -> Outcome:
            await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
            outcome = await _chat(client, f"{base_url}/chat/completions", model, number, max_tokens)
            done(outcome)
            return outcome

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(n)) for n in range(requests)]
        return [t.result() for t in tasks]


async def _chat(client: httpx.AsyncClient, url: str, model: str, number: int, max_tokens: int) -> Outcome:
    import httpx

    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me something, number {number}."}],
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    sent_at, begun = time.time(), time.monotonic()
    backend, ttft, tokens, error = None, None, 0, None
    finished = terminated = False
    try:
        async with client.stream("POST", url, json=body) as answer:
            backend = answer.headers.get("x-tuna-backend")
            if answer.status_code != 200:
                text = (await answer.aread()).decode(errors="replace")
                error = f"status {answer.status_code}: {text[:200]}"
            else:
                async for line in answer.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        terminated = True
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        error = f"error event: {event['error']}"
                        continue
                    for choice in event["choices"]:
                        if choice["delta"].get("content"):
                            tokens += 1
                            ttft = ttft if ttft is not None else time.monotonic() - begun
                        finished = finished or choice["finish_reason"] is not None
    except (httpx.HTTPError, ValueError, KeyError) as e:
        error = f"{type(e).__name__}: {e}"
    if error is None and not (finished and terminated):
        error = "the stream was cut short"
    return Outcome(number, sent_at, backend, ttft, time.monotonic() - begun, tokens, error)
