"""Load tests with the real generator process, against servers that do what they should and servers that do not."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.benchmarks.load.misbehaving import (
    END,
    STREAM,
    TOKEN,
    WHOLE,
    Request,
    chunk,
    json_answer,
    misbehaving,
    whole,
)
from tuna_nb.benchmarks.load.run import Ran, notes_of, run
from tuna_nb.benchmarks.load.spec import Arrivals, Lag, Lengths, LoadSpec, Prompts, Target
from tuna_nb.benchmarks.rows import ERRORS, Row
from tuna_nb.errors import RequestError, TunaError

KEY = "sk-not-to-be-seen-0123456789"
FAST = Arrivals("constant", rate=100)


def load(url: str, arrivals: Arrivals = FAST, **fields: Any) -> LoadSpec:
    target = {name: fields.pop(name) for name in ("api", "stream", "extra", "models") if name in fields}
    if not fields.keys() & {"requests", "duration_s"}:
        fields["requests"] = 4
    return LoadSpec(
        Target(url, target.pop("models", ("m",)), {"authorization": f"Bearer {KEY}"}, **target),
        arrivals,
        Prompts(input_tokens=Lengths(8), output_tokens=Lengths(3)),
        **({"grace_s": 20.0, "request_timeout_s": 20.0} | fields),
    )


async def ran(spec: LoadSpec) -> Ran:
    told: list[Row] = []
    result = await run(spec, told.extend)
    assert tuple(told) == result.rows
    assert all(row.error is None or row.error in ERRORS for row in result.rows)
    assert KEY not in repr(result)
    assert generators() == []
    return result


def generators() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "tuna_nb.benchmarks.load" in child.cmdline()
    ]


def errors(result: Ran) -> list[str | None]:
    return [row.error for row in sorted(result.rows, key=lambda row: row.number)]


# As it should be


async def test_every_request_leaves_a_row_with_what_the_engine_and_the_router_told() -> None:
    async def answer(request: Request) -> None:
        tuna = b"x-tuna-backend: spot-1\r\nx-tuna-attempts: 2\r\n\r\n"
        await request.send(WHOLE.replace(b"chunked\r\n\r\n", b"chunked\r\n" + tuna, 1))

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, requests=6, warmup_requests=2))
    assert errors(result) == [None] * 8
    assert sorted(row.number for row in result.rows) == [-2, -1, 0, 1, 2, 3, 4, 5]
    for row in result.rows:
        assert row.warmup is (row.number < 0)
        assert (row.backend, row.attempts, row.status) == ("spot-1", 2, 200)
        assert (row.input_tokens, row.output_tokens, row.chunks, row.finish_reason) == (5, 3, 3, "stop")
        assert len(row.gaps_ms) == 2
        assert row.sent_s is not None
        assert row.first_token_s is not None
        assert row.scheduled_s <= row.sent_s <= row.first_token_s <= row.ended_s
        assert row.scheduled_s == (row.number / 100 if row.number >= 0 else row.scheduled_s)
        assert (row.scheduled_s < 0) is row.warmup
    assert result.lag is not None
    assert not result.interrupted
    assert all(f"authorization: Bearer {KEY}".encode() in request.head for request in server.seen)
    assert server.seen[0].head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_an_unstreamed_completion_is_measured_too() -> None:
    async def answer(request: Request) -> None:
        assert "stream" not in request.body
        choice = {"text": "x", "finish_reason": "length"}
        await request.send(json_answer("200 OK", {"choices": [choice], "usage": {"completion_tokens": 3}}))

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, api="completions", stream=False))
    assert errors(result) == [None] * 4
    assert {(row.output_tokens, row.chunks, row.finish_reason) for row in result.rows} == {(3, 1, "length")}
    assert all(row.first_token_s for row in result.rows)
    assert b"/v1/completions" in server.seen[0].head


async def test_a_closed_loop_has_so_many_at_a_time_and_keeps_its_connections() -> None:
    now = most = 0

    async def answer(request: Request) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 3:
            all_there.set()
        await all_there.wait()
        await asyncio.sleep(0)
        now -= 1
        await request.send(WHOLE)

    all_there = asyncio.Event()
    async with misbehaving(answer) as server:
        result = await ran(load(server.url, Arrivals("closed", concurrency=3), requests=40))
    assert errors(result) == [None] * 40
    assert most == 3
    assert server.connections == 3


async def test_requests_leave_on_time_whatever_the_server_does() -> None:
    async def answer(request: Request) -> None:
        await all_came.wait()
        await request.send(WHOLE)

    all_came = asyncio.Event()
    async with misbehaving(answer) as server:
        task = asyncio.create_task(ran(load(server.url, requests=30)))
        async with asyncio.timeout(20):
            while len(server.seen) < 30:  # none of them was answered yet
                await asyncio.sleep(0.01)
        all_came.set()
        result = await task
    assert errors(result) == [None] * 30
    first = min(result.rows, key=lambda row: row.number)
    assert first.ttft_s is not None
    assert first.ttft_s > 0.29  # it waited for the last one, which was not due earlier


async def test_a_seed_sends_the_same_bytes() -> None:
    async with misbehaving(whole) as server:
        spec = load(server.url, models=("a", "b"), seed=5)
        await ran(spec)
        await ran(spec)
        await ran(dataclasses.replace(spec, seed=6))
    bodies = [json.dumps(request.body) for request in server.seen]
    assert bodies[:4] == bodies[4:8]
    assert bodies[:4] != bodies[8:]


async def test_ipv6_is_spoken() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with misbehaving(whole, "::1") as server:
        assert errors(await ran(load(server.url))) == [None] * 4


# What goes wrong


async def test_an_endpoint_that_is_down_refuses_each_request() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        result = await ran(load(f"http://127.0.0.1:{taken.getsockname()[1]}/v1"))
    assert errors(result) == ["refused"] * 4
    assert {row.detail for row in result.rows} == {"connection refused"}
    assert all(row.sent_s is None for row in result.rows)


async def test_an_endpoint_that_is_down_is_not_asked_thousands_of_times_by_a_closed_loop() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        result = await ran(load(url, Arrivals("closed", concurrency=2), duration_s=1.0))
    assert 2 <= len(result.rows) <= 20


async def test_a_wrong_key_is_told_without_the_key_and_the_address() -> None:
    async def answer(request: Request) -> None:
        said = f"Incorrect API key provided: {KEY}. See https://keys.example.com/a?b for 10.1.2.3:80"
        await request.send(json_answer("401 Unauthorized", {"error": {"message": said}}))

    async with misbehaving(answer) as server:
        result = await ran(load(server.url))
    assert [(row.error, row.status) for row in result.rows] == [("status", 401)] * 4
    assert result.rows[0].detail == "status 401: Incorrect API key provided: ***. See (address) for (address)"


async def test_half_of_the_requests_fail_and_the_others_count() -> None:
    async def answer(request: Request) -> None:
        await request.send(WHOLE if request.number % 2 else json_answer("500 Oops", {"error": "oops"}))

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, requests=20))
    assert sorted(errors(result), key=str) == [None] * 10 + ["status"] * 10
    assert {row.detail for row in result.rows if row.error} == {"status 500: oops"}


async def test_a_stream_that_never_ends_is_a_timeout_and_is_given_up() -> None:
    async def answer(request: Request) -> None:
        await request.send(STREAM + b"\r\n")
        while True:
            await request.send(TOKEN)
            await asyncio.sleep(0.01)

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, requests=2, request_timeout_s=0.5))
    assert errors(result) == ["timeout"] * 2
    for row in result.rows:
        assert row.chunks > 1
        assert row.status == 200
        assert row.ended_s - row.scheduled_s >= 0.5


async def test_a_server_that_says_nothing_is_a_timeout_too() -> None:
    async def answer(request: Request) -> None:
        await request.gone.wait()

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, requests=2, request_timeout_s=0.3))
    assert errors(result) == ["timeout"] * 2


async def test_what_is_under_way_at_the_end_is_stopped_after_its_grace() -> None:
    async def answer(request: Request) -> None:
        await request.send(STREAM + b"\r\n" + TOKEN)
        await request.gone.wait()

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, requests=None, duration_s=0.2, grace_s=0.3))
    assert errors(result) == ["stopped"] * len(result.rows)
    assert len(result.rows) == 20
    assert result.took_s >= 0.5
    assert not result.interrupted


@pytest.mark.parametrize(
    ("answer", "error", "detail"),
    [
        (json_answer("200 OK", {"choices": []}), "not a stream", "a stream was asked for, and application/json came"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>", "not a stream", "text/html"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "malformed", "no HTTP"),
        (os.urandom(64) + b"\r\n\r\n", "malformed", "no HTTP"),
        (STREAM + b"\r\n" + TOKEN + b"zz\r\n", "malformed", "no HTTP"),
        (STREAM + b"\r\n" + chunk(b"data: {]\n\n") + END, "malformed", "no OpenAI chunk"),
        (STREAM + b"\r\n" + TOKEN + chunk(b'data: {"error":{"message":"boom"}}\n\n') + END, "error event", "boom"),
        (STREAM + b"\r\n" + TOKEN + b"0\r\n\r\n", "cut", "before its end"),
    ],
    ids=["json", "html", "ssh", "garbage", "framing", "no-json", "error-event", "short"],
)  # fmt: skip
async def test_an_answer_that_is_none_is_told_as_what_it_is(answer: bytes, error: str, detail: str) -> None:
    async def behave(request: Request) -> None:
        await request.send(answer)

    async with misbehaving(behave) as server:
        result = await ran(load(server.url, requests=2))
    assert errors(result) == [error] * 2
    assert detail in result.rows[0].detail


async def test_a_stream_that_is_cut_in_the_middle_keeps_what_came() -> None:
    async def answer(request: Request) -> None:
        await request.send(STREAM + b"\r\n" + TOKEN * 2)
        request.close()

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, requests=2))
    assert [(row.error, row.status, row.chunks) for row in result.rows] == [("cut", 200, 2)] * 2


async def test_a_kept_connection_that_was_closed_meanwhile_is_no_error_and_a_new_one_is() -> None:
    async def answer(request: Request) -> None:
        if request.on_connection == 1:
            request.close()  # as a server whose patience ended just as the request came
        else:
            await request.send(WHOLE)

    async with misbehaving(answer) as server:
        result = await ran(load(server.url, Arrivals("closed"), requests=3))
    assert errors(result) == [None] * 3

    async def never(request: Request) -> None:
        request.close()

    async with misbehaving(never) as server:
        result = await ran(load(server.url, Arrivals("closed"), requests=2))
    assert errors(result) == ["cut"] * 2
    assert len(server.seen) == 2


async def test_a_very_slow_reader_of_requests_delays_no_other() -> None:
    async def answer(request: Request) -> None:
        await request.send(WHOLE)

    async with misbehaving(answer) as server:
        with socket.socket() as deaf:  # takes connections, and reads nothing
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            spec = load(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", requests=3, request_timeout_s=0.5)
            big = dataclasses.replace(spec, prompts=Prompts(input_tokens=Lengths(900_000)))
            stuck = await ran(big)
        assert errors(stuck) == ["timeout"] * 3
        assert errors(await ran(load(server.url))) == [None] * 4


# Its own end


async def test_an_interrupt_in_the_middle_keeps_what_came_and_leaves_nothing_running() -> None:
    async def answer(request: Request) -> None:
        if request.number < 3:
            await request.send(WHOLE)
        else:
            await request.send(STREAM + b"\r\n" + TOKEN)
            await request.gone.wait()

    told: list[Row] = []
    async with misbehaving(answer) as server:
        task = asyncio.create_task(run(load(server.url, requests=None, duration_s=600.0), told.extend))
        async with asyncio.timeout(20):
            while len(told) < 3 or len(server.seen) < 10:
                await asyncio.sleep(0.01)
        task.cancel()
        result = await task
    assert result.interrupted
    assert result.lag is not None
    assert errors(result)[:3] == [None] * 3
    assert set(errors(result)[3:]) == {"stopped"}
    assert tuple(told) == result.rows
    assert generators() == []


async def test_a_generator_that_does_not_hear_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuna_nb.benchmarks.load.run._STOP_S", 0.2)
    async with misbehaving(whole) as server:
        told: list[Row] = []
        task = asyncio.create_task(run(load(server.url, requests=None, duration_s=600.0), told.extend))
        async with asyncio.timeout(20):
            while not told:
                await asyncio.sleep(0.01)
        generators()[0].send_signal(signal.SIGSTOP)
        task.cancel()
        result = await task
    assert result.interrupted
    assert result.lag is None
    assert len(result.rows) >= 1
    assert generators() == []


async def test_a_generator_that_dies_tells_why_and_keeps_what_came() -> None:
    async with misbehaving(whole) as server:
        told: list[Row] = []
        task = asyncio.create_task(run(load(server.url, requests=None, duration_s=600.0), told.extend))
        async with asyncio.timeout(20):
            while not told:
                await asyncio.sleep(0.01)
        generators()[0].kill()
        result = await task
    assert result.interrupted
    assert result.rows == tuple(told)
    assert any("died (signal 9)" in note for note in result.notes)


async def test_a_generator_that_can_not_start_tells_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.write(2, b'no room here\\n'); os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TunaError, match="exit 3: no room here"):
        await run(load("http://127.0.0.1:9/v1"), lambda rows: None)


async def test_a_generator_ends_when_whoever_started_it_is_gone(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from tuna_nb.benchmarks.load.run import run\n"
        "from tuna_nb.benchmarks.load.spec import *\n"
        "spec = LoadSpec(Target(sys.argv[1], ('m',)), Arrivals('constant', rate=50), duration_s=600.0)\n"
        "asyncio.run(run(spec, lambda rows: None))\n"
    )
    async with misbehaving(whole) as server:
        parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, server.url)
        async with asyncio.timeout(30):
            while not server.seen:
                await asyncio.sleep(0.01)
        child = generators()[0]
        parent.kill()
        await parent.wait()
        async with asyncio.timeout(10):
            while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.02)


async def test_a_failure_of_whoever_is_told_stops_the_generator() -> None:
    def broken(rows: Sequence[Row]) -> None:
        raise ValueError("no more")

    async with misbehaving(whole) as server:
        with pytest.raises(ValueError, match="no more"):
            await run(load(server.url, requests=None, duration_s=600.0), broken)
    assert generators() == []


async def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the generator's process each look at the wall clock is an hour earlier than the one before."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "wall, looks = time.time, [0]\n"
        "def jumping():\n"
        "    looks[0] += 1\n"
        "    return wall() - 3600 * looks[0]\n"
        "time.time = jumping\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    async with misbehaving(whole) as server:
        result = await ran(load(server.url, requests=20, warmup_requests=1))
    assert errors(result) == [None] * 21
    assert 0.19 <= result.took_s < 60
    assert all(-60 < row.scheduled_s <= row.ended_s < 60 for row in result.rows)


async def test_the_generator_gets_no_key_in_its_arguments_and_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    async def answer(request: Request) -> None:
        if not found:
            child = generators()[0]
            found.append(" ".join(child.cmdline()) + repr(child.environ()))
        await request.send(WHOLE)

    found: list[str] = []
    async with misbehaving(answer) as server:
        await ran(load(server.url))
    assert "tuna_nb.benchmarks.load" in found[0]
    assert KEY not in found[0]
    assert "OPENAI_API_KEY" not in found[0]


async def test_rows_are_told_of_at_most_ten_times_a_second() -> None:
    times: list[float] = []
    async with misbehaving(whole) as server:
        spec = load(server.url, Arrivals("constant", rate=200), requests=200)
        await run(spec, lambda rows: times.append(asyncio.get_running_loop().time()))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps
    assert all(gap >= 0.09 for gap in gaps[:-1])  # the last ones are told as it ends


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": Target("ftp://x/v1", ("m",))}, "no address"),
        ({"target": Target("http://127.0.0.1:9/v1", ())}, "no model"),
        ({"request_timeout_s": 0.0}, "request timeout"),
        ({"grace_s": -1.0}, "grace"),
        ({"warmup_requests": -1}, "warm-up"),
        ({"arrivals": Arrivals("trace", trace="/nowhere.csv")}, "no file /nowhere.csv"),
        ({"prompts": Prompts("file", "/nowhere.txt")}, "no file /nowhere.txt"),
    ],
)
async def test_a_load_that_can_not_be_is_refused_with_a_hint(change: dict[str, Any], words: str) -> None:
    spec = dataclasses.replace(load("http://127.0.0.1:9/v1"), **change)
    with pytest.raises(RequestError) as caught:
        await run(spec, lambda rows: None)
    assert words in caught.value.message
    assert caught.value.hint


# What is said of the generator itself

KEPT_UP = Lag(0.0001, 0.001, 0.0005, 0.002, uvloop=True, cpu=0.2)
ROW = Row(0, "m", False, 0.0, 0.0, 0.1, 0.5, gaps_ms=(20.0, 20.0, 20.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"late_p99": 0.0061}, "late by 6.1 ms or more"),
        (
            {"loop_p99": 0.0012},
            "noticed answers 1.2 ms or more too late, and the median gap between chunks is 20 ms",
        ),
        ({"loop_p99": 0.0009}, None),
        ({"cpu": 0.95}, "95% of the one core"),
        ({"uvloop": False}, "without uvloop"),
    ],
)
def test_a_generator_that_could_not_keep_up_says_so(change: dict[str, Any], words: str | None) -> None:
    notes = notes_of(dataclasses.replace(KEPT_UP, **change), [ROW])
    assert (len(notes) == 0) if words is None else (len(notes) == 1 and words in notes[0])
