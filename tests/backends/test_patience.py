"""What is asked again, how often, and what is not; and that who cancels a create finds what it made."""

from __future__ import annotations

import asyncio
import time

import pytest

from tuna_nb.backends.lifecycle import create_once
from tuna_nb.backends.patience import MOST_TRIES, Setback, patiently, retry_after_s
from tuna_nb.errors import BackendError, ConflictError, UnclearError

ERROR = BackendError("acme: it said no")


class Call:
    """Fails as told, then gives its number."""

    def __init__(self, *setbacks: Setback) -> None:
        self.setbacks = list(setbacks)
        self.times = 0

    async def __call__(self) -> int:
        self.times += 1
        if self.setbacks:
            raise self.setbacks.pop(0)
        return self.times


def status(code: int, wait_s: float | None = None) -> Setback:
    return Setback.of_status(ERROR, code, wait_s)


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_asked_again(code: int) -> None:
    assert await patiently(Call(status(code), status(code)), creates=False, pace=0) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422])
async def test_what_will_not_pass_is_said_at_once(code: int) -> None:
    call = Call(status(code))
    with pytest.raises(BackendError, match="it said no"):
        await patiently(call, creates=False, pace=0)
    assert call.times == 1


async def test_patience_ends() -> None:
    call = Call(*[status(500)] * 100)
    with pytest.raises(BackendError, match="it said no"):
        await patiently(call, creates=False, pace=0)
    assert call.times == MOST_TRIES
    call = Call(*[status(429, wait_s=3600)] * 100)
    began = time.monotonic()
    with pytest.raises(BackendError):
        await patiently(call, creates=False, pace=0)
    assert call.times == 1
    assert time.monotonic() - began < 5, "an hour is for the user to wait"


@pytest.mark.parametrize("code", [408, 500, 502, 504])
async def test_a_create_that_may_have_worked_is_not_repeated(code: int) -> None:
    call = Call(status(code))
    with pytest.raises(UnclearError, match="it said no"):
        await patiently(call, creates=True, pace=0)
    assert call.times == 1


@pytest.mark.parametrize("code", [429, 503])
async def test_a_create_that_certainly_did_not_work_is_repeated(code: int) -> None:
    assert await patiently(Call(status(code)), creates=True, pace=0) == 2


async def test_a_create_that_is_cancelled_is_awaited_to_its_end() -> None:
    begun, done = asyncio.Event(), asyncio.Event()
    made: list[str] = []

    async def create() -> str:
        begun.set()
        await done.wait()
        made.append("it")
        return "it"

    task = asyncio.create_task(patiently(create, creates=True, pace=0))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    done.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made == ["it"], "who cancelled it looks for it only now"


@pytest.mark.parametrize("error", [UnclearError("unclear"), ConflictError("taken")])
async def test_after_an_unclear_create_the_thing_is_looked_for_before_anything_is_said(error: Exception) -> None:
    looks = iter([None, None, None, "there"])

    async def find() -> str | None:
        return next(looks)

    async def create() -> str:
        raise error

    assert await create_once(find, create, pace=0) == "there"


async def test_a_create_that_left_nothing_is_raised_as_it_was() -> None:
    async def find() -> str | None:
        return None

    async def create() -> str:
        raise UnclearError("nobody knows")

    with pytest.raises(UnclearError, match="nobody knows"):
        await create_once(find, create, pace=0)


def test_a_wait_is_told_in_seconds_or_as_a_date() -> None:
    assert retry_after_s("7", 0) == 7
    assert retry_after_s("-1", 0) == 0
    assert retry_after_s("Sat, 21 Nov 2026 12:00:10 GMT", 1795262400) == 10
    assert retry_after_s("Sat, 21 Nov 2026 12:00:10 GMT", 1795262500) == 0
    assert retry_after_s(None, 0) is None
    assert retry_after_s("soon", 0) is None
