"""Telling a webhook: JSON that Slack understands, with our own fields beside it, signed, and tried again.

The body is `{"text": ..., "tuna": {...}}`. `tuna` has `id` (the same however often it is sent), `event` (`budget`
or `unserving`), `deployment_id`, `at` (Unix seconds) and the event's own fields. Two headers sign it:

    Tuna-Timestamp: 1800000000
    Tuna-Signature: v1=<HMAC-SHA256, in hex, of "<timestamp>.<body>" with the key>

The address and the key are secrets: whoever knows a Slack address can write there. Both are in the `secrets` of
the scope that the budget is over, on the machine where it was set, and nowhere else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tuna_nb import tls
from tuna_nb.errors import RequestError
from tuna_nb.secrets import Secrets, new_key

if TYPE_CHECKING:
    import httpx

URL, KEY = "webhook_url", "webhook_key"
"""Names of the two secrets."""
KEY_VARIABLE: Final = "TUNA_WEBHOOK_KEY"
TRIES: Final = 5
TIMEOUT_S: Final = 10.0
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0
WITHIN_S: Final = 120.0
"""All tries of one message together."""
_HERE: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to tell, and the key to sign with; neither is ever shown."""

    url: str = field(repr=False)
    key: str = field(repr=False)


def read_url(given: str, environ: Mapping[str, str]) -> tuple[str, bool]:
    """(The address, whether it was typed) of `--webhook`: the name of a variable, or the address itself.

    Raises RequestError, which does not repeat it.
    """
    named = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", given)
    url = environ.get(given, "").strip() if named else given.strip()
    if named and not url:
        raise RequestError(f"--webhook: there is no variable {given}", f"export {given}=https://...")
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _HERE)
        )
    except ValueError:
        good = False
    if not good:
        raise RequestError(
            "--webhook is no https address", "give a variable's name, which holds one: --webhook TUNA_WEBHOOK_URL"
        )
    return url, named is None


def keep(secrets: Secrets, scope: str, url: str, environ: Mapping[str, str] | None = None) -> None:
    """The address, and a key: that of TUNA_WEBHOOK_KEY, else the one that there is, else a new one."""
    env = os.environ if environ is None else environ
    key = env.get(KEY_VARIABLE, "").strip() or secrets.get(scope, KEY) or new_key()
    secrets.put(scope, URL, url)
    secrets.put(scope, KEY, key)


def kept(secrets: Secrets, scope: str) -> Webhook | None:
    """None where it is not on this machine."""
    url, key = secrets.get(scope, URL), secrets.get(scope, KEY)
    return None if url is None or key is None else Webhook(url, key)


def masked(url: str) -> str:
    """For showing: its host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/..."


def signature(key: str, timestamp: int, body: bytes) -> str:
    """The value of `Tuna-Signature`."""
    signed = hmac.new(key.encode(), str(timestamp).encode() + b"." + body, hashlib.sha256)
    return f"v1={signed.hexdigest()}"


async def tell(
    webhook: Webhook,
    text: str,
    fields: Mapping[str, Any],
    wall: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> str | None:
    """Send it once; returns None when it was taken, else why not, without the address.

    No answer, 408, 429 and 5xx are tried again with growing waits, as `Retry-After` says where it does, within
    WITHIN_S. Other answers are final.
    """
    import httpx

    with _unlogged(webhook.url):
        async with httpx.AsyncClient(verify=tls.trusted(), timeout=TIMEOUT_S, follow_redirects=False) as client:
            return await _tell(client, webhook, {"text": text, "tuna": dict(fields)}, wall, sleep)


async def _tell(
    client: httpx.AsyncClient,
    webhook: Webhook,
    told: Mapping[str, Any],
    wall: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> str | None:
    import httpx

    body = json.dumps(told).encode()
    said = "nothing"
    wait_s, waited_s = FIRST_WAIT_S, 0.0
    for number in range(TRIES):
        if number:
            if waited_s + wait_s > WITHIN_S:
                break
            await sleep(wait_s)
            waited_s += wait_s
            wait_s = min(wait_s * 3, LONGEST_WAIT_S)
        # Signed anew: a receiver may refuse what was signed long ago.
        at = int(wall())
        headers = {
            "Content-Type": "application/json",
            "Tuna-Timestamp": str(at),
            "Tuna-Signature": signature(webhook.key, at, body),
        }
        try:
            answer = await client.post(webhook.url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as e:
            said = type(e).__name__  # its text may have the address
            continue
        if answer.is_success:
            return None
        said = f"it answered {answer.status_code}"
        if answer.status_code not in (408, 429) and answer.status_code < 500:
            return said
        wait_s = _asked(answer.headers.get("retry-after"), wait_s)
    return said


@contextmanager
def _unlogged(url: str) -> Iterator[None]:
    """httpx writes every address that it asks into its log."""

    def keep(record: logging.LogRecord) -> bool:
        return url not in record.getMessage()

    logger = logging.getLogger("httpx")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _asked(retry_after: str | None, wait_s: float) -> float:
    """What the receiver asks for, in seconds; our own figure where it says nothing that can be read."""
    if retry_after is None or not retry_after.strip().isdecimal():
        return wait_s
    return max(wait_s, float(retry_after))
