"""How the control plane reads a body and says no: JSON objects of at most 1 MiB, errors in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any, Final, overload

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tuna_router.control.models import ErrorBody

_BODY_CAP_BYTES: Final = 1024 * 1024
_TEXTS: Final = {
    400: "The body is not JSON.",
    401: "No key, or a wrong one.",
    403: "This needs an admin key.",
    404: "There is no such thing.",
    408: "The request took too long.",
    409: "It is in conflict with what is there.",
    413: "The body is too large.",
    422: "It can't be used.",
}
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _TEXTS.items()
}
"""What every endpoint may answer but its own."""


class Unprocessable(Exception):
    """A request that can't be followed; becomes an answer."""

    def __init__(self, message: str, hint: str, status: int = 422) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


def add_errors(app: FastAPI) -> None:
    """Turn every refusal into OpenAI's shape."""

    @app.exception_handler(Unprocessable)
    async def unprocessable(request: Request, error: Unprocessable) -> JSONResponse:
        return _answer(error.status, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(422, "a parameter can't be used", "see /router/openapi.json")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            hint = (
                "/router/health, config, stats, load, budget, keys, spot-replicas, events, openapi.json; /metrics"
            )
            return _answer(404, f"There is no {request.url.path}.", hint)
        return _answer(error.status_code, str(error.detail), "see /router/openapi.json", error.headers)


def body_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI of a body that is read by `read_json`."""
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


@overload
async def read_json(request: Request) -> dict[str, Any]: ...
@overload
async def read_json(request: Request, *, or_null: bool) -> dict[str, Any] | None: ...
async def read_json(request: Request, *, or_null: bool = False) -> dict[str, Any] | None:
    """The body, a JSON object; with `or_null`, or null. Raises Unprocessable."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_CAP_BYTES:
            raise Unprocessable("the body is too large", "at most 1 MiB", 413)
    try:
        data = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise Unprocessable("the body is not JSON", "send a JSON object", 400) from error
    if data is None and or_null:
        return None
    if not isinstance(data, dict):
        raise Unprocessable("the body is not a JSON object", "send {...}")
    return data


def _answer(status: int, message: str, hint: str, headers: Any = None) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, "hint": hint}
    return JSONResponse({"error": error}, status, headers)
