"""Azure Resource Manager through Azure's own SDK: one call at a time in a thread, its errors in our words.

The SDK's retries are off and ours are here, outside the thread: a caller that is cancelled must not leave a thread
behind that sends a create again later. The SDK would also register a resource provider by itself where one is
missing; it may not, because a check creates nothing: the user is given the command instead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from tuna_nb.backends.patience import Setback, patiently, retry_after_s
from tuna_nb.backends.rest import words
from tuna_nb.errors import (
    BackendError,
    CapacityError,
    ConflictError,
    CredentialsError,
    NotFoundError,
    TunaError,
)

T = TypeVar("T")

SIGN_IN: Final = "az login"
UNREGISTERED: Final = "MissingSubscriptionRegistration"
_TIMEOUT_S: Final = 60.0
_GONE: Final = ("ResourceNotFound", "ResourceGroupNotFound", "NotFound")
"""ARM's codes for a thing that is not there; any other 404 (a subscription, a proxy) says nothing of it."""
_NO_ROOM: Final = ("quota", "capacity", "exceeded", "not available in", "insufficient")


class Arm:
    """ARM for any subscription.

    url: of ARM, None for Azure's own. credential: None for DefaultAzureCredential. pipeline: more keywords for the
    SDK's client. pace: of the back-off. timeout_s: for one answer.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        credential: Any = None,
        pipeline: Mapping[str, Any] | None = None,
        pace: float = 1.0,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._url = url
        self._credential = credential
        self._pipeline = dict(pipeline or {})
        self._pace = pace
        self._timeout_s = timeout_s
        self._clients: dict[str, Any] = {}

    async def call(self, subscription: str, what: str, do: Callable[[Any], T], *, creates: bool = False) -> T:
        """What `do` gives for the subscription's client; run in a thread, so it must read its answer to the end.

        what: the thing, as an error names it. creates: it must not be repeated where it may have worked.
        Raises CredentialsError, NotFoundError, ConflictError, CapacityError, UnclearError, BackendError.
        """

        def attempt() -> Awaitable[T]:
            return asyncio.to_thread(self._do, subscription, what, do)

        return await patiently(attempt, creates=creates, pace=self._pace)

    async def get(self, subscription: str, what: str, path: str) -> Any:
        """The JSON at a path of ARM's own, or at an absolute URL that ARM gave."""

        def do(client: Any) -> Any:
            from azure.core.rest import HttpRequest

            answer = client.send_request(HttpRequest("GET", path))
            answer.raise_for_status()
            return answer.json()

        return await self.call(subscription, what, do)

    def _do(self, subscription: str, what: str, do: Callable[[Any], T]) -> T:
        from azure.core.exceptions import AzureError

        try:
            return do(self._client(subscription))
        except AzureError as exc:
            raise _refused(exc, what) from exc

    def _client(self, subscription: str) -> Any:
        if subscription not in self._clients:
            from azure.mgmt.appcontainers import ContainerAppsAPIClient

            if self._credential is None:
                from azure.identity import DefaultAzureCredential

                self._credential = DefaultAzureCredential()
            # Without a handler Python prints the SDK's warnings to stderr; what counts is in our errors.
            logging.getLogger("azure").addHandler(logging.NullHandler())
            settings: dict[str, Any] = {"retry_total": 0, "connection_timeout": min(10, self._timeout_s)}
            settings |= {"read_timeout": self._timeout_s, "per_retry_policies": [_no_registration()]}
            self._clients[subscription] = ContainerAppsAPIClient(
                self._credential, subscription, self._url, **(settings | self._pipeline)
            )
        return self._clients[subscription]


def _no_registration() -> Any:
    from azure.core.exceptions import HttpResponseError
    from azure.core.pipeline.policies import SansIOHTTPPolicy

    class NoRegistration(SansIOHTTPPolicy[Any, Any]):
        """Sits below the SDK's policy that registers providers, and keeps its cue from it."""

        def on_response(self, request: Any, response: Any) -> None:
            answer = response.http_response
            if answer.status_code == 409:
                answer.read()
                if UNREGISTERED in answer.text():
                    raise HttpResponseError(response=answer)

    return NoRegistration()


def _refused(exc: Any, what: str) -> Setback:
    """An error of the SDK's as ours."""
    from azure.core import exceptions as sdk

    answer = getattr(exc, "response", None)
    if isinstance(exc, sdk.ServiceRequestError):
        return Setback(_lost(exc, what), passes=True, acted=False)
    if isinstance(exc, (sdk.ServiceResponseError, sdk.DecodeError)):
        # A body that was cut off or is no JSON: what was asked may have been done.
        return Setback(_lost(exc, what), passes=True, acted=True)
    if answer is None:
        first = str(exc.message).strip().splitlines()[0] if str(exc.message).strip() else type(exc).__name__
        if isinstance(exc, sdk.ClientAuthenticationError):
            error: TunaError = CredentialsError(f"azure: {what}: {first}", SIGN_IN)
        else:
            error = BackendError(f"azure: {what}: {first}", "try again")
        return Setback(error, passes=False, acted=True)
    status = int(answer.status_code)
    code, said = _code(answer), _words(answer, exc)
    error = _error(status, code, f"azure: {what}: {said} ({status})")
    return Setback.of_status(error, status, retry_after_s(answer.headers.get("retry-after"), time.time()))


def _error(status: int, code: str, said: str) -> TunaError:
    if code == UNREGISTERED:
        namespace = next(
            (n for n in ("Microsoft.OperationalInsights", "Microsoft.App") if n in said), "Microsoft.App"
        )
        return BackendError(said, f"az provider register --namespace {namespace} --wait")
    if status == 401:
        return CredentialsError(said, SIGN_IN)
    if status == 403:
        return CredentialsError(said, f"{SIGN_IN}; the account needs the role Contributor on the resource group")
    if status == 404 and code in _GONE:
        return NotFoundError(said)
    if code in ("SubscriptionNotFound", "InvalidSubscriptionId"):
        return CredentialsError(said, "`az account list -o table` shows the subscriptions that you may use")
    if status == 409 and "quota" not in said.lower():
        return ConflictError(said)
    if status == 429:
        return BackendError(said, "Azure limits how often it may be asked; try again in a minute")
    if any(word in said.lower() for word in _NO_ROOM):
        return CapacityError(
            said, "ask for quota in the Azure portal under Quotas, or choose another region or GPU"
        )
    if status < 500:
        return BackendError(said, "Azure refuses this setting; its own words are above")
    return BackendError(said, "Azure has a fault; try again")


def _lost(exc: Any, what: str) -> BackendError:
    why = " ".join(str(exc.message or type(exc).__name__).split())[:300]
    return BackendError(f"azure: {what}: {why}", "is management.azure.com reachable from here?")


def _code(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def _words(answer: Any, exc: Any) -> str:
    said = words(answer.text()) or str(answer.reason or exc.message)
    code = _code(answer)
    return said if code in said or code.isdigit() else f"{code}: {said}"
