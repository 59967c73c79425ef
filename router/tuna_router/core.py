"""What the parts of one running router share."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from tuna_router import state
from tuna_router.admission import Admission
from tuna_router.books.budget import Budget
from tuna_router.books.counts import Counts
from tuna_router.books.ledger import Ledger, is_billed
from tuna_router.books.meter import Meter, StateChange, Tokens
from tuna_router.books.totals import Totals
from tuna_router.dataplane.bodies import Bodies
from tuna_router.dataplane.stream import Stream
from tuna_router.dataplane.upstream import Upstream
from tuna_router.dataplane.wheel import Wheel
from tuna_router.dataplane.wish import Wishes
from tuna_router.fleet.breaker import Circuit
from tuna_router.fleet.live import Fleet, LiveBackend
from tuna_router.fleet.replicas import Replica
from tuna_router.fleet.urls import is_metadata_service
from tuna_router.keys.live import Guard
from tuna_router.load_file import LoadFile
from tuna_router.retry import RetryBudget
from tuna_router.settings import Kind, ServerlessUse, Settings
from tuna_router.spot import SpotState
from tuna_router.told.access_log import AccessLog
from tuna_router.told.events import Changes, Events
from tuna_router.told.snapshot import Snapshots

_log = logging.getLogger("tuna_router")
_KEPT_CHANGES = 200
STOPPED: Final = ("serverless_stopped", "budget_exhausted")
"""Codes of requests that found no spot while serverless takes nothing new: as configured, or for a budget."""


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
        self.totals = Totals(self.meter)
        self.counts = Counts()
        self.guard = Guard()
        self.ledger = Ledger(clock, wall)
        self.admission = Admission(settings.max_concurrency, settings.max_queue)
        self.meter.changes = Changes(self._state_changed, maxlen=_KEPT_CHANGES)
        self.fleet = Fleet(self.meter, self.ledger)
        self.fleet.on_circuit = self._circuit_changed
        self.retries = RetryBudget(settings.retry_ratio, settings.retry_burst)
        self.upstream = Upstream()
        self.bodies = Bodies(settings.body_memory_bytes)
        self.wheel = Wheel(clock=clock)
        self.events = Events(clock, wall, self.wheel.timer, Snapshots(self).take)
        self.access_log: AccessLog | None = None
        self.on_gone: Callable[[LiveBackend], None] | None = None
        """Told of a replica that has not been there for long."""
        self.on_replicas: Callable[[str, Sequence[Replica]], None] | None = None
        """Told of all replicas of a balancer."""
        self.load_file: LoadFile | None = None
        """Where the load is kept; without it, it is in memory only."""
        self.streams: set[Stream] = set()
        """Those that run and keep what they said, to be continued."""
        self.budget = Budget(self.ledger, wall, self._limit_serverless)
        self.save_state: Callable[[], Awaitable[None]] | None = None
        """Writes the state file, where there is one."""
        self._save_to = save_to
        self._not_saved = frozenset(not_saved)
        self._take(settings)

    def configure(self, settings: Settings, *, save: bool = True) -> None:
        """Change the configuration: first the file, so that nothing runs that a restart would forget.

        `save` is False for what was just read from it. Raises SettingsError when the file can't be
        written; then nothing has changed.
        """
        if save and self._save_to is not None:
            kept = tuple(key for key in settings.api_key_sha256 if key not in self._not_saved)
            state.save(self._save_to, dataclasses.replace(settings, api_key_sha256=kept))
        before = {item.name: item.url for item in self.settings.backends}
        self._take(settings)
        after = {item.name: item.url for item in settings.backends}
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                what = "removed" if name not in after else "added" if name not in before else "changed"
                self.events.publish("backend", {"backend": name, "change": what})

    def leave_file(self) -> None:
        """Write no configuration and no state any more: the files are another router's from now on."""
        self._save_to = None
        self.save_state = None

    @property
    def serverless_use(self) -> ServerlessUse:
        """As it is in effect: as configured, or what the budget demands where that is stricter."""
        return max(self.settings.serverless_use, self.budget.in_effect, key=list(ServerlessUse).index)

    def ended(self, stream: Stream | None, tokens: Tokens) -> None:
        """A request ended, whose answer was this stream, if it could be continued."""
        if stream is None:
            self.counts.tokens += tokens.completion + tokens.estimated
        else:
            self.counts.tokens += stream.progress
            self.streams.discard(stream)

    def refused_for(self, reason: str) -> tuple[str, str]:
        """The message and code for a request that finds no spot while serverless takes nothing new."""
        limit = self.budget.limit
        if self.budget.in_effect is not ServerlessUse.NEVER or limit is None:
            return f"Serverless takes no new requests here (serverless_use is never), and {reason}.", STOPPED[0]
        note = f": {limit.note}" if limit.note else ""
        spent = f"its budget of ${limit.left_usd:.2f} is used up{note}"
        return f"Serverless takes no new requests ({spent}), and {reason}.", STOPPED[1]

    def _limit_serverless(self) -> None:
        self.fleet.use_serverless(self.serverless_use)

    def _state_changed(self, change: StateChange) -> None:
        """A spot backend changed its state."""
        balances = bool(self.fleet.replicas_of(change.backend))
        billed = is_billed(Kind.SPOT, change.target) and not balances
        self.ledger.billed(change.backend, billed, self.meter.clock())
        self.events.publish("state", change.to_json())
        if balances:
            return  # its replicas are counted, and nothing twice
        if change.source == SpotState.READY and change.target != SpotState.COLD:
            # COLD is a fleet that went to sleep; anything else was taken away, with or without notice.
            self.counts.preemptions.add((change.backend,))
            self.events.publish("preemption", {"backend": change.backend, "reason": change.reason})

    def _circuit_changed(self, backend: LiveBackend, circuit: Circuit) -> None:
        """The circuit of a backend opened or closed."""
        told = {"backend": backend.name, "circuit": circuit.value, "reason": backend.last_error}
        self.events.publish("breaker", told)

    def _take(self, settings: Settings) -> None:
        self.settings = settings
        for item in settings.backends:
            if is_metadata_service(item.url):
                _log.warning("backend %s is a metadata service: it has this machine's credentials", item.name)
        now = self.meter.clock()
        self.guard.configure(settings.all_keys, open_door=self.open_door, now=now)
        self.ledger.configure(settings.backends, now)
        self.retries.ratio, self.retries.burst = settings.retry_ratio, settings.retry_burst
        self.bodies.limit = settings.body_memory_bytes
        self.upstream.silent_s = settings.connect_timeout_s
        self.wishes = Wishes(settings)
        self.fleet.configure(settings)
        self._limit_serverless()
        for spot in self.fleet.spots:
            billed = is_billed(Kind.SPOT, spot.state_name) and not self.fleet.replicas_of(spot.name)
            self.ledger.billed(spot.name, billed, now)
        self.admission.resize(settings.max_concurrency, settings.max_queue)
