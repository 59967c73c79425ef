"""What a router has learned, beside its configuration: totals, spending, what is known of each backend.

One file, mode 0600, replaced atomically, without a secret in it (keys by half of their hash). A file that
can't be used is put aside, never overwritten, and the router starts afresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from tuna_router.core import Core
from tuna_router.errors import SettingsError
from tuna_router.state import write_private

_log = logging.getLogger("tuna_router.state_file")
VERSION: Final = 1
_KIND: Final = "tuna-router state"
_MOST_BYTES: Final = 64 * 1024 * 1024


@runtime_checkable
class Learner(Protocol):
    """A part of a router that knows something worth keeping."""

    def learned(self) -> Mapping[str, Any]:
        """What it knows, as JSON."""

    def recall(self, data: Mapping[str, Any]) -> None:
        """Take it back. Raises KeyError, TypeError, AttributeError or ValueError for what is none of it."""


class Backends:
    """What each backend of a router has taught, as long as its address is the same."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def learned(self) -> dict[str, Any]:
        """See Learner."""
        return {
            backend.name: {"url": backend.settings.url, **backend.learned.to_json()} for backend in self._core.fleet
        }

    def recall(self, data: Mapping[str, Any]) -> None:
        """See Learner."""
        for backend in self._core.fleet:
            known = data.get(backend.name)
            if known is not None and known["url"] == backend.settings.url:
                backend.learned.recall(known)


class StateFile:
    """The file at `path`. `save` writes only what has changed."""

    def __init__(self, path: Path, parts: Mapping[str, Learner], wall: Callable[[], float] = time.time) -> None:
        self.path = path
        self._parts = dict(parts)
        self._wall = wall
        self._saved = ""
        self._saving = asyncio.Lock()

    def load(self) -> None:
        """Give every part what the file has of it. Never raises: what can't be used is put aside."""
        try:
            with self.path.open("rb") as file:
                raw = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("can't read %s: %s; starting with nothing learned", self.path, error.strerror)
            return
        try:
            parts = _parts_of(raw)
        except (ValueError, RecursionError) as error:
            self._put_aside(str(error))
            return
        failed = []
        for name, part in self._parts.items():
            if name not in parts:
                continue
            try:
                part.recall(parts[name])
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
                failed.append(f"{name} ({error!r})")
        if failed:
            self._put_aside(f"it has no good {', '.join(failed)}")

    def text(self) -> str | None:
        """What is to be written now; None when nothing has changed."""
        text = json.dumps({name: part.learned() for name, part in self._parts.items()}, indent=1)
        if text == self._saved:
            return None
        self._saved = text
        return f'{{"kind": "{_KIND}", "version": {VERSION}, "saved_at": {self._wall():.3f}, "parts": {text}}}\n'

    def save(self) -> None:
        """Write it, when something changed. A failure is logged: a full disk must not end a router."""
        text = self.text()
        if text is not None:
            self.write(text)

    def write(self, text: str) -> None:
        """Write this; may be called in a thread."""
        try:
            write_private(self.path, text)
        except SettingsError as error:
            self._saved = ""
            _log.warning("%s; what was learned will be lost", error.message)

    async def keep(self, interval_s: Callable[[], float]) -> None:
        """Save every `interval_s()` seconds, until cancelled. The disk is waited for in a thread."""
        while True:
            await asyncio.sleep(interval_s())
            await self.save_now()

    async def save_now(self) -> None:
        """As `save`, the disk waited for in a thread."""
        async with self._saving:
            text = self.text()
            if text is not None:
                await asyncio.to_thread(self.write, text)

    def _put_aside(self, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.unusable-{int(self._wall())}")
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)
        _log.warning("can't use %s: %s; it is kept as %s", self.path, why, aside.name)


def state_file(core: Core, path: Path) -> StateFile:
    """The state file of one router."""
    parts: dict[str, Learner] = {"totals": core.totals, "keys": core.guard, "dollars": core.ledger}
    return StateFile(path, {**parts, "backends": Backends(core), "budget": core.budget})


def _parts_of(raw: bytes) -> Mapping[str, Any]:
    if len(raw) > _MOST_BYTES:
        raise ValueError("it is too large")
    data = json.loads(raw)
    if not isinstance(data, dict) or data.get("kind") != _KIND:
        raise ValueError("it is no state of a tuna-router")
    if data.get("version") != VERSION:
        raise ValueError(f"its version is {data.get('version')!r}, and this router knows {VERSION}")
    parts = data.get("parts")
    if not isinstance(parts, dict):
        raise ValueError("it has no parts")
    return parts
