"""Deadlines."""

from __future__ import annotations

import asyncio

from tuna_router.dataplane.wheel import Wheel


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_timer_fires_once_at_its_deadline_and_never_before() -> None:
    clock, fired = Clock(), list[float]()
    wheel = Wheel(clock=clock)
    timer = wheel.timer(lambda: fired.append(clock.now))
    timer.set(1.0)
    for _ in range(60):
        clock.now += 0.03
        wheel.turn()
    assert len(fired) == 1
    assert 101.0 <= fired[0] < 101.0 + 2 * wheel.tick_s
    timer.set(0.5)
    clock.now += 1
    wheel.turn()
    assert len(fired) == 2
    wheel.stop()


async def test_a_timer_that_is_moved_or_cleared_keeps_to_its_last_word() -> None:
    clock, fired = Clock(), list[str]()
    wheel = Wheel(clock=clock)
    late, early, never = (wheel.timer(lambda name=name: fired.append(name)) for name in ("late", "early", "never"))
    late.set(1)
    late.set(10)
    early.set(10)
    early.set(1)
    never.set(1)
    never.clear()
    clock.now += 2
    wheel.turn()
    assert fired == ["early"]
    clock.now += 9
    wheel.turn()
    assert fired == ["early", "late"]
    assert "0 timers" in repr(wheel)
    wheel.stop()


async def test_the_loop_turns_it() -> None:
    fired = asyncio.Event()
    wheel = Wheel()
    wheel.timer(fired.set).set(0.01)
    async with asyncio.timeout(1):
        await fired.wait()
    wheel.stop()
