"""Engines that die, hang, hide or outlive their server."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.backends.local.clouds import MODEL, deploy, engines, serverless, spot, until
from tests.backends.local.conftest import cloud_id
from tuna_nb.backends.base import Engine, ServiceRequest, State
from tuna_nb.backends.local.backend import LocalBackend

pytestmark = pytest.mark.usefixtures("unclouded")


@pytest.mark.parametrize("make", [serverless, spot])
async def test_an_engine_that_dies_at_start_is_told_with_its_last_words_and_not_tried_for_ever(
    shared: LocalBackend, make: Callable[..., ServiceRequest]
) -> None:
    side = await deploy(shared, make(f"dies-{make.__name__}", flags="--die-at-start"))
    await shared.wake(side.ref)
    await side.becomes(State.FAILED)
    status = await shared.status(side.ref)
    assert "exit code 7" in status.detail
    assert "CUDA out of memory" in status.detail
    assert not status.billing
    assert len(await shared.usage(side.ref)) == 3, "three starts are tried, and paid"
    answer = await side.ask()
    assert answer.status_code == 503
    assert "CUDA out of memory" in answer.json()["error"]


async def test_a_held_request_is_told_when_its_engine_can_not_start(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("held", flags="--die-at-start"))
    answer = await side.ask()
    assert answer.status_code == 503
    assert "exit code 7" in answer.json()["error"]


async def test_an_engine_that_answers_but_never_gives_a_token_is_not_ready(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("mute", flags="--never-ready", options={"engine_start_timeout_s": "0.8"}))
    await fleet.becomes(State.FAILED)
    detail = (await shared.status(fleet.ref)).detail
    assert "no token within 0.8 s" in detail
    assert "503" in detail


async def test_a_program_that_is_not_there_fails_with_its_name(shared: LocalBackend) -> None:
    request = spot("missing")
    request = replace(request, engine=Engine(MODEL, command="/no/such/program --port {port}"))
    fleet = await deploy(shared, request)
    await fleet.becomes(State.FAILED)
    assert "/no/such/program" in (await shared.status(fleet.ref)).detail


async def test_the_whole_family_of_an_engine_ends_with_it(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("family", flags="--child --ignore-sigterm", options={"stop_grace_s": "0.3"}))
    await fleet.becomes(State.READY)
    known = cloud_id(shared.folder)
    assert known is not None
    assert len(engines(known)) == 3, "the server, its worker, and one that has left the group"
    await shared.destroy(fleet.ref)
    assert engines(known) == []


async def test_workers_that_outlive_a_killed_server_are_ended(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("orphans", flags="--child"))
    await fleet.becomes(State.READY)
    known = cloud_id(shared.folder)
    assert known is not None
    [server] = [p for p in engines(known) if "tiny_engine.py" in " ".join(p.cmdline())]
    family = {p.pid for p in engines(known)}
    server.kill()
    await until(lambda: not family & {p.pid for p in engines(known)})
    await fleet.becomes(State.READY)


async def test_an_engine_gets_its_environment_but_no_setting_of_ours(shared: LocalBackend) -> None:
    code = "import os; print('GREETING', os.environ.get('GREETING'), sorted(k for k in os.environ if 'KEY' in k))"
    request = spot("environment", options={"engine_env": "GREETING='good day'"})
    command = f'{sys.executable} -c "{code}"'
    fleet = await deploy(shared, replace(request, engine=Engine(MODEL, command=command)))
    await fleet.becomes(State.FAILED)
    texts = [line.text async for line in shared.logs(fleet.ref)]
    assert any(t.startswith("GREETING good day") and "VLLM_API_KEY" not in t for t in texts)


async def test_the_log_has_the_engines_lines_with_their_replica_and_no_key(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("logged"))
    await fleet.becomes(State.READY)
    await fleet.ask()
    [replica] = (await shared.status(fleet.ref)).replicas
    lines = [line async for line in shared.logs(fleet.ref)]
    assert ("tiny engine listens", replica.id) in [(x.text, x.source) for x in lines]
    assert [x.at for x in lines] == sorted(x.at for x in lines)
    later = [line async for line in shared.logs(fleet.ref, since=lines[-1].at)]
    assert later == lines[-1:]
    key = (await shared.auth(fleet.ref)).headers["Authorization"].removeprefix("Bearer ")
    here = await shared.cloud.running()
    assert here is not None
    for path in shared.folder.rglob("*"):
        if path.is_file() and path.suffix in (".log", ".jsonl"):
            text = path.read_text()
            assert key not in text
            assert here.token not in text
    for process in [*engines(cloud_id(shared.folder) or ""), psutil.Process(here.pid)]:
        assert not re.search(r"[lc][kt]-\w{10}", " ".join(process.cmdline()))


async def test_a_followed_log_goes_on_until_the_resource_is_destroyed(shared: LocalBackend) -> None:
    fleet = await deploy(shared, spot("followed"))
    texts: list[str] = []
    async for line in shared.logs(fleet.ref, follow=True):
        texts.append(line.text)
        if line.text.endswith("is ready"):
            await shared.destroy(fleet.ref)
    assert texts[-1] == "followed is destroyed"
    assert [x.text async for x in shared.logs(fleet.ref)][-1] == "followed is destroyed"


def test_a_chatty_engine_can_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuna_nb.backends.local import logbook

    monkeypatch.setattr(logbook, "MAX_BYTES", 2000)
    book = logbook.LogBook(tmp_path, "chatty")
    for number in range(500):
        book.write(f"line {number}", "r")
    book.close()
    assert sum(p.stat().st_size for p in (tmp_path / "logs").iterdir()) < 2 * 2100
    assert logbook.read(tmp_path, "chatty")[-1].text == "line 499"
