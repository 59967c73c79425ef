"""Plan: how a broken stream goes on. By token ids where that is exact, else by its text, else not at all.

By ids, the prompt of the rest is the prompt's ids and those sampled so far, cut back to where the client's text
was whole. Two things put ids ahead of text:

- Half a character. An id that gives no text may leave one open, and vLLM 0.32, asked to go on from there, tells
  the whole prompt (vllm-project/vllm issue 48853). So a cut is made only behind an id that gave text.
- `stop` strings. vLLM keeps back L = max(len(stop)) - 1 characters (none with include_stop_str_in_output), so
  behind a chunk that brought the text to E, its ids spell E + L characters. With E_now characters shown, the
  latest chunk with E + L <= E_now is kept, and the first E_now - (E + L) characters of the rest are known to
  the client. A stop string that is still to come ends behind the E_now + L characters that were searched, so it
  begins at E_now or later: all of it is in the rest, where the other engine finds it. With
  include_stop_str_in_output one may have begun in what was shown, and the cut is made before that.

Text that would be said twice must be the same twice: only a greedy answer is cut back behind what was shown,
and what is said again is compared (`splice`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tuna_router.resume import bodies
from tuna_router.resume.ask import by_text_only, read_body, why_not
from tuna_router.resume.spoken import Mark, Spoken

THINK_END: Final = "</think>"
_CHAT: Final = b"/chat/completions"
_TEXT: Final = b"/completions"


class How(enum.StrEnum):
    """In what way an answer goes on."""

    IDS = "ids"
    """From its token ids."""
    TEXT = "text"
    """From its text, tokenised anew: a fresh draw, legitimate and not exact."""
    AGAIN = "again"
    """From its start: the client has seen nothing of it."""


@dataclass(frozen=True, slots=True)
class Client:
    """What the client asked to see: usage at the end, usage with each chunk, token ids."""

    usage: bool
    running_usage: bool
    ids: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """A request for the rest. POST `body` to `path`; the answer's events go to a `Splice`.

    exact: the client's text will be that of an undisturbed stream. keep: ids that the prompt ends with.
    position: characters that the prompt spells of what the client sees. thinks: it ends inside reasoning.
    sure: it can't end inside a character. tokens: generated before the rest. reasoning_end: what ends it.
    """

    how: How
    path: bytes
    body: bytes
    exact: bool
    client: Client
    keep: int = 0
    position: int = 0
    thinks: bool = False
    sure: bool = True
    tokens: int = 0
    reasoning_end: str = THINK_END


@dataclass(frozen=True, slots=True)
class Closing:
    """All was generated and only the end is missing. finish_reason: what it lacks, None where it was sent."""

    finish_reason: str | None
    client: Client


@dataclass(frozen=True, slots=True)
class Refusal:
    """The stream can't be continued honestly: the client is told that it broke. reason: for it and the logs."""

    reason: str


class _Asked(NamedTuple):
    path: bytes
    data: dict[str, Any]
    client: Client


def plan(
    path: bytes,
    body: bytes,
    spoken: Spoken,
    *,
    token_ids: bool = True,
    context_length: int | None = None,
    reasoning_end: str | None = THINK_END,
) -> Continuation | Closing | Refusal:
    """How the stream that said `spoken` goes on.

    path, body: the client's request, the path without its query. token_ids: False for a backend that refuses
    them. context_length: the backend's, in tokens, where it is known. reasoning_end: what stands between
    reasoning and content in the model's own text, None where that is unknown.
    """
    data = read_body(body)
    if data is None:
        return Refusal("its request can't be read")
    client = client_of(data)
    if spoken.finished:
        return Closing(None, client)
    refusal = why_not(data, chat=spoken.chat)
    if refusal is None and spoken.unknown is not None:
        refusal = f"{spoken.unknown} had begun"
    if refusal is not None:
        return Refusal(refusal)
    wants_ids = token_ids and by_text_only(data) is None
    if not spoken.shown and not (client.ids and spoken.ids):
        return Continuation(How.AGAIN, path, bodies.again(data, ids=wants_ids), True, client)
    asked = _Asked(path, data, client)
    if wants_ids and spoken.prompt_ids is not None and spoken.ids_complete:
        found = _by_ids(asked, spoken, context_length=context_length, reasoning_end=reasoning_end)
        if found is not None:
            return found
    return _by_text(asked, spoken, ids=wants_ids)


