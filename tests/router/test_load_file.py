"""The load survives the router: no minute is lost or counted twice, and the time in which none ran is a gap."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tuna_router.books.load import Minute
from tuna_router.load_file import LoadFile, Told, load_folder

from .backends import Seen, Wire
from .books.test_load import BEGIN, Clocks
from .conftest import KEY, StartBackend, StartRouter
from .test_process import Process, started
from .test_supervise import Kept, kept, until


class Life:
    """One life of a router, with its folder."""

    def __init__(self, folder: Path, begin: float = BEGIN, **bounds: int) -> None:
        self.clocks = Clocks(begin)
        self.file = LoadFile(folder, self.clocks.load, **bounds)
        self.file.open()

    def serve(self, seconds: float = 0.0, tokens: int = 1) -> None:
        request = self.clocks.request()
        self.clocks.passes(seconds)
        self.clocks.ends(request, 0, tokens)

    def write(self) -> bool:
        mine = self.clocks.load.told()
        done = self.file.write(mine)
        if done:
            self.clocks.load.written(mine.minutes)
        return done

    def killed(self) -> None:
        """As the kernel does it: the lock goes, the files stay."""
        os.close(self.file._alive)
        self.file._alive = -1

    def read(self, since: float = 0, limit: int = 10_000) -> Told:
        return self.file.read(self.clocks.load.told(), self.clocks.unix_s, since, limit)


def figures(told: Told) -> list[tuple[int, int, int]]:
    """Minutes from the first on: requests, tokens."""
    return [
        (
            (minute.at - int(BEGIN)) // 60,
            sum(used.requests for used in minute.backends.values()),
            sum(used.completion_tokens for used in minute.backends.values()),
        )
        for minute, _ in told.minutes
    ]


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    life = Life(tmp_path / "a.load")
    life.serve()
    life.clocks.passes(60)
    life.write()
    files = list((tmp_path / "a.load").iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "a.load").stat().st_mode) == 0o700
    assert load_folder(Path("/x/config.state.json")) == Path("/x/config.load")
    assert load_folder(Path("/x/state")) == Path("/x/state.load")


def test_a_minute_that_is_over_leaves_memory_and_is_still_told(tmp_path: Path) -> None:
    life = Life(tmp_path / "a")
    for _ in range(3):
        life.serve(tokens=5)
        life.clocks.passes(60)
    assert life.write()
    assert life.clocks.load.told().minutes == ()
    life.serve(tokens=7)
    assert figures(life.read()) == [(0, 1, 5), (1, 1, 5), (2, 1, 5), (3, 1, 7)]
    assert [whole for _, whole in life.read().minutes] == [True, True, True, False]
    assert figures(life.read(since=BEGIN + 120)) == [(2, 1, 5), (3, 1, 7)]
    cut = life.read(limit=2)
    assert (figures(cut), cut.more) == ([(0, 1, 5), (1, 1, 5)], True)
    assert life.read(since=BEGIN + 120).more is False


def test_a_life_that_goes_on_in_the_same_minute_adds_to_it(tmp_path: Path) -> None:
    first = Life(tmp_path / "a")
    first.serve(5, tokens=5)
    first.file.close()
    second = Life(tmp_path / "a", BEGIN + 20)
    second.serve(5, tokens=7)
    second.clocks.passes(60)
    [(minute, whole)] = second.read().minutes
    assert whole
    assert minute.arrivals == ((0, 1), (20, 1))
    assert minute.ends == ((5, 1), (25, 1))
    assert tuple(minute.backends["spot"]) == (2, 10.0, 10.0, 0, 12)
    assert second.read().lives == [(BEGIN, BEGIN + 5), (BEGIN + 20, BEGIN + 85)]


def test_a_life_that_was_killed_ends_at_its_last_sign_and_the_next_one_takes_over(tmp_path: Path) -> None:
    first = Life(tmp_path / "a")
    first.serve(tokens=5)
    first.clocks.passes(70)
    first.serve(tokens=6)
    first.write()
    first.clocks.passes(9)
    first.killed()
    for number in range(1, 4):  # and the one that takes over may be killed in turn
        life = Life(tmp_path / "a", BEGIN + 1000 * number)
        told = life.read()
        assert figures(told) == [(0, 1, 5), (1, 1, 6)]
        assert told.lives[0] == (BEGIN, BEGIN + 70)
        assert len(told.lives) == number + 1
        assert all(whole for _, whole in told.minutes)
        life.killed()
    assert len(list((tmp_path / "a").glob("*.alive"))) == 1


def test_what_was_buried_twice_counts_once(tmp_path: Path) -> None:
    first = Life(tmp_path / "a")
    first.serve(tokens=5)
    first.write()
    left = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    first.killed()
    Life(tmp_path / "a", BEGIN + 100).killed()
    for name, data in left.items():  # the power went between the line and the end of its files
        (tmp_path / "a" / name).write_bytes(data)
    assert figures(Life(tmp_path / "a", BEGIN + 200).read()) == [(0, 1, 5)]


def test_two_routers_of_a_hand_over_are_told_as_one_and_nothing_is_whole_that_is_not(tmp_path: Path) -> None:
    old, new = Life(tmp_path / "a"), Life(tmp_path / "a")
    old.serve(tokens=5)
    new.serve(tokens=7)
    old.write()
    assert figures(new.read()) == [(0, 2, 12)]
    old.serve(tokens=5)
    for life in (old, new):
        life.clocks.passes(61)
    assert new.read().minutes[0][1] is False, "the old one has not told its last seconds"
    old.write()
    [(_, whole)] = new.read().minutes
    assert whole
    new.write()
    assert figures(new.read()) == figures(old.read()) == [(0, 3, 17)]
    old.serve(tokens=1)
    old.file.close()
    assert figures(new.read()) == [(0, 3, 17), (1, 1, 1)]
    assert new.read().lives == [(BEGIN, BEGIN + 61)]


@pytest.mark.parametrize("torn", [b'{"at":1700000040,"life":"x","in_fl', b"\xff\x00", b'{"life":"x","ran":[1,'])
def test_a_line_cut_short_by_a_kill_costs_no_other_line(tmp_path: Path, torn: bytes) -> None:
    first = Life(tmp_path / "a")
    first.serve(tokens=5)
    first.file.close()
    [day] = (tmp_path / "a").glob("*.jsonl")
    with day.open("ab") as file:
        file.write(torn)
    second = Life(tmp_path / "a", BEGIN + 60)
    second.serve(tokens=6)
    second.clocks.passes(60)
    second.write()
    second.serve(tokens=7)
    assert figures(second.read()) == [(0, 1, 5), (1, 1, 6), (2, 1, 7)]


def test_it_is_bounded_and_what_was_let_go_is_a_gap(tmp_path: Path) -> None:
    life = Life(tmp_path / "a", most_days=3)
    for _ in range(5):
        life.serve()
        life.clocks.passes(86400)
        life.write()
    told = life.read()
    assert len(told.minutes) == 3
    assert len(list((tmp_path / "a").glob("*.jsonl"))) == 3
    assert told.lives[0][0] == told.minutes[0][0].at // 86400 * 86400, "before it, nothing is known"
    small = Life(tmp_path / "b", most_bytes=1000)
    for _ in range(20):
        small.serve()
        small.clocks.passes(43200)
        small.write()
    assert sum(path.stat().st_size for path in (tmp_path / "b").glob("*.jsonl")) <= 1000
    assert small.read().minutes


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    (tmp_path / "a").rmdir()
    (tmp_path / "a").write_text("no folder")
    life.serve(tokens=5)
    life.clocks.passes(60)
    assert life.write() is False
    assert life.write() is False
    assert caplog.text.count("can't keep the load") == 1
    assert figures(life.read()) == [(0, 1, 5)]
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    assert life.write() is True
    assert life.clocks.load.told().minutes == ()
    assert figures(life.read()) == [(0, 1, 5)]


def test_a_month_of_it_is_read_from_where_it_is_asked(tmp_path: Path) -> None:
    life = Life(tmp_path / "a")
    for _ in range(30 * 24):
        life.serve()
        life.clocks.passes(3600)
    life.write()
    end = life.clocks.unix_s
    begun = time.process_time()
    assert len(life.read(since=end - 86400).minutes) == 24
    assert time.process_time() - begun < 0.2
    seen, since = 0, 0.0
    while True:
        told = life.read(since=since, limit=100)
        seen += len(told.minutes)
        since = told.minutes[-1][0].at + 60
        if not told.more:
            break
    assert seen == 30 * 24


# Whole routers


def total(told: dict[str, Any]) -> int:
    return sum(count for minute in told["minutes"] for _, count in minute["ends"])


async def test_a_router_tells_its_load_in_the_shape_that_bills_read(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend)
    for _ in range(3):
        await router.complete()
    told = (await router.client.get("/router/load")).json()
    assert told["more"] is False
    assert total(told) == 3
    last = told["minutes"][-1]
    assert last["whole"] is False or told["now"] >= last["at"] + 60
    assert set(last) == {"at", "in_flight", "arrivals", "ends", "backends", "models", "keys", "whole"}
    used = {"requests", "request_s", "busy_s", "prompt_tokens", "completion_tokens"}
    assert set(last["backends"]["serverless"]) == used
    [key] = last["keys"]
    assert key.startswith("key:")
    [(begun, ended)] = told["lives"]
    assert begun < ended == pytest.approx(told["now"], abs=0.1)
    for wrong in ("since=x", "since=-1", "limit=0", "limit=10001", "since=nan"):
        assert (await router.client.get(f"/router/load?{wrong}")).status_code == 422
    since = (await router.client.get(f"/router/load?since={told['now'] + 3600}")).json()
    assert since["minutes"] == since["lives"] == []
    from tuna_nb.costs.load import from_json

    assert sum(count for minute in from_json(told).minutes for _, count in minute.ends) == 3


async def complete(url: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as client:
        body = {"model": "m", "prompt": "p", **more}
        return await client.post(f"{url}/v1/completions", json=body, headers={"x-api-key": KEY})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_the_load_survives_the_end_of_a_router(
    tmp_path: Path, start_backend: StartBackend, number: signal.Signals
) -> None:
    backend = await start_backend()
    flags = ("--no-auth", "--serverless", backend.url, "--state", str(tmp_path / "r.state.json"))

    def load(router: Process) -> dict[str, Any]:
        return router.get("/router/load").json()  # type: ignore[no-any-return]

    with started(tmp_path, *flags) as router:
        for _ in range(3):
            assert (await complete(router.url)).status_code == 200
        before = await asyncio.to_thread(load, router)
        assert total(before) == 3
        if number == signal.SIGKILL:
            # What it did is in its last sign of life, at most ten seconds later.
            def said() -> int:
                files = list((tmp_path / "r.load").glob("*.now"))
                files += list((tmp_path / "r.load").glob("*.jsonl"))
                minutes: dict[int, int] = {}
                for path in files:
                    for line in path.read_bytes().splitlines():
                        stored = json.loads(line)
                        for minute in stored.get("minutes", [stored] if "at" in stored else []):
                            minutes[minute["at"]] = sum(count for _, count in minute["ends"])
                return sum(minutes.values())

            await asyncio.to_thread(until, lambda: said() == 3, 15)
        await asyncio.to_thread(router.end, number)
    ended = time.time()
    (tmp_path / "port.json").unlink(missing_ok=True)
    await asyncio.sleep(0.05)
    with started(tmp_path, *flags) as router:
        assert (await complete(router.url)).status_code == 200
        after = await asyncio.to_thread(load, router)
    assert total(after) == 4
    first, second = after["lives"]
    assert first[0] == before["lives"][0][0]
    assert first[1] <= ended < second[1]
    assert first[1] < second[0]


async def test_a_swap_counts_what_both_routers_serve_once(tmp_path: Path, start_backend: StartBackend) -> None:
    go_on = asyncio.Event()

    async def backend(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        if b"slow" in seen.body:
            await go_on.wait()
        await wire.token("two", "stop")
        await wire.done()

    upstream = await start_backend(backend)
    config: dict[str, object] = {"backends": [{"name": "s", "kind": "serverless", "url": upstream.url}]}
    manager = kept(tmp_path / "r", config)
    router: Kept = await asyncio.to_thread(manager.__enter__)

    def load() -> dict[str, Any]:
        return httpx.get(router.url + "/router/load", trust_env=False, timeout=5).json()  # type: ignore[no-any-return]

    try:
        slow = asyncio.create_task(complete(router.url, prompt="slow", stream=True))
        await asyncio.to_thread(until, lambda: len(upstream.seen) == 1)
        await complete(router.url, stream=True)
        old = router.pid()
        assert await asyncio.to_thread(router.swap) == "ok"
        assert router.pid() != old
        await complete(router.url, stream=True)
        await asyncio.to_thread(until, lambda: total(load()) >= 1)
        go_on.set()
        assert (await slow).status_code == 200
        await asyncio.to_thread(until, lambda: total(load()) == 3, 15)
        told = await asyncio.to_thread(load)
        arrivals = sum(count for minute in told["minutes"] for _, count in minute["arrivals"])
        assert (arrivals, len(told["lives"])) == (3, 1)
        await asyncio.to_thread(until, lambda: len(list((tmp_path / "r/config.load").glob("*.alive"))) == 1)
        assert total(await asyncio.to_thread(load)) == 3
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def test_a_minute_is_kept_as_it_was(tmp_path: Path) -> None:
    life = Life(tmp_path / "a")
    life.serve(1.5, tokens=3)
    life.clocks.passes(60)
    [minute] = life.clocks.load.told().minutes
    life.write()
    assert isinstance(minute, Minute)
    assert [kept for kept, _ in life.read().minutes] == [minute]
