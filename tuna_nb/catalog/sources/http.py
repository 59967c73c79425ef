"""Asking a source of prices over HTTP: one question, one answer, one clear error.

Nothing is tried twice here and no redirect is followed. What an error says holds neither a key nor more of a URL
than its host.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tuna_nb import tls
from tuna_nb.catalog.sources.base import changed
from tuna_nb.errors import BackendError, CredentialsError

if TYPE_CHECKING:
    import httpx

_WORDS: Final = 160
_BAD_KEY: Final = ("auth_error", "api_key_invalid", "api key not valid", "api key expired")
"""Vast.ai says it with 404, Google with 400."""


async def ask_json(
    source: str,
    url: str,
    *,
    timeout_s: float,
    body: object = None,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    sign_in: str | None = None,
) -> Any:
    """The answer's JSON. A body makes it a POST. timeout_s: for the whole of it. sign_in: the step that mends a
    refused key. Raises CredentialsError, BackendError."""
    answer = await _ask(source, url, timeout_s, body=body, params=params, headers=headers, sign_in=sign_in)
    try:
        # Of megabytes it takes a while.
        return await asyncio.to_thread(json.loads, answer.content)
    except ValueError:
        raise not_what(source, url, answer.content, "JSON") from None


async def ask_bytes(source: str, url: str, *, timeout_s: float) -> bytes:
    """The answer's content. Raises BackendError."""
    return (await _ask(source, url, timeout_s)).content


def refusal(
    source: str, status: int, said: str, sign_in: str | None = None, key: str | None = None
) -> BackendError:
    """What a status other than success means. said: the answer's text, JSON or plain, of which the key is taken out
    in case that it repeats it."""
    said = said.replace(key, "<key>") if key else said
    if status in (401, 403) or any(mark in said.lower() for mark in _BAD_KEY):
        denied = f"{source}: it does not let us in ({status})"
        return (
            CredentialsError(denied, sign_in)
            if sign_in
            else BackendError(denied, "it has no such thing, or no more")
        )
    if status == 429:
        return BackendError(f"{source}: rate-limited (429)", "try again in a minute")
    why = _words(said)
    return BackendError(
        f"{source}: it answered {status}" + (f": {why}" if why else ""),
        "it has a fault; try again later"
        if status >= 500
        else "the others are shown; an update of tuna-nb may help",
    )


def not_what(source: str, url: str, content: bytes, wanted: str) -> BackendError:
    """For an answer that can't be read at all."""
    if content.lstrip()[:1] == b"<":
        return BackendError(
            f"{source}: it answered HTML instead of {wanted}", f"is a proxy's page between here and {_host(url)}?"
        )
    return changed(source, f"it is no {wanted}")


def key_of(source: str, key: str | None, sign_in: str) -> str | None:
    """A key that can be sent in a header; None for none.

    Raises CredentialsError, since the HTTP library would quote a key that it can't send.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CredentialsError(f"{source}: the key has characters that no key has", sign_in)
    return key or None


def records(source: str, holder: object, name: str) -> list[dict[str, Any]]:
    """A list of objects in an answer."""
    found = field(source, holder, name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise changed(source, f"{name} is no list of objects")
    return found


def field(source: str, holder: object, name: str) -> Any:
    """A field that must be there, null or not."""
    if not isinstance(holder, dict) or name not in holder:
        raise changed(source, f"there is no {name}")
    return holder[name]


def number(source: str, holder: object, name: str) -> float | None:
    """A number, None for null."""
    found = field(source, holder, name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise changed(source, f"{name} is no number")
    return float(found)


def text(source: str, holder: object, name: str) -> str | None:
    """A text, None for null."""
    found = field(source, holder, name)
    if found is not None and not isinstance(found, str):
        raise changed(source, f"{name} is no text")
    return found


async def _ask(
    source: str,
    url: str,
    timeout_s: float,
    *,
    body: object = None,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    sign_in: str | None = None,
) -> httpx.Response:
    import httpx

    try:
        # httpx's own time-out begins anew with every byte that comes.
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(verify=tls.trusted(), timeout=timeout_s) as http:
            answer = await http.request(
                "GET" if body is None else "POST", url, json=body, params=params, headers=headers
            )
    except (TimeoutError, httpx.TimeoutException):
        raise BackendError(
            f"{source}: no answer within {timeout_s:g} s", f"is {_host(url)} reachable from here?"
        ) from None
    except httpx.ConnectError:
        raise BackendError(
            f"{source}: no connection to {_host(url)}", "is this machine on the network? is a proxy set?"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise BackendError(
            f"{source}: the answer broke off ({type(exc).__name__})", f"is {_host(url)} reachable from here?"
        ) from None
    if answer.is_success:
        return answer
    shown = next(iter((headers or {}).values()), "").removeprefix("Bearer ")
    raise refusal(source, answer.status_code, answer.text, sign_in, shown)


def _host(url: str) -> str:
    """Without what a URL may hold of a user or a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")


def _words(said: str) -> str:
    """An error answer's own words, where it is no page."""
    try:
        found = json.loads(said)
    except ValueError:
        return "" if said.lstrip().startswith("<") else " ".join(said.split())[:_WORDS]
    while isinstance(found, dict):
        found = next((found[name] for name in ("msg", "message", "detail", "error") if found.get(name)), None)
    return " ".join(str(found).split())[:_WORDS] if isinstance(found, str) else ""
