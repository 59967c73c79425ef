"""The life of one spot backend: COLD -> WARMING -> READY -> DRAINING, as a pure state machine.

    COLD      nobody there, and nobody asked. Nothing is sent to it: a request would wake the fleet.
    WARMING   wanted or seen, not proved. Probed; the probes also keep its traffic above zero.
    READY     it generated a token. Takes requests.
    DRAINING  its last replicas are going. Takes nothing new; with a deadline where one was announced.

The machine does no I/O and never sleeps: the clock comes in, `apply` is the only way in which the
state changes, and `probe_due`, `next_at` and `move_at` tell the watcher what to do next, and when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class SpotState(StrEnum):
    """See the module."""

    COLD = "COLD"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"


@dataclass(frozen=True, slots=True)
class Traffic:
    """A client request arrived (whichever backend answers it): the spot fleet is wanted."""


@dataclass(frozen=True, slots=True)
class Started:
    """The router started, or learned of this backend: look once whether it is there."""


@dataclass(frozen=True, slots=True)
class ReplicasSeen:
    """Somebody who knows (the fleet's controller) counted its replicas."""

    ready: int
    starting: int = 0
    draining: int = 0


@dataclass(frozen=True, slots=True)
class NoneLeft:
    """Its replicas were known one by one, and none is left."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A replica will be taken away in `seconds`.

    `replica` tells notices of several apart; `last` says whether it is the last one: None where whoever
    sends it does not know, then the replica count decides, and without one it is taken for the last.
    """

    seconds: float
    replica: str = ""
    last: bool | None = None


@dataclass(frozen=True, slots=True)
class ProbePassed:
    """A one-token generation came back. `epoch` is the machine's when the probe began."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A probe did not get its token. `epoch` is the machine's when the probe began."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class RequestServed:
    """A client request was answered: as good as a probe."""


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A client request failed here. `gone`: nobody was there (refused, reset, 502-504).

    `epoch` is the machine's when the request began: the late end of an old connection says nothing
    about the replica that has come since.
    """

    epoch: int
    reason: str
    gone: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = (
    Traffic
    | Started
    | ReplicasSeen
    | NoneLeft
    | Notice
    | ProbePassed
    | ProbeFailed
    | RequestServed
    | RequestFailed
    | Tick
)


@dataclass(frozen=True, slots=True)
class Timing:
    """The machine's intervals in seconds; see `Settings` for the fields of the same names."""

    probe_interval_s: float = 2.0
    idle_after_s: float = 60.0
    drain_limit_s: float = 300.0
    keep_warm: bool = False
    move_margin_s: float = 5.0

    @property
    def slow_probe_s(self) -> float:
        """Between probes of a WARMING backend that no client waits for."""
        return max(self.probe_interval_s, self.idle_after_s / 2)

    @property
    def recheck_s(self) -> float:
        """How long a READY backend with traffic may serve nothing before it is looked at again."""
        return 5 * self.probe_interval_s


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state."""

    source: SpotState
    target: SpotState
    reason: str


class SpotMachine:
    """The state of one spot backend. `on_change` is called after each change, inside `apply`."""

    def __init__(
        self,
        clock: Callable[[], float],
        timing: Timing | None = None,
        on_change: Callable[[Transition], None] | None = None,
    ) -> None:
        self.timing = timing or Timing()
        self.state = SpotState.COLD
        self.since = clock()
        self.reason = "not looked at yet"
        self.replicas: ReplicasSeen | None = None
        self.epoch = 0
        """Counts the entries into WARMING; results that began in an earlier epoch are void."""
        self.next_probe_at: float | None = None
        self.drain_deadline: float | None = None
        """While DRAINING after a notice: when the machine is gone."""
        self.move_at: float | None = None
        """When what still runs there must move, until it has been told to."""
        self._leaving: dict[str, float] = {}
        self._clock = clock
        self._on_change = on_change
        self._last_traffic: float | None = None
        self._last_served = self.since
        self._replicas_at = self.since
        self._ready_s = 0.0
        self._suspect = False

    def __repr__(self) -> str:
        return f"<SpotMachine {self.state} since {self._clock() - self.since:.1f} s: {self.reason}>"

    @property
    def wanted(self) -> bool:
        """True while clients came lately, or the fleet is to be kept warm."""
        if self.timing.keep_warm:
            return True
        return self._last_traffic is not None and self._clock() - self._last_traffic < self.timing.idle_after_s

    @property
    def ready_seconds(self) -> float:
        """Total time in READY."""
        return self._ready_s + (self._clock() - self.since if self.state is SpotState.READY else 0.0)

    @property
    def was_ready(self) -> bool:
        """Whether it is READY, or ever was."""
        return self.state is SpotState.READY or self._ready_s > 0.0

    def probe_due(self) -> bool:
        """True when a probe should begin now."""
        return self.next_probe_at is not None and self._clock() >= self.next_probe_at

    def begin_move(self) -> bool:
        """True once for each drain with a deadline, shortly before it: what still runs there must move now."""
        if self.move_at is None or self._clock() < self.move_at:
            return False
        self.move_at = None
        return True

    @property
    def next_at(self) -> float | None:
        """When a probe is due, or a drain ends; None: only an event can change anything."""
        if self.state is not SpotState.DRAINING:
            return self.next_probe_at
        if self.drain_deadline is not None:
            return self.drain_deadline
        return self._replicas_at + self.timing.drain_limit_s

    def begin_probe(self) -> int:
        """A probe begins; its result is reported with the epoch that this returns."""
        self.next_probe_at = None
        self._suspect = False
        return self.epoch

    def apply(self, event: Event) -> Transition | None:
        """Take one event in; the only way in which the state changes. Returns the change, if any."""
        match event:
            case Traffic():
                self._last_traffic = self._clock()
                if self.state is SpotState.COLD:
                    return self._enter(SpotState.WARMING, "traffic")
                if self.state is SpotState.WARMING:
                    self._bring_forward(self.timing.probe_interval_s)
                elif self.state is SpotState.READY and self.next_probe_at is None:
                    self.next_probe_at = self._clock() + self.timing.recheck_s
            case RequestServed():
                self.served(self._clock())
            case Started():
                if self.state is SpotState.COLD:
                    return self._enter(SpotState.WARMING, "looking whether it is there")
            case ReplicasSeen():
                return self._replicas_seen(event)
            case NoneLeft():
                return self._nobody()
            case Notice():
                return self._noticed(event)
            case ProbePassed(epoch):
                if epoch == self.epoch and self.state in (SpotState.WARMING, SpotState.READY):
                    self._last_served = self._clock()
                    if self.state is SpotState.WARMING:
                        return self._enter(SpotState.READY, "a probe generated a token")
                    self._plan_recheck()
            case ProbeFailed(epoch, reason):
                return self._probe_failed(epoch, reason)
            case RequestFailed(epoch, reason, gone):
                if self.state is SpotState.READY and epoch == self.epoch:
                    if gone and not self._has_others:
                        return self._enter(SpotState.WARMING, f"a request failed: {reason}")
                    self._suspect = True
                    self.next_probe_at = self._clock()
            case Tick():
                return self._tick()
        return None

    def served(self, now: float) -> None:
        """A client request was answered: as good as a probe."""
        self._last_served = now

    def _replicas_seen(self, seen: ReplicasSeen) -> Transition | None:
        before, self.replicas = self.replicas, seen
        self._replicas_at = self._clock()
        if seen.ready > 0:
            if seen.ready <= self._announced():
                return None  # its controller has not heard of the notice, or not acted on it yet
            if self.state in (SpotState.COLD, SpotState.DRAINING):
                return self._enter(SpotState.WARMING, f"{seen.ready} ready")
            if self.state is SpotState.WARMING and (before is None or before.ready < seen.ready):
                self.next_probe_at = self._clock()
            return None
        if seen.draining > 0:
            # Also while a replacement starts: until the old ones are gone, what still runs on them matters.
            if self.state is SpotState.DRAINING:
                return None
            return self._enter(SpotState.DRAINING, f"{seen.draining} draining, none ready")
        if seen.starting > 0:
            if self.state is SpotState.WARMING:
                return None
            return self._enter(SpotState.WARMING, f"{seen.starting} starting")
        return self._nobody()

    def _nobody(self) -> Transition | None:
        if self.state is SpotState.COLD or (self.state is SpotState.WARMING and self.wanted):
            return None  # woken, and its controller has not begun yet
        return self._enter(SpotState.COLD, "no replicas")

    def _noticed(self, notice: Notice) -> Transition | None:
        if self.state is SpotState.COLD:
            return None  # nobody is there as far as anybody knows
        now = self._clock()
        self._announced()
        self._leaving[notice.replica] = now + max(notice.seconds, 0.0)
        last = notice.last
        if last is None:
            last = self.replicas is None or self.replicas.ready <= len(self._leaving)
        if not last:
            return None
        transition = None
        if self.state is not SpotState.DRAINING:
            transition = self._enter(SpotState.DRAINING, f"its last replica goes in {notice.seconds:g} s")
        # Which request runs on which replica is not known here: all move before the first one goes.
        self.drain_deadline = max(self._leaving.values())
        self.move_at = max(min(self._leaving.values()) - self.timing.move_margin_s, now)
        return transition

    def _announced(self) -> int:
        """How many replicas were announced to go and are not gone yet."""
        if self._leaving:
            now = self._clock()
            self._leaving = {replica: at for replica, at in self._leaving.items() if at > now}
        return len(self._leaving)

    def _probe_failed(self, epoch: int, reason: str) -> Transition | None:
        if epoch != self.epoch:
            return None
        if self.state is SpotState.READY:
            return self._enter(SpotState.WARMING, f"a probe failed: {reason}")
        if self.state is SpotState.WARMING:
            if not self.wanted and not self._alive:
                return self._enter(SpotState.COLD, f"not there: {reason}")
            self.reason = f"not ready: {reason}"
            if self.next_probe_at is None:  # else something happened while this probe ran
                self.next_probe_at = self._clock() + self._interval
        return None

    def _tick(self) -> Transition | None:
        now = self._clock()
        if self.state is SpotState.DRAINING:
            if self.drain_deadline is not None:
                if now >= self.drain_deadline:
                    return self._enter(SpotState.COLD, "its notice ran out")
            elif now - self._replicas_at >= self.timing.drain_limit_s:
                return self._enter(SpotState.COLD, "no news of its draining")
        served_lately = now - self._last_served < self.timing.recheck_s
        if self.state is SpotState.READY and self.probe_due() and served_lately and not self._suspect:
            self._plan_recheck()
        return None

    @property
    def _alive(self) -> bool:
        return self.replicas is not None and self.replicas.ready + self.replicas.starting > 0

    @property
    def _has_others(self) -> bool:
        """True when a replica that is gone was one of several: the rest is checked before it is doubted."""
        return self.replicas is not None and self.replicas.ready > 1

    @property
    def _interval(self) -> float:
        return self.timing.probe_interval_s if self.wanted else self.timing.slow_probe_s

    def _bring_forward(self, delay: float) -> None:
        at = self._clock() + delay
        if self.next_probe_at is not None and self.next_probe_at > at:
            self.next_probe_at = at

    def _plan_recheck(self) -> None:
        # Without traffic a READY backend is left alone: looking at it would keep the fleet awake.
        self.next_probe_at = self._clock() + self.timing.recheck_s if self.wanted else None

    def _enter(self, target: SpotState, reason: str) -> Transition:
        """Called by `apply` for every change: keeps the books of the old state, arms the new one."""
        now = self._clock()
        source = self.state
        self._ready_s = self.ready_seconds
        self.state, self.since, self.reason = target, now, reason
        self.next_probe_at = self.drain_deadline = self.move_at = None
        self._suspect = False
        if target is SpotState.COLD:
            self._leaving.clear()
        if target is SpotState.WARMING:
            self.epoch += 1
            self.next_probe_at = now
        elif target is SpotState.READY:
            self._plan_recheck()
        transition = Transition(source, target, reason)
        if self._on_change is not None:
            self._on_change(transition)
        return transition
