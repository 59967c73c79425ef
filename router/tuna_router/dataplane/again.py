"""Sending a request again: whether it may be, and whether a backend that says nothing is late with its answer."""

from __future__ import annotations

from tuna_router.core import Core
from tuna_router.dataplane.forward import Failed, Refused, asks_for_a_stream
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.fleet.live import LiveBackend
from tuna_router.spot import SpotState


def may_be_sent_again(
    core: Core, head: RequestHead, failure: Refused | Failed, attempts: int, *, somewhere: bool
) -> bool:
    """After this failure, the last of so many `attempts`; `somewhere`: there is a backend left to try.

    What reached nobody, or a backend that is no more, loads none.
    """
    if isinstance(failure, Failed) and not failure.sent:
        return True
    if head.once or attempts >= core.settings.max_attempts:
        return False
    if isinstance(failure, Failed) and failure.gone:
        return True
    return not somewhere or core.retries.take(core.meter.requests.started)


def is_late(backend: LiveBackend, pieces: list[bytes]) -> bool:
    """Whether a backend in doubt should have begun to answer the request with this body.

    Not serverless, which may start cold. And an answer that is no stream comes at its end: it is late only where
    nobody is there any more.
    """
    if backend.machine is None:
        return False
    return backend.removed or backend.state is not SpotState.READY or asks_for_a_stream(pieces)
