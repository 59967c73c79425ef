"""The life of one request from the first token to its end: what the client gets, streamed or whole.

A reply listens to its answers, writes what the wire wants, and acts on the fault that was ordered for it.
"""

from __future__ import annotations

import abc
import os
import time
from typing import Any, Protocol

from tuna_nb.backends.local.engine import wire
from tuna_nb.backends.local.engine.api_errors import engine_dead
from tuna_nb.backends.local.engine.checks import GenerationRequest
from tuna_nb.backends.local.engine.connection import Exchange
from tuna_nb.backends.local.engine.engine import Answer, Engine
from tuna_nb.backends.local.engine.faults import Fault, FaultKind
from tuna_nb.backends.local.engine.reasoning import ReasoningParser, split

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"


class ServerSide(Protocol):
    """What a reply needs of its server."""

    @property
    def fingerprint(self) -> str:
        """The server's system_fingerprint."""

    @property
    def omit_done(self) -> bool:
        """Whether streams end without [DONE] (other engines do)."""

    @property
    def parses_reasoning(self) -> bool:
        """Whether chats tell reasoning and content apart."""

    def reply_begun(self, reply: Reply) -> None:
        """A request is in progress."""

    def reply_over(self, reply: Reply) -> None:
        """A request is over."""

    def engine_death(self) -> None:
        """The engine dies, and the server with it."""


