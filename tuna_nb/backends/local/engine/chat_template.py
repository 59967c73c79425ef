"""The chat template (ChatML): how messages become the prompt that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message; content may be a string, null, missing, or a list of text parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def render(
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> str:
    """The prompt for a conversation.

    add_generation_prompt opens a turn for the assistant. continue_final_message leaves the last message, whoever
    wrote it, without its end mark, so that the model goes on writing it; the two exclude each other.
    """
    turns = [f"<|im_start|>{m.get('role', 'user')}\n{message_text(m)}<|im_end|>\n" for m in messages]
    if continue_final_message and turns:
        turns[-1] = turns[-1].removesuffix("<|im_end|>\n")
    if add_generation_prompt:
        turns.append("<|im_start|>assistant\n")
    return "".join(turns)
