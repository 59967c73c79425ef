"""Faults on order: each way in which an engine is known to fail, to be ordered for the next requests.

A fault applies to requests that arrive after it was ordered, `times` of them (None: all, until cleared). They
come from the command line (`--fault reset:after_tokens=5,times=1`) or, where allowed, from `POST /-/faults`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


class FaultKind(enum.StrEnum):
    """What goes wrong. The first group ends an answer that has begun, the second one refuses it."""

    ERROR_EVENT = "error_event"
    """An error event, [DONE] and a clean end, under status 200 (a plain 500 where nothing streams)."""
    END_WITHOUT_DONE = "end_without_done"
    """The stream ends cleanly, without finish_reason and without [DONE]."""
    CUT = "cut"
    """The connection closes in the middle of the answer, without the last chunk of HTTP."""
    RESET = "reset"
    """The connection is reset (TCP RST)."""
    STALL = "stall"
    """No more bytes; with after_tokens=0 the headers come and nothing else."""
    ENGINE_DEATH = "engine_death"
    """The engine dies under all requests at once, as after SIGTERM; the port closes and the process ends."""
    DIE = "die"
    """The process ends at once, as after SIGKILL."""

    BROKEN = "broken"
    """500 for every request, while /health says 200."""
    DRAINING = "draining"
    """500 "cannot schedule new futures after shutdown", while /health says 200."""
    REFUSE = "refuse"
    """Status `status` with Retry-After: not vLLM, but other engines and gateways."""
    UNHEALTHY = "unhealthy"
    """/health says 503; requests are answered."""


AT_ARRIVAL = frozenset({FaultKind.BROKEN, FaultKind.DRAINING, FaultKind.REFUSE})
"""Faults that take effect before any answer begins."""


@dataclass(slots=True)
class Fault:
    """One order. after_tokens: tokens of the request that still go out. retry_after_s: header's seconds."""

    kind: FaultKind
    after_tokens: int = 0
    times: int | None = None
    status: int = 429
    retry_after_s: int = 1

    def as_json(self) -> dict[str, Any]:
        """The order as `POST /-/faults` takes it."""
        return asdict(self)


def parse_fault(order: Mapping[str, Any]) -> Fault:
    """A fault from its JSON form; raises ValueError naming what is wrong."""
    fields = dict(order)
    name = fields.pop("kind", None)
    try:
        kind = FaultKind(name)
    except ValueError:
        raise ValueError(f"unknown fault {name!r}; known: {', '.join(FaultKind)}") from None
    unknown = set(fields) - {"after_tokens", "times", "status", "retry_after_s"}
    if unknown:
        raise ValueError(f"unknown setting {sorted(unknown)[0]!r} of fault {kind}")
    for key, value in fields.items():
        if key == "times" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{key} of fault {kind} must be a whole number, not {value!r}")
    return Fault(kind, **fields)


def parse_fault_flag(text: str) -> Fault:
    """A fault from its flag form, `KIND` or `KIND:after_tokens=5,times=1`."""
    name, _, rest = text.partition(":")
    order: dict[str, Any] = {"kind": name}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        order[key] = int(value) if value.isdecimal() else value
    return parse_fault(order)


class FaultBook:
    """The orders in force, oldest first."""

    def __init__(self, orders: tuple[Fault, ...] = ()) -> None:
        self.orders = list(orders)

    def claim(self) -> Fault | None:
        """The fault for a request that arrives now; counts it against `times`."""
        for fault in self.orders:
            if fault.kind is FaultKind.UNHEALTHY:
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.orders.remove(fault)
            return fault
        return None

    def unhealthy(self) -> bool:
        """Whether /health is ordered to fail."""
        return any(fault.kind is FaultKind.UNHEALTHY for fault in self.orders)
