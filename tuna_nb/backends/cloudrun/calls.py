"""Calls of Google's APIs: Cloud Run's by its SDK, in threads; the others, of which little is needed, by plain REST.

The SDK's own retries are off: it waits without regard to `Retry-After`, and would repeat within each of our tries.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from tuna_nb.backends.cloudrun.identity import SCOPES
from tuna_nb.backends.patience import Setback, patiently, retry_after_s
from tuna_nb.backends.rest import Api
from tuna_nb.errors import (
    BackendError,
    CapacityError,
    ConflictError,
    CredentialsError,
    NotFoundError,
    TunaError,
)

T = TypeVar("T")

SIGN_IN: Final = "gcloud auth application-default login"
ENABLE: Final = "gcloud services enable run.googleapis.com"
_OTHER: Final = "choose another region, GPU or --serverless-provider, or ask Google for quota"
_FILE: Final = "GOOGLE_APPLICATION_CREDENTIALS"


class Calls:
    """url: of every API, for a test; by default Google's own. timeout_s: of one call. pace: of the back-off."""

    def __init__(self, url: str | None, *, timeout_s: float, pace: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._pace = pace
        # Not the loop's own threads: the loop waits for those at its end, also for a call that hangs.
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="cloudrun")
        self._known: tuple[str, Any, str | None] | None = None
        self._client: tuple[Any, Any] | None = None

    async def credentials(self) -> tuple[Any, str | None]:
        """Application default credentials, and the project that they name. Raises CredentialsError."""
        from google.auth.exceptions import DefaultCredentialsError

        file = os.environ.get(_FILE, "")
        if self._known is None or self._known[0] != file:
            try:
                found, project = await self.threaded(_default)
            except DefaultCredentialsError as exc:
                raise CredentialsError(f"cloudrun: {_first(str(exc))}", SIGN_IN) from None
            self._known = (file, found, project)
        return self._known[1], self._known[2]

    async def threaded(self, call: Callable[..., T], *args: Any) -> T:
        """A call that blocks."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    async def run(self, what: str, call: Callable[[Any, dict[str, Any]], T], *, creates: bool = False) -> T:
        """`call(client, how)` of Cloud Run's services; `how` are the keywords of every method of the client.

        creates: it must not be repeated where it may have worked.
        Raises CredentialsError, NotFoundError, ConflictError, CapacityError, UnclearError, BackendError.
        """
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests.exceptions import RequestException

        credentials, _ = await self.credentials()

        async def attempt() -> T:
            try:
                return await self.threaded(self._call, credentials, call)
            except GoogleAPICallError as exc:
                error, status = said(exc, what), int(exc.code or 500)
                if isinstance(error, CapacityError):
                    raise error from None
                asked = exc.response.headers.get("retry-after") if exc.response is not None else None
                raise Setback.of_status(error, status, retry_after_s(asked, time.time())) from exc
            except TransportError as exc:
                lost = BackendError(f"cloudrun: no token: {_first(str(exc))}", "is Google reachable from here?")
                raise Setback(lost, passes=True, acted=False) from exc
            except GoogleAuthError as exc:
                raise CredentialsError(f"cloudrun: {what}: {_first(str(exc))}", SIGN_IN) from None
            except RequestException as exc:
                lost = BackendError(f"cloudrun: {what}: {_first(str(exc))}", "is Google reachable from here?")
                raise Setback(lost, passes=True) from exc

        return await patiently(attempt, creates=creates, pace=self._pace)

    async def rest(
        self,
        service: str,
        method: str,
        path: str,
        what: str,
        *,
        body: object = None,
        params: Mapping[str, str | int] | None = None,
    ) -> Any:
        """The JSON that another API answers. service: the first word of its host's name."""
        from google.auth.exceptions import GoogleAuthError, TransportError

        credentials, _ = await self.credentials()
        try:
            headers = await self.threaded(_headers, credentials)
        except TransportError as exc:
            raise BackendError(
                f"cloudrun: no token: {_first(str(exc))}", "is Google reachable from here?"
            ) from None
        except GoogleAuthError as exc:
            raise CredentialsError(f"cloudrun: {what}: {_first(str(exc))}", SIGN_IN) from None
        base = self._url or f"https://{service}.googleapis.com"
        api = Api("cloudrun", base, lambda: headers, SIGN_IN, timeout_s=self._timeout_s, pace=self._pace)
        return await api.call(method, path, what, body=body, params=params)

    def _call(self, credentials: Any, call: Callable[[Any, dict[str, Any]], T]) -> T:
        if self._client is None or self._client[0] is not credentials:
            from google.api_core.client_options import ClientOptions
            from google.cloud import run_v2

            options = ClientOptions(api_endpoint=self._url) if self._url else None
            client = run_v2.ServicesClient(transport="rest", credentials=credentials, client_options=options)
            self._client = (credentials, client)
        return call(self._client[1], {"retry": None, "timeout": self._timeout_s})


def said(exc: Any, what: str) -> TunaError:
    """An error of the SDK, in Google's words."""
    status = int(exc.code or 500)
    words = re.sub(r"^[A-Z]+ https?://\S+: ", "", str(exc.message))
    message = f"cloudrun: {what}: {_first(words)} ({status})"
    if status == 403 and (exc.reason == "SERVICE_DISABLED" or "has not been used in project" in words):
        return CredentialsError(message, ENABLE)
    if no_room(words):
        return CapacityError(message, _OTHER)
    if status in (401, 403):
        return CredentialsError(message, SIGN_IN)
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message)
    if status == 429:
        return BackendError(message, "it limits how often it may be asked; try again in a minute")
    if status < 500:
        return BackendError(message, "Google refuses this setting; its own words are above")
    return BackendError(message, "Google has a fault; try again")


def no_room(words: str) -> bool:
    """Whether Google says that it has no such GPU for us, which is not its limit on how often it may be asked."""
    low = words.lower()
    return "gpu" in low and any(word in low for word in ("quota", "capacity", "not available", "exhausted"))


def _default() -> tuple[Any, str | None]:
    import google.auth

    found: tuple[Any, str | None] = google.auth.default(scopes=SCOPES)
    return found


def _headers(credentials: Any) -> dict[str, str]:
    """Who asks, and at whose cost: a person's credentials name the project whose quota counts."""
    from google.auth.transport.requests import Request

    if not credentials.valid:
        credentials.refresh(Request())
    made: dict[str, str] = {}
    credentials.apply(made)
    return made


def _first(text: str) -> str:
    return " ".join(text.split())[:400]
