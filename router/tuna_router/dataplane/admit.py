"""Admit: may this request come in? A key within its limits, then a place under the concurrency limit."""

from __future__ import annotations

from tuna_router.admission import Ticket
from tuna_router.core import Core
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.envelope import error_body
from tuna_router.keys.live import LiveKey
from tuna_router.refusal import Refusal


def unauthorized(presented: bool) -> Refusal:
    """401: no key, or a wrong one."""
    message = "Incorrect API key provided." if presented else "You didn't provide an API key."
    body = error_body(
        message, "invalid_request_error", "invalid_api_key", hint="send Authorization: Bearer KEY or x-api-key: KEY"
    )
    return Refusal(401, body, b"www-authenticate: Bearer\r\n")


def admit(core: Core, head: RequestHead) -> Ticket | LiveKey | Refusal:
    """A place for the request, to be left when it ends; or the answer that refuses it.

    Or, where there is no place, its key: the request may wait (`dataplane.queued`).
    """
    live = core.guard.whose(head.digest)
    if live is None:
        core.meter.unauthorized += 1
        return unauthorized(head.key is not None)
    if live.limited:
        now = core.meter.clock()
        refusal = live.refusal(now, core.meter.wall())
        if refusal is not None:
            core.meter.rejected += 1
            name = live.settings.name
            core.events.publish_seldom("limit", name, {"key": name, "reason": live.last_reason})
            return refusal
        live.take(now)
    ticket = core.admission.enter(live)
    if ticket is None:
        return live
    live.enter()
    return ticket
