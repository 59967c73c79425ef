"""The routes: what each path answers, and which requests reach the engine."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from tuna_nb.backends.local.engine import tokenizer
from tuna_nb.backends.local.engine.api_errors import ApiError, engine_dead, queue_full, shutting_down
from tuna_nb.backends.local.engine.chat_template import render
from tuna_nb.backends.local.engine.checks import (
    GenerationRequest,
    check_chat,
    check_completion,
    check_model,
    parse_body,
)
from tuna_nb.backends.local.engine.connection import Exchange, HttpRequest
from tuna_nb.backends.local.engine.engine import Engine
from tuna_nb.backends.local.engine.faults import AT_ARRIVAL, Fault, FaultBook, FaultKind, parse_fault
from tuna_nb.backends.local.engine.fields import FIELDS, checked_fields
from tuna_nb.backends.local.engine.options import Options
from tuna_nb.backends.local.engine.replies import JSON, Reply, StreamReply, WholeReply
from tuna_nb.backends.local.engine.scheduler import QueueFullError
from tuna_nb.backends.local.engine.vocabulary import SIZE
from tuna_nb.backends.local.engine.wire import dumps

VERSION: Final = "0.32.0"
_GUARDED: Final = ("/v1", "/v2", "/inference", "/cohere")


class Server:
    """Answers HTTP requests for one engine.

    draining: running requests finish and new ones get a 500, as in vLLM's shutdown. on_death is called when the
    engine dies under its requests, on_idle when the last request in progress is over.
    """

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options = options
        self.engine = engine
        self.faults = FaultBook(options.faults)
        self.draining = False
        self.on_death: Callable[[], None] = lambda: None
        self.on_idle: Callable[[], None] = lambda: None
        self.replies: set[Reply] = set()
        self.omit_done = options.omit_done
        self.parses_reasoning = options.reasoning_parser is not None
        self.started = int(time.time())
        # Differs between servers that are configured differently, as vLLM's does.
        shown = repr(replace(options, port=0, port_file=None, api_key=None))
        self.fingerprint = f"vllm-{VERSION}-{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
        self._key = options.api_key
        self._routes: dict[str, tuple[str, Callable[[HttpRequest, Exchange], None]]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completions),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/ping": ("GET", self._health),
            "/version": ("GET", lambda _, exchange: _json(exchange, {"version": VERSION})),
            "/load": ("GET", lambda _, exchange: _json(exchange, {"server_load": len(self.replies)})),
            "/metrics": ("GET", self._metrics),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
        }

    def __call__(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request, now or when the engine has generated the answer."""
        if request.path.startswith(_GUARDED) and not self._authorized(request):
            exchange.reply(401, b'{"error":"Unauthorized"}', JSON)
            return
        if request.path == "/-/faults" and self.options.allow_faults:
            self._faults(request, exchange)
            return
        method, route = self._routes.get(request.path, ("", None))
        if route is None:
            bare = request.path.rstrip("/")
            if bare in self._routes:
                url = f"http://{request.headers.get('host', self.options.host)}{bare}"
                exchange.reply(307, b"", None, (("location", url),))
            else:
                _json(exchange, {"detail": "Not Found"}, 404)
            return
        if request.method != method and not (request.method == "POST" and request.path == "/ping"):
            _json(exchange, {"detail": "Method Not Allowed"}, 405, (("allow", method),))
            return
        try:
            route(request, exchange)
        except ApiError as error:
            exchange.reply(error.status, dumps(error.body()), JSON, self._id_header(request))
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach the client as a 500, as in vLLM
            traceback.print_exc()
            exchange.reply(500, dumps(ApiError(500, str(error), "InternalServerError").body()), JSON)

    def reply_begun(self, reply: Reply) -> None:
        """A request is in progress."""
        self.replies.add(reply)

    def reply_over(self, reply: Reply) -> None:
        """A request is over; the last one may let a draining server end."""
        self.replies.discard(reply)
        if not self.replies:
            self.on_idle()

    def engine_death(self) -> None:
        """The engine dies under all its requests, and the server with it."""
        self.engine.die()
        self.on_death()

    def _authorized(self, request: HttpRequest) -> bool:
        if self._key is None or request.method == "OPTIONS":
            return True
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), self._key.encode())

    def _id_header(self, request: HttpRequest) -> tuple[tuple[str, str], ...]:
        if not self.options.request_id_header:
            return ()
        return (("x-request-id", request.headers.get("x-request-id") or os.urandom(16).hex()),)

    def _chat(self, request: HttpRequest, exchange: Exchange) -> None:
        self._generate(request, exchange, check_chat)

    def _completions(self, request: HttpRequest, exchange: Exchange) -> None:
        self._generate(request, exchange, check_completion)

    def _generate(self, request: HttpRequest, exchange: Exchange, check: Callable[..., GenerationRequest]) -> None:
        options = self.options
        try:
            body = parse_body(request.body, request.headers.get("content-type", ""))
        except UnicodeDecodeError:
            # FastAPI gives up before vLLM's error handlers see it.
            _json(exchange, {"detail": "There was an error parsing the body"}, 400)
            return
        asked = check(
            body,
            options.model,
            request.headers.get("x-request-id"),
            reject_unknown=options.reject_unknown_fields,
        )
        if self.draining:
            raise shutting_down()
        if self.engine.dead:
            raise engine_dead()
        fault = self.faults.claim()
        if fault is not None and fault.kind in AT_ARRIVAL:
            self._refuse(fault, exchange)
            return
        try:
            self.engine.check_admission(asked.n * len(asked.prompts))
        except QueueFullError:
            raise queue_full() from None
        asked = replace(
            asked,
            return_token_ids=asked.return_token_ids and not options.no_token_ids,
            stream_interval=max(asked.stream_interval, options.stream_interval),
            usage_in_last_chunk=options.usage_in_last_chunk,
        )
        reply = (StreamReply if asked.stream else WholeReply)(asked, exchange, self.engine, self, fault)
        reply.headers = self._id_header(request)
        reply.begin()

    def _refuse(self, fault: Fault, exchange: Exchange) -> None:
        if fault.kind is FaultKind.BROKEN:
            raise engine_dead()
        if fault.kind is FaultKind.DRAINING:
            raise shutting_down()
        error = ApiError(fault.status, "Too many requests.", "rate_limit_error")
        exchange.reply(fault.status, dumps(error.body()), JSON, (("retry-after", str(fault.retry_after_s)),))

    def _models(self, request: HttpRequest, exchange: Exchange) -> None:
        model = self.options.model
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self.started,
                "owned_by": "vllm",
                "root": model.root,
                "parent": None,
                "max_model_len": model.max_model_len,
                "permission": [
                    {
                        "id": f"modelperm-{os.urandom(8).hex()}",
                        "object": "model_permission",
                        "created": self.started,
                        "allow_create_engine": False,
                        "allow_sampling": True,
                        "allow_logprobs": True,
                        "allow_search_indices": False,
                        "allow_view": True,
                        "allow_fine_tuning": False,
                        "organization": "*",
                        "group": None,
                        "is_blocking": False,
                    }
                ],
            }
            for name in model.names
        ]
        _json(exchange, {"object": "list", "data": cards})

    def _health(self, request: HttpRequest, exchange: Exchange) -> None:
        exchange.reply(503 if self.engine.dead or self.faults.unhealthy() else 200, b"", None)

    def _metrics(self, request: HttpRequest, exchange: Exchange) -> None:
        text = self.engine.render_metrics()
        exchange.reply(200, text.encode(), "text/plain; version=1.0.0; charset=utf-8")

    def _tokenize(self, request: HttpRequest, exchange: Exchange) -> None:
        data = parse_body(request.body, request.headers.get("content-type", ""))
        if "messages" not in data:
            checked_fields(data, FIELDS["tokenize"])
        check_model(data, self.options.model)
        if "messages" in data:
            data = checked_fields(data, FIELDS["tokenize chat"])
            text = render(
                data["messages"],
                add_generation_prompt=data.get("add_generation_prompt") is not False,
                continue_final_message=bool(data.get("continue_final_message")),
            )
        else:
            text = checked_fields(data, FIELDS["tokenize"])["prompt"]
        ids = tokenizer.encode(text)
        strings = tokenizer.token_strings(ids) if data.get("return_token_strs") else None
        length = self.options.model.max_model_len
        _json(exchange, {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": strings})

    def _detokenize(self, request: HttpRequest, exchange: Exchange) -> None:
        data = parse_body(request.body, request.headers.get("content-type", ""))
        check_model(data, self.options.model)
        ids = checked_fields(data, FIELDS["detokenize"])["tokens"]
        # What is not in the vocabulary has no text.
        ids = [i for i in ids if 0 <= i < SIZE]
        _json(exchange, {"prompt": tokenizer.decode(ids)})

    def _faults(self, request: HttpRequest, exchange: Exchange) -> None:
        """GET shows the orders in force, POST adds one or a list of them, DELETE clears them."""
        book = self.faults
        if request.method == "DELETE":
            book.orders.clear()
        elif request.method == "POST":
            try:
                orders: Any = json.loads(request.body)
                new = [parse_fault(order) for order in (orders if isinstance(orders, list) else [orders])]
            except (ValueError, TypeError) as error:
                _json(exchange, {"detail": str(error)}, 400)
                return
            book.orders.extend(new)
        _json(exchange, [fault.as_json() for fault in book.orders])


def _json(exchange: Exchange, value: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
    exchange.reply(status, dumps(value), JSON, headers)