def client_of(data: dict[str, Any]) -> Client:
    """What the client asked to see."""
    options = data.get("stream_options")
    options = options if isinstance(options, dict) else {}
    usage = options.get("include_usage") is True
    running = usage and options.get("continuous_usage_stats") is True
    return Client(usage, running, data.get("return_token_ids") is True)


def _by_ids(
    asked: _Asked,
    spoken: Spoken,
    *,
    context_length: int | None,
    reasoning_end: str | None,
) -> Continuation | Closing | None:
    path, data, client = asked
    hold_back = bodies.hold_back_of(data)
    greedy = bodies.is_greedy(data)
    if spoken.reasoning_length and (hold_back or reasoning_end is None):
        # With text held back vLLM's parser and its ids are out of step: nobody knows where its reasoning ends.
        return None
    begun = bodies.begun_stop_of(data, spoken.visible)
    cut = _cut(spoken, hold_back, spoken.shown - begun, greedy=greedy, stops=bool(data.get("stop")))
    if cut is None:
        return None
    tokens = spoken.prior_tokens + cut.ids
    if not greedy and client.ids and cut.ids < len(spoken.ids):
        return None
    assert spoken.prompt_ids is not None
    limit = bodies.limit_of(data, chat=spoken.chat)
    prompt_length = len(spoken.prompt_ids) + cut.ids
    left = limit - tokens if limit is not None else bodies.UNLIMITED
    if context_length is not None:
        left = min(left, context_length - prompt_length)
    if left <= 0:
        return Closing("length", client)
    return Continuation(
        How.IDS,
        path[: -len(_CHAT)] + _TEXT if spoken.chat else path,
        bodies.by_ids(data, [*spoken.prompt_ids, *spoken.ids[: cut.ids]], kept=tokens, max_tokens=left),
        greedy and not bodies.remembers_its_answer(data),
        client,
        keep=cut.ids,
        position=cut.position,
        thinks=spoken.reasoning_length > 0 and cut.position <= spoken.reasoning_length,
        sure=cut.sure,
        tokens=tokens,
        reasoning_end=reasoning_end or THINK_END,
    )


def _cut(spoken: Spoken, hold_back: int, latest: int, *, greedy: bool, stops: bool) -> Mark | None:
    """Where the ids are cut, at `latest` or before: how many are kept, and the position that those spell."""
    shown = spoken.shown
    # A prompt that is told is recognised, but not when a stop string has cut it short.
    careful = spoken.careful or stops
    for mark in reversed(spoken.marks):
        position = mark.position + hold_back
        # Of several ids with the last of the reasoning, one may be the mark that ends it; nothing tells.
        unclear = careful or mark.position == spoken.reasoning_length > 0
        if position > latest or (unclear and not mark.sure):
            continue
        if position < shown and not greedy:
            return None
        return Mark(mark.ids, position, mark.sure)
    # Nothing that may be kept: from the prompt.
    return Mark(0, spoken.base, True) if greedy or shown == spoken.base else None


def _by_text(asked: _Asked, spoken: Spoken, *, ids: bool) -> Continuation | Closing | Refusal:
    path, data, client = asked
    if bodies.begun_stop_of(data, spoken.visible):
        return Refusal("it broke off inside what may be a stop string")
    if spoken.reasoning_length:
        return Refusal("it broke off after reasoning, which goes on only from token ids")
    if client.ids:
        return Refusal("the client has token ids which a new draw would not bear out")
    if not spoken.chat and not isinstance(data["prompt"], str):
        return Refusal("its prompt is token ids, which a text can't be added to")
    if (
        spoken.chat
        and data.get("continue_final_message")
        and not isinstance(data["messages"][-1].get("content"), str)
    ):
        return Refusal("the message that it continues is not a text")
    tokens = _tokens_shown(spoken, bodies.hold_back_of(data))
    limit = bodies.limit_of(data, chat=spoken.chat)
    left = None if limit is None else limit - tokens
    if left is not None and left <= 0:
        return Closing("length", client)
    body = bodies.by_text(data, spoken.text, chat=spoken.chat, kept=tokens, max_tokens=left, ids=ids)
    return Continuation(How.TEXT, path, body, False, client, position=spoken.shown, tokens=tokens)


def _tokens_shown(spoken: Spoken, hold_back: int) -> int:
    """Tokens of the text that was shown; those held back are drawn anew."""
    if not spoken.ids_complete:
        return spoken.tokens
    for mark in reversed(spoken.marks):
        if mark.position + hold_back <= spoken.shown:
            return spoken.prior_tokens + mark.ids
    return spoken.prior_tokens
