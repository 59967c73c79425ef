"""What the parts of one running router share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tuna_router import state
from tuna_router.admission import Admission
from tuna_router.counts import Counts
from tuna_router.dataplane.upstream import Upstream
from tuna_router.dataplane.wheel import Wheel
from tuna_router.fleet import Fleet
from tuna_router.keys import Guard
from tuna_router.ledger import Ledger
from tuna_router.meter import Meter
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
        self.meter = Meter(clock, wall)
        self.counts = Counts()
        self.guard = Guard()
        self.ledger = Ledger()
        self.admission = Admission(settings.max_concurrency, settings.max_queue)
        self.fleet = Fleet(self.meter)
        self.upstream = Upstream()
        self.wheel = Wheel()
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
        now = self.meter.clock()
        self.guard.configure(settings.all_keys, open_door=self.open_door, now=now)
        self.ledger.configure(settings.backends, now)
        self.fleet.configure(settings)
        self.admission.resize(settings.max_concurrency, settings.max_queue)
