"""What Modal's SDK raises, in our words with Modal's own in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from tuna_nb.errors import (
    BackendError,
    CapacityError,
    ConflictError,
    CredentialsError,
    NotFoundError,
    TunaError,
    UnclearError,
)

SIGN_IN: Final = "modal token new (or export MODAL_TOKEN_ID and MODAL_TOKEN_SECRET)"
_REACH: Final = "is Modal reachable from here? `modal token info` asks it"
_WORDS: Final = 400
_RATE: Final = ("rate", "too many", "throttl", "try again")


@asynccontextmanager
async def told(what: str, within_s: float, *, creates: bool = False) -> AsyncIterator[None]:
    """Around calls of the SDK about `what`. The SDK repeats what is worth repeating, and waits as long as Modal
    asks for it at a rate limit, for ever if need be: `within_s` ends that.

    creates: no clear answer is an UnclearError. Raises CredentialsError, NotFoundError, ConflictError,
    CapacityError, UnclearError, BackendError.
    """
    import modal.exception
    from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
    from h2.exceptions import ProtocolError as H2ProtocolError

    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError as exc:
        raise _unclear(f"modal: {what}: no answer within {within_s:g} s", creates) from exc
    except (OSError, ProtocolError, StreamTerminatedError, H2ProtocolError) as exc:
        raise _unclear(f"modal: {what}: the connection was lost ({_said(exc)})", creates) from exc
    except (modal.exception.Error, GRPCError) as exc:
        raise _error(what, exc, creates) from exc
    except (ValueError, ArithmeticError) as exc:  # a Decimal that is none is arithmetic to Python
        raise _unclear(f"modal: {what}: the SDK can't read Modal's answer ({_said(exc)})", creates) from exc


def _error(what: str, exc: Exception, creates: bool) -> TunaError:
    import modal.exception as raised

    said = f"modal: {what}: {_said(exc)}"
    if isinstance(exc, raised.AuthError | raised.PermissionDeniedError):
        return CredentialsError(said, SIGN_IN)
    if isinstance(exc, raised.NotFoundError):
        return NotFoundError(said)
    if isinstance(exc, raised.AlreadyExistsError | raised.ConflictError):
        return ConflictError(said)
    if isinstance(exc, raised.ResourceExhaustedError):
        if any(word in said.lower() for word in _RATE):
            return BackendError(said, "it limits how often it may be asked; try again in a minute")
        return CapacityError(said, "choose another GPU or --serverless-provider, or ask Modal for a higher limit")
    if isinstance(exc, raised.ImageBuildError):
        return BackendError(said, f"`modal image logs {exc.image_id}` shows how its build went")
    unclear = (raised.ServiceError, raised.InternalError, raised.ConnectionError, raised.TimeoutError)
    if isinstance(exc, unclear):
        return _unclear(said, creates)
    return BackendError(said, "Modal refuses this; its own words are above")


def _unclear(said: str, creates: bool) -> TunaError:
    return UnclearError(said, _REACH) if creates else BackendError(said, _REACH)


def _said(exc: Any) -> str:
    return " ".join(str(exc).split())[:_WORDS] or type(exc).__name__
