"""Reading streamed answers in tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@dataclass
class Streamed:
    """All events of a stream, and what they add up to."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [c["choices"][0] for c in self.chunks if c.get("choices")]

    @property
    def text(self) -> str:
        return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in self.choices)

    @property
    def ids(self) -> list[int]:
        return [i for c in self.choices for i in c.get("token_ids") or []]

    @property
    def finish(self) -> tuple[Any, Any]:
        last = self.choices[-1]
        return last["finish_reason"], last.get("stop_reason")

    @property
    def error(self) -> dict[str, Any] | None:
        return next((c["error"] for c in self.chunks if "error" in c), None)


def stream(client: httpx.Client, path: str, **body: Any) -> Streamed:
    """Send a streamed request and read it to its end."""
    result = Streamed()
    with client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                result.done = True
            elif line:
                result.chunks.append(json.loads(line.removeprefix("data: ")))
    return result


def chat(text: str = "hello world", **body: Any) -> dict[str, Any]:
    """The body of a greedy chat request."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **body}
