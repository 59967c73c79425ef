"""What goes wrong at a provider, on order: wrong answers, lost answers, no answers, to the calls that a test names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """status: answered instead. acts: the call is carried out first. hangs: no answer, until the faults are cleared
    and the connection is lost. drops: the connection is closed in the middle of the answer."""

    status: int = 500
    acts: bool = False
    hangs: bool = False
    drops: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "ordered by the test"

    @property
    def body(self) -> bytes:
        return json.dumps(
            {"message": self.message, "error": {"code": self.status, "message": self.message}}
        ).encode()


class Faults:
    """A call is named by its method and path (`POST /v2/serverless`), or by its RPC (`AppCreate`)."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._orders: list[list[object]] = []
        self._cleared = 0

    async def hang(self) -> None:
        """Until the faults are cleared."""
        then = self._cleared
        while self._cleared == then:
            await asyncio.sleep(0.01)

    def order(self, fault: Fault, call: str = "", times: int = 1) -> None:
        """For the next `times` calls whose name begins with `call`."""
        self._orders.append([fault, call, times])

    def after(self, number: int, fault: Fault) -> None:
        """For every call from the `number`th one on, counted from now."""
        self._orders.append([fault, len(self.calls) + number, 10**9])

    def clear(self) -> None:
        self._orders.clear()
        self._cleared += 1

    def take(self, call: str) -> Fault | None:
        """What is to go wrong with this call."""
        self.calls.append(call)
        for order in self._orders:
            fault, which, times = order
            assert isinstance(times, int)
            assert isinstance(fault, Fault)
            due = len(self.calls) >= which if isinstance(which, int) else call.startswith(str(which))
            if due and times > 0:
                order[2] = times - 1
                return fault
        return None
