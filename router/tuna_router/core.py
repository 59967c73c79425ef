"""What the parts of one running router share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tuna_router import state
from tuna_router.admission import Admission
from tuna_router.auth import Guard
from tuna_router.dataplane.upstream import Upstream
from tuna_router.dataplane.wheel import Wheel
from tuna_router.dataplane.wish import Wishes
from tuna_router.fleet import Fleet
from tuna_router.meter import Meter
from tuna_router.retry import RetryBudget
from tuna_router.settings import Settings


class Core:
    """Settings, counters, keys, backends and upstream connections of one router.

    `open_door` is `--no-auth`. Accepted changes are written to `save_to` where it
    is given, without the key hashes of `not_saved`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_door: bool = False,
        save_to: Path | None = None,
        not_saved: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.open_door = open_door
        self.clock = clock
        self.meter = Meter(clock, wall)
        self.admission = Admission(settings.max_concurrency)
        self.fleet = Fleet(self.meter)
        self.retries = RetryBudget(settings.retry_ratio, settings.retry_burst)
        self.upstream = Upstream()
        self.wheel = Wheel(clock=clock)
        self._save_to = save_to
        self._not_saved = frozenset(not_saved)
        self._take(settings)

    def configure(self, settings: Settings) -> None:
        """Change the configuration: first the file, so that nothing runs that a restart would forget.

        Raises SettingsError when the file can't be written; then nothing has changed.
        """
        if self._save_to is not None:
            kept = tuple(key for key in settings.api_key_sha256 if key not in self._not_saved)
            state.save(self._save_to, dataclasses.replace(settings, api_key_sha256=kept))
        self._take(settings)

    def _take(self, settings: Settings) -> None:
        self.settings = settings
        self.guard = Guard(settings.api_key_sha256, settings.admin_key_sha256, open_door=self.open_door)
        self.admission.limit = settings.max_concurrency
        self.retries.ratio, self.retries.burst = settings.retry_ratio, settings.retry_burst
        self.wishes = Wishes(settings)
        self.fleet.configure(settings)
