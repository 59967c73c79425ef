"""What a client makes of a stream's bytes: strict, so that a stream that is not well formed fails the test."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Told:
    """One stream as its client saw it."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    roles: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finishes: list[tuple[str, Any]] = field(default_factory=list)
    usages: list[dict[str, int]] = field(default_factory=list)
    done: int = 0

    @property
    def essence(self) -> tuple[Any, ...]:
        """All that two equal answers have in common."""
        return self.text, self.reasoning, self.roles, self.finishes, self.usages, self.done

    @property
    def names(self) -> set[tuple[Any, ...]]:
        return {(c["id"], c["object"], c["created"], c["model"]) for c in self.chunks}


def told(stream: bytes) -> Told:
    """Read a whole stream of server-sent events."""
    assert stream.endswith(b"\n\n"), stream[-80:]
    said = Told()
    for event in stream.decode().split("\n\n")[:-1]:
        assert event.startswith("data: "), event
        assert not said.done, "something came after [DONE]"
        if event == "data: [DONE]":
            said.done += 1
            continue
        chunk = json.loads(event[6:])
        assert "error" not in chunk
        said.chunks.append(chunk)
        if not chunk["choices"]:
            usage = chunk["usage"]
            said.usages.append({key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")})
            continue
        (choice,) = chunk["choices"]
        delta = choice.get("delta", choice)
        said.text += delta.get("text", delta.get("content")) or ""
        said.reasoning += delta.get("reasoning") or ""
        said.ids += choice.get("token_ids") or []
        if "role" in delta:
            said.roles.append(delta["role"])
        if choice["finish_reason"] is not None:
            said.finishes.append((choice["finish_reason"], choice.get("stop_reason")))
    return said
