"""Talking to a provider's REST API: what an answer means, and in whose words.

Calls are repeated as `patience` has it; one that creates, only where the provider certainly did not act. Else it
ends in `UnclearError`, and the caller looks for what there is.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from tuna_nb import tls
from tuna_nb.backends.patience import Setback, patiently, retry_after_s
from tuna_nb.errors import (
    BackendError,
    CapacityError,
    ConflictError,
    CredentialsError,
    NotFoundError,
    TunaError,
)

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 30.0
_WORDS: Final = 400
_NO_ROOM: Final = (
    "capacity",
    "quota",
    "insufficient",
    "unavailable in",
    "no available",
    "out of stock",
    "limit exceeded",
)


class Api:
    """One provider's API.

    headers: asked anew for each call, so that a changed key counts. sign_in: the step that mends a refused key.
    pace: of the back-off; a test quickens it.
    """

    def __init__(
        self,
        provider: str,
        base_url: str,
        headers: Callable[[], Mapping[str, str]],
        sign_in: str,
        *,
        timeout_s: float = TIMEOUT_S,
        pace: float = 1.0,
    ) -> None:
        self.provider = provider
        self.base_url = base_url.rstrip("/")
        self._headers = headers
        self._sign_in = sign_in
        self._timeout_s = timeout_s
        self._pace = pace

    async def get(self, path: str, what: str, **params: str | int) -> Any:
        """The answer's JSON."""
        return await self.call("GET", path, what, params=params)

    async def call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: object = None,
        params: Mapping[str, str | int] | None = None,
        creates: bool = False,
    ) -> Any:
        """The answer's JSON, None for an empty one.

        what: the thing, as an error names it. creates: the call must not be repeated where it may have worked.
        Raises CredentialsError, NotFoundError, ConflictError, CapacityError, UnclearError, BackendError.
        """

        async def attempt() -> Any:
            import httpx

            try:
                async with self._client() as http:
                    answer = await http.request(
                        method, self.base_url + path, json=body, params=params, headers=dict(self._headers())
                    )
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                raise Setback(self._lost(what, exc), passes=True, acted=False) from exc
            except httpx.HTTPError as exc:
                raise Setback(self._lost(what, exc), passes=True) from exc
            if answer.is_success:
                return self._json(answer, what)
            raise Setback.of_status(self._error(answer, what), answer.status_code, _asked_wait_s(answer))

        return await patiently(attempt, creates=creates, pace=self._pace)

    @asynccontextmanager
    async def events(
        self, path: str, what: str, params: Mapping[str, str | int], headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
        """The (id, data) of a stream of server-sent events; ends when the provider ends it."""
        import httpx

        try:
            async with (
                self._client() as http,
                http.stream(
                    "GET",
                    self.base_url + path,
                    params=params,
                    headers={**self._headers(), **headers, "accept": "text/event-stream"},
                ) as answer,
            ):
                if not answer.is_success:
                    await answer.aread()
                    raise self._error(answer, what)
                yield _events(answer.aiter_lines())
        except httpx.HTTPError as exc:
            raise self._lost(what, exc) from exc

    def _client(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(verify=tls.trusted(), timeout=self._timeout_s)

    def _json(self, answer: httpx.Response, what: str) -> Any:
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise BackendError(
                f"{self.provider}: the answer about {what} is no JSON: {answer.text[:80]!r}",
                "try again; is a proxy between here and the provider?",
            ) from None

    def _lost(self, what: str, exc: httpx.HTTPError) -> BackendError:
        import httpx

        why = f"no answer within {self._timeout_s:g} s" if isinstance(exc, httpx.TimeoutException) else str(exc)
        return BackendError(
            f"{self.provider}: {what}: {why or type(exc).__name__}", f"is {self.base_url} reachable from here?"
        )

    def _error(self, answer: httpx.Response, what: str) -> TunaError:
        said = f"{self.provider}: {what}: {words(answer.text) or answer.reason_phrase} ({answer.status_code})"
        status = answer.status_code
        if status in (401, 403):
            return CredentialsError(said, self._sign_in)
        if status == 404:
            return NotFoundError(said)
        if status == 409:
            return ConflictError(said)
        if status == 429:
            return BackendError(said, "it limits how often it may be asked; try again in a minute")
        if any(word in said.lower() for word in _NO_ROOM):
            return CapacityError(said, "choose another GPU or --serverless-provider, or ask the provider for quota")
        if status < 500:
            return BackendError(said, "the provider refuses this setting; its own words are above")
        return BackendError(said, "the provider has a fault; try again")


def words(text: str) -> str:
    """What an error answer says to a person, whichever form it has: problem+json, Google's, ARM's, plain."""
    try:
        said = json.loads(text)
    except ValueError:
        # An HTML page of some proxy says nothing to anyone.
        return "" if text.lstrip().startswith("<") else " ".join(text.split())[:_WORDS]
    found = ""
    if isinstance(said, dict):
        inner = said.get("error")
        if isinstance(inner, dict):
            said = inner
        elif isinstance(inner, str):
            found = inner
        for key in ("detail", "message", "title"):
            if not found and isinstance(said.get(key), str):
                found = said[key]
        details = said.get("errors")
        if isinstance(details, list):
            found = ": ".join(filter(None, (found, "; ".join(str(item) for item in details))))
    return " ".join((found or text).split())[:_WORDS]


def _asked_wait_s(answer: httpx.Response) -> float | None:
    """By the header, else by `retry_after` in the JSON body, as Baseten has it; None where neither tells."""
    wait_s = retry_after_s(answer.headers.get("retry-after"), time.time())
    if wait_s is not None:
        return wait_s
    try:
        return max(0.0, float(answer.json()["retry_after"]))
    except (ValueError, KeyError, TypeError):
        return None


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str]]:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as logs need it."""
    last_id, data = "", []
    async for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            last_id = value
        elif field == "data":
            data.append(value)
        elif not line and data:
            yield last_id, "\n".join(data)
            data = []
