"""Admit: may this request come in? A key, then a place under the concurrency limit."""

from __future__ import annotations

from dataclasses import dataclass

from tuna_router.admission import Ticket
from tuna_router.auth import Role
from tuna_router.core import Core
from tuna_router.envelope import error_body


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer instead of service; `lines` are headers as they are on the wire."""

    status: int
    body: bytes
    lines: bytes = b""


def unauthorized(presented: bool) -> Refusal:
    """401: no key, or a wrong one."""
    message = "Incorrect API key provided." if presented else "You didn't provide an API key."
    body = error_body(
        message, "invalid_request_error", "invalid_api_key", hint="send Authorization: Bearer KEY or x-api-key: KEY"
    )
    return Refusal(401, body, b"www-authenticate: Bearer\r\n")


def admit(core: Core, key: bytes | None) -> Ticket | Refusal:
    """A place for the request, to be left when it ends, or the answer that refuses it."""
    if core.guard.role(key) < Role.CLIENT:
        core.meter.unauthorized += 1
        return unauthorized(key is not None)
    ticket = core.admission.try_enter()
    if ticket is None:
        core.meter.rejected += 1
        message = f"The router already serves its limit of {core.admission.limit} requests."
        body = error_body(message, "rate_limit_error", "concurrency_limit")
        return Refusal(429, body, b"retry-after: 1\r\n")
    return ticket
