"""What a chat says of a model that thinks first: `reasoning` deltas, then `content`.

Follows vLLM 0.32's deepseek_r1 parser (`reasoning/basic_parsers.py` under `parser/abstract_parser.py`): it goes
by the id of `</think>`, which the model writes and the chat does not show. Text completions show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tuna_nb.backends.local.engine.vocabulary import THINK_END, TOKENS
from tuna_nb.backends.local.engine.wire import quote

PARSERS: Final = ("deepseek_r1",)
_MARK: Final = TOKENS[THINK_END].decode()


class ReasoningParser:
    """Follows one streamed answer. prompt_ids: an end of thinking among them means that it is over."""

    __slots__ = ("_ended",)

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ended = THINK_END in prompt_ids

    def delta(self, text: str, ids: Sequence[int]) -> str | None:
        """The JSON of the delta for these ids and the text sent with them; None where there is nothing to say."""
        if self._ended:
            return f'{{"content":{quote(text)}}}'
        if THINK_END not in ids:
            return f'{{"reasoning":{quote(text)}}}'
        self._ended = True
        if len(ids) == 1:
            # Without a look at the text: what a stop string held back until now is lost here, as in vLLM.
            return None
        end = text.find(_MARK)
        content = text[end + len(_MARK) :]
        return f'{{"content":{quote(content) if content else "null"},"reasoning":{quote(text[:end])}}}'


def split(text: str) -> tuple[str, str | None]:
    """Reasoning and content of a whole answer; an answer that never ends its thinking is all reasoning."""
    reasoning, mark, content = text.partition(_MARK)
    return reasoning, (content or None) if mark else None
