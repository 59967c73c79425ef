"""The API keys as they are now: what each was configured to be, and what it has used.

Keys are known only as SHA-256 hashes. A key that was not seen before is compared with every known hash
in constant time; the digests of those that matched are remembered (never a key, and never a wrong one,
so there are at most as many as keys).
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tuna_router.auth import Role
from tuna_router.books.spend import Spent
from tuna_router.envelope import error_body
from tuna_router.keys.bucket import Bucket
from tuna_router.keys.settings import ANYONE, KeySettings
from tuna_router.refusal import Refusal


class LiveKey:
    """One key: its limits, and what it has used of them.

    `limited` is false for a key without limits: then there is nothing to ask before a request. `started`
    counts admitted requests, `rejected` refused ones by reason.
    """

    __slots__ = (
        "_requests",
        "_tokens",
        "completion_tokens",
        "in_flight",
        "last_reason",
        "limited",
        "prompt_tokens",
        "rejected",
        "role",
        "settings",
        "spent",
        "started",
    )

    def __init__(self, settings: KeySettings, now: float) -> None:
        self.in_flight = 0
        self.started = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.rejected: dict[str, int] = {}
        self.last_reason = ""
        """Why a request was refused last; empty when none was."""
        self.spent = Spent(settings.spend_window_s)
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.role = Role.CLIENT
        self.limited = False
        self.configure(settings, now)

    def configure(self, settings: KeySettings, now: float) -> None:
        """Take new limits over; what was used stays used."""
        self.settings = settings
        self.role = Role.ADMIN if settings.role == "admin" else Role.CLIENT
        self._requests = _bucket(self._requests, settings.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, settings.tokens_per_minute, now)
        self.spent.window_s = settings.spend_window_s
        self.limited = (
            self._requests is not None
            or self._tokens is not None
            or settings.max_concurrency is not None
            or settings.spend_limit_usd is not None
        )

    def refusal(self, now: float, unix_s: float) -> Refusal | None:
        """Why a further request is refused now, with `now` on the router's clock; None when it may come in."""
        settings = self.settings
        if settings.max_concurrency is not None and self.in_flight >= settings.max_concurrency:
            message = f"The key {settings.name} already has its limit of {settings.max_concurrency} requests."
            return self._refuse("key_concurrency", message, 1.0, now)
        if settings.spend_limit_usd is not None:
            spent = self.spent.in_window(unix_s)
            if spent >= settings.spend_limit_usd:
                message = (
                    f"The key {settings.name} has spent ${spent:.2f} of its ${settings.spend_limit_usd:.2f} "
                    f"in this window of {settings.spend_window_s:g} s."
                )
                left_s = self.spent.window_ends_in(unix_s)
                hint = "wait for the next window, or ask who runs this router to raise spend_limit_usd"
                return self._refuse("insufficient_quota", message, left_s, now, hint)
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.ready_in(now)):
                message = f"The key {settings.name} may use {bucket.per_minute} {what} a minute."
                return self._refuse(f"{what}_per_minute", message, wait_s, now)
        return None

    def enter(self) -> None:
        """A request of this key comes in: it runs, or waits for a place. Its ticket counts it out again."""
        self.in_flight += 1
        self.started += 1

    def take(self, now: float) -> None:
        """Take one request of what it may send in a minute."""
        if self._requests is not None:
            self._requests.take(now, 1)

    def used(self, prompt: int, completion: int, now: float) -> None:
        """An answer's tokens, known at its end."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        if self._tokens is not None:
            self._tokens.take(now, prompt + completion)

    def lines(self, now: float) -> bytes:
        """The `x-ratelimit-*` headers of an answer to this key, as they are on the wire; often none."""
        lines = b""
        if self._requests is not None:
            lines = self._requests.lines("requests", now)
        if self._tokens is not None:
            lines += self._tokens.lines("tokens", now)
        return lines

    def reject(self, reason: str) -> None:
        """Count a request that was refused."""
        self.last_reason = reason
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def learned(self) -> dict[str, Any]:
        """What survives a restart."""
        return {
            "started": self.started,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "spent": self.spent.learned(),
        }

    def recall(self, data: Mapping[str, Any]) -> None:
        """The inverse of `learned`. Raises KeyError, TypeError or ValueError for what is none of it."""
        self.spent.recall(data["spent"])
        self.started += int(data["started"])
        self.prompt_tokens += int(data["prompt_tokens"])
        self.completion_tokens += int(data["completion_tokens"])

    def __repr__(self) -> str:
        return f"<LiveKey {self.settings.name} in_flight={self.in_flight}>"

    def _refuse(self, code: str, message: str, wait_s: float, now: float, hint: str | None = None) -> Refusal:
        self.reject(code)
        after = b"retry-after: %d\r\n" % max(math.ceil(wait_s), 1)
        kind = "rate_limit_error"
        if code == "insufficient_quota":
            kind = code
            after += b"x-should-retry: false\r\n"  # OpenAI's clients try every other 429 again
        return Refusal(429, error_body(message, kind, code, hint=hint), after + self.lines(now))


class Guard:
    """All keys. `configure` replaces the list and keeps what a key of the same hash has used."""

    def __init__(self) -> None:
        self.open_door = False
        self._by_digest: dict[bytes, LiveKey] = {}
        self._seen: dict[bytes, LiveKey] = {}
        self._kept: dict[str, Mapping[str, Any]] = {}
        self._anyone: LiveKey | None = None
        self.has_admin = False

    def __iter__(self) -> Iterator[LiveKey]:
        yield from self._by_digest.values()
        if self._anyone is not None:
            yield self._anyone

    def configure(self, keys: Iterable[KeySettings], *, open_door: bool, now: float) -> None:
        """Take a new list of keys over. `open_door` is `--no-auth`: whoever has no key may come in too."""
        before, self._by_digest, self._seen = self._by_digest, {}, {}
        for item in keys:
            digest = bytes.fromhex(item.sha256)
            key = before.get(digest)
            if key is None:
                key = LiveKey(item, now)
                self._remember(key)
            else:
                key.configure(item, now)
            self._by_digest[digest] = key
        self.has_admin = any(key.role is Role.ADMIN for key in self._by_digest.values())
        self.open_door = open_door
        if open_door and self._anyone is None:
            self._anyone = LiveKey(KeySettings(ANYONE, ""), now)
            self._remember(self._anyone)

    def find(self, key: bytes | None) -> LiveKey | None:
        """Whose key it is; None for nobody's, unless the door is open."""
        return self.whose(None if key is None else hashlib.sha256(key).digest())

    def whose(self, digest: bytes | None) -> LiveKey | None:
        """The same by the SHA-256 of the key."""
        if digest is not None:
            found = self._seen.get(digest)
            if found is not None:
                return found
            for known, live in self._by_digest.items():
                if hmac.compare_digest(digest, known):  # no early end: every known hash is compared
                    found = live
            if found is not None:
                self._seen[digest] = found
                return found
        return self._anyone if self.open_door else None

    def role(self, key: bytes | None) -> Role:
        """What whoever presents `key` may do. While no admin key is configured, clients are admins."""
        found = self.find(key)
        if found is None:
            return Role.NOBODY
        return found.role if self.has_admin else Role.ADMIN

    def learned(self) -> dict[str, Any]:
        """What survives a restart, by the first half of each hash: names may change hands."""
        return {**self._kept, **{_handle(key): key.learned() for key in self}}

    def recall(self, data: Mapping[str, Any]) -> None:
        """The inverse of `learned`; what belongs to no key of today is kept for tomorrow's."""
        self._kept = {str(handle): value for handle, value in data.items() if isinstance(value, dict)}
        for key in self:
            self._remember(key)

    def _remember(self, key: LiveKey) -> None:
        data = self._kept.pop(_handle(key), None)
        if data is not None:
            key.recall(data)


def _handle(key: LiveKey) -> str:
    return key.settings.sha256[:16] or ANYONE


def _bucket(old: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    if old is None:
        return Bucket(per_minute, now)
    if old.per_minute != per_minute:
        old.resize(per_minute, now)
    return old
