"""Errors as vLLM words them: `{"error": {"message", "type", "param", "code"}}` with an integer code."""

from __future__ import annotations

import json
from typing import Any


class ApiError(Exception):
    """An answer other than 200. `error_type` is vLLM's: BadRequestError, Bad Request, NotFoundError, ..."""

    def __init__(self, status: int, message: str, error_type: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.param = param

    def body(self) -> dict[str, Any]:
        """The error envelope."""
        return {
            "error": {"message": self.message, "type": self.error_type, "param": self.param, "code": self.status}
        }

    def json(self) -> str:
        """The error envelope as compact JSON."""
        return json.dumps(self.body(), ensure_ascii=False, separators=(",", ":"))


def invalid(message: str, param: str | None = None, value: object = None) -> ApiError:
    """A value that vLLM's own checks refuse; it appends the parameter and the value to its message."""
    extras = [f"parameter={param}"] if param is not None else []
    if value is not None:
        extras.append(f"value={value}")
    text = f"{message} ({', '.join(extras)})" if extras else message
    return ApiError(400, text, "BadRequestError", param)


def malformed(kind: str, location: str, message: str, value: object) -> ApiError:
    """A body that vLLM's schema refuses: 400, never 422, and its type has a blank in it."""
    shown = f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, list | dict) else str(value)
    detail = {"type": kind, "loc": location, "msg": message, "input": shown}
    return ApiError(400, f"1 validation error:\n  {detail}", "Bad Request", location)


def engine_dead() -> ApiError:
    """The engine process has gone (worker killed, or SIGTERM without drain)."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return ApiError(500, message, "InternalServerError")


def shutting_down() -> ApiError:
    """A new request while the server drains; /health goes on saying 200."""
    return ApiError(500, "cannot schedule new futures after shutdown", "InternalServerError")


def queue_full() -> ApiError:
    """More requests than --max-num-queued-reqs; there is no Retry-After."""
    message = (
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance."
    )
    return ApiError(503, message, "Service Unavailable")


def unknown_model(model: str, served: tuple[str, ...]) -> ApiError:
    """No such model here."""
    message = f"The model `{model}` does not exist. Valid aliases: {', '.join(served)}."
    return ApiError(404, message, "NotFoundError", "model")