class Reply(abc.ABC):
    """What both kinds of reply share: the answers, the fault, the end."""

    def __init__(
        self,
        request: GenerationRequest,
        exchange: Exchange,
        engine: Engine,
        server: ServerSide,
        fault: Fault | None = None,
    ) -> None:
        self.request = request
        self.exchange = exchange
        self.engine = engine
        self.server = server
        self.fault = fault
        self.created = int(time.time())
        self.produced = 0
        self.headers: tuple[tuple[str, str], ...] = ()
        self.answers: list[Answer] = []
        self._over = False

    def begin(self) -> None:
        """Queue the answers."""
        self.server.reply_begun(self)
        self.exchange.on_disconnect = self.abandon
        n = self.request.n
        for place, prompt in enumerate(self.request.prompts):
            for sibling in range(n):
                answer = Answer(place * n + sibling, prompt, self, seed_offset=sibling)
                self.answers.append(answer)
        for answer in self.answers:
            self.engine.add(answer)

    def abandon(self) -> None:
        """The client has gone, or its connection was broken on order: stop generating for it."""
        for answer in self.answers:
            if answer.finish_reason is None:
                self.engine.abort(answer)
        self.over()

    def over(self) -> None:
        """Account for the end."""
        if not self._over:
            self._over = True
            self.server.reply_over(self)

    def failed(self) -> bool:
        """Act on the ordered fault if its time has come; True if nothing more is to be sent."""
        fault = self.fault
        if fault is None or self.produced < fault.after_tokens:
            return False
        match fault.kind:
            case FaultKind.ERROR_EVENT:
                self.die()
                self.abandon()
            case FaultKind.END_WITHOUT_DONE:
                self.end_short()
                self.abandon()
            case FaultKind.CUT:
                self.exchange.cut()
                self.abandon()
            case FaultKind.RESET:
                self.exchange.reset()
                self.abandon()
            case FaultKind.STALL:
                for answer in self.answers:
                    answer.stalled = True
            case FaultKind.ENGINE_DEATH:
                self.server.engine_death()
            case FaultKind.DIE:
                os._exit(137)
            case _:
                return False
        return True

    @abc.abstractmethod
    def on_token(self, answer: Answer, token_id: int) -> None:
        """A token came; `answer.finish_reason` is set with the last one."""

    @abc.abstractmethod
    def die(self) -> None:
        """Tell the client that the engine has failed, in the way of this kind of reply."""

    @abc.abstractmethod
    def end_short(self) -> None:
        """End the answer cleanly as far as HTTP goes, but unfinished."""

    def on_death(self) -> None:
        """The engine is gone."""
        self.die()
        self.over()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt.ids) for prompt in self.request.prompts)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated for all choices."""
        return sum(answer.generated for answer in self.answers)


class StreamReply(Reply):
    """Sends each token on as it comes. Status and headers go out at admission, the first byte with a token."""

    def begin(self) -> None:
        """Answer 200 at once and queue the answers."""
        self.exchange.start(EVENT_STREAM, self.headers)
        server, request = self.server, self.request
        self._writer = wire.StreamWriter(
            request,
            self.created,
            server.fingerprint,
            self.prompt_tokens,
            parses_reasoning=server.parses_reasoning,
        )
        self._parsers: list[ReasoningParser] = []
        if request.chat and server.parses_reasoning:
            self._parsers = [ReasoningParser(request.prompts[0].ids) for _ in range(request.n)]
        self._opened = False
        self._ids: list[list[int]] = [[] for _ in range(request.n * len(request.prompts))]
        self._prompt_sent = [False] * len(self._ids)
        self._sent_ids = [0] * len(self._ids)
        self._unfinished = len(self._ids)
        super().begin()

    def on_token(self, answer: Answer, token_id: int) -> None:
        """Send what the token gives; the last one also ends the stream."""
        if self.fault is not None and self.failed():
            return
        self.produced += 1
        request = self.request
        index = answer.index
        finished = answer.finish_reason is not None
        waiting = self._ids[index]
        waiting.append(token_id)
        if not finished and self._sent_ids[index] and len(waiting) < request.stream_interval:
            return
        if request.chat:
            if not self._opened:
                self._open()
            prompt_ids = None
            text = answer.detokenizer.take(finished=finished)
        else:
            prompt_ids, text = self._completion_head(answer, answer.detokenizer.take(finished=finished))
        delta = None
        if self._parsers:
            delta = self._parsers[index].delta(text, waiting)
            if delta is None:
                delta = "{}"
                if not finished and not request.return_token_ids:
                    self._sent_ids[index] += len(waiting)
                    self._ids[index] = []
                    return
        piece = self._writer.piece(
            index,
            text,
            waiting if request.return_token_ids else None,
            completion_tokens=answer.generated,
            prompt_tokens=answer.prompt_tokens,
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
            prompt_ids=prompt_ids,
            delta=delta,
        )
        self._sent_ids[index] += len(waiting)
        self._ids[index] = []
        self.exchange.send(piece)
        if finished:
            self._unfinished -= 1
            if not self._unfinished:
                self._close()

    def _open(self) -> None:
        self._opened = True
        request = self.request
        prompt = request.prompts[0]
        ids = prompt.ids if request.return_token_ids else None
        text = prompt.text if request.return_prompt_text else None
        for index in range(request.n):
            self.exchange.send(self._writer.role(index, ids, text))
        if request.echo_text:
            for index in range(request.n):
                self.exchange.send(self._writer.echo(index, request.echo_text))

    def _completion_head(self, answer: Answer, text: str) -> tuple[tuple[int, ...] | None, str]:
        """The prompt's ids for the first chunk of a choice, and that chunk's text with the prompt where echoed."""
        if self._prompt_sent[answer.index]:
            return None, text
        request = self.request
        if request.echo:
            self._prompt_sent[answer.index] = True
            # vLLM echoes ids instead of text where ids are asked for.
            echoed = "" if request.return_token_ids else answer.prompt.text
            return answer.prompt.ids, echoed if request.echo_only else echoed + text
        if request.return_token_ids:
            self._prompt_sent[answer.index] = True
            return answer.prompt.ids, text
        return None, text

    def _close(self) -> None:
        if self.request.include_usage:
            self.exchange.send(self._writer.usage(self.prompt_tokens, self.completion_tokens))
        if not self.server.omit_done:
            self.exchange.send(wire.DONE)
        self.exchange.end()
        self.over()

    def die(self) -> None:
        """An error event, then [DONE] and a clean end, all under status 200."""
        self.exchange.send(wire.event(engine_dead().json()))
        self.exchange.send(wire.DONE)
        self.exchange.end()

    def end_short(self) -> None:
        """The stream just ends."""
        self.exchange.end()


class WholeReply(Reply):
    """Answers when all is generated."""

    def begin(self) -> None:
        """Queue the answers; nothing is sent yet."""
        self._ids: dict[int, list[int]] = {}
        super().begin()

    def on_token(self, answer: Answer, token_id: int) -> None:
        """Keep the token; answer with the last one."""
        if self.fault is not None and self.failed():
            return
        self.produced += 1
        self._ids.setdefault(answer.index, []).append(token_id)
        if answer.finish_reason is not None and all(a.finish_reason is not None for a in self.answers):
            self._answer()

    def _answer(self) -> None:
        request = self.request
        choices: list[dict[str, Any]] = []
        for answer in self.answers:
            text: str | None = answer.detokenizer.text
            reasoning = None
            if request.chat and self.server.parses_reasoning:
                reasoning, text = split(answer.detokenizer.text)
            if request.echo:
                echoed = "" if request.return_token_ids else answer.prompt.text
                text = echoed if request.echo_only else echoed + answer.detokenizer.text
            choices.append(
                {
                    "text": text,
                    "reasoning": reasoning,
                    "token_ids": self._ids[answer.index],
                    "prompt_ids": answer.prompt.ids,
                    "finish_reason": answer.finish_reason,
                    "stop_reason": answer.stop_reason,
                }
            )
        build = wire.chat_answer if request.chat else wire.completion_answer
        parses_reasoning = request.chat and self.server.parses_reasoning
        usage = wire.whole_usage(self.prompt_tokens, self.completion_tokens, parses_reasoning=parses_reasoning)
        body = build(request, self.created, self.server.fingerprint, choices, usage)
        self.exchange.reply(200, wire.dumps(body), JSON, self.headers)
        self.over()

    def die(self) -> None:
        """A plain 500."""
        error = engine_dead()
        self.exchange.reply(error.status, error.json().encode(), JSON)

    def end_short(self) -> None:
        """The headers of an answer, and an end before its body is complete."""
        self.exchange.start(JSON)
        self.exchange.end()
