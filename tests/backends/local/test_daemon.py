"""The daemon: one per folder, there when needed, gone when not, and nothing lost when it is killed."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from tests.backends.local.clouds import TINY, alive, daemons, deploy, engines, serverless, spot, until
from tests.backends.local.conftest import cloud_id
from tuna_nb.backends.base import Kind, Ref, State
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.errors import BackendError, ConflictError, NotFoundError, SettingsError


async def daemon_pid(backend: LocalBackend) -> int:
    there = await backend.cloud.running()
    assert there is not None
    return there.pid


async def kill_daemon(backend: LocalBackend, number: signal.Signals = signal.SIGKILL) -> None:
    pid = await daemon_pid(backend)
    os.kill(pid, number)
    await until(lambda: not alive(pid))


async def test_looking_at_an_empty_folder_starts_nothing_and_writes_nothing(backend: LocalBackend) -> None:
    unknown = Ref("local", Kind.SPOT, "x")
    assert await backend.list_owned() == []
    assert (await backend.cloud.bill()).usd == 0
    assert (await backend.status(unknown)).state is State.GONE
    assert [line async for line in backend.logs(unknown)] == []
    await backend.destroy(unknown)
    for call in (backend.wake(unknown), backend.auth(unknown), backend.cloud.preempt("x")):
        with pytest.raises(NotFoundError):
            await call
    assert not backend.folder.exists()


async def test_clients_that_start_at_once_get_one_daemon(backend: LocalBackend) -> None:
    others = [LocalBackend(backend.folder, idle_exit_s=30) for _ in range(3)]
    there = await asyncio.gather(*(b.cloud.ensure_running() for b in (backend, *others)))
    assert len({t.pid for t in there}) == 1
    await until(lambda: [p.pid for p in daemons(backend.folder)] == [there[0].pid])


async def test_what_is_on_disk_is_its_owners_alone(backend: LocalBackend) -> None:
    await deploy(backend, serverless("private"))
    for path in [backend.folder, *backend.folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


async def test_the_control_plane_needs_its_token(backend: LocalBackend) -> None:
    there = await backend.cloud.ensure_running()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{there.port}") as stranger:
        assert (await stranger.get("/health")).status_code == 401
        assert (await stranger.get("/resources", headers={"Authorization": "Bearer x"})).status_code == 401


async def test_the_daemon_leaves_when_it_has_nothing_to_run(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "cloud", idle_exit_s=0.3)
    side = await deploy(backend, serverless("brief"))
    await side.ask()
    pid = await daemon_pid(backend)
    await backend.destroy(side.ref)
    await until(lambda: not alive(pid))
    assert not (backend.folder / "cloud.json").exists()
    # The bill outlives resource and daemon, and reading it starts none.
    [paid] = await backend.usage(side.ref)
    assert paid.ended_at is not None
    assert (await backend.cloud.bill("brief")).usd > 0
    assert daemons(backend.folder) == []


async def test_after_a_kill_the_next_call_ends_the_orphans_and_restores_the_resources(
    backend: LocalBackend,
) -> None:
    fleet = await deploy(backend, spot("fleet", flags="--child"))
    side = await deploy(backend, serverless("side"))
    await fleet.becomes(State.READY)
    await side.ask()
    known = cloud_id(backend.folder)
    assert known is not None
    before = {p.pid for p in engines(known)}
    assert len(before) == 4
    urls = {r.name: (await backend.status(r)).endpoint_url for r in await backend.list_owned()}
    await kill_daemon(backend)
    assert {p.pid for p in engines(known)} == before, "engines survive their killed daemon"
    assert {r.name for r in await backend.list_owned()} == {"fleet", "side"}
    assert not any(alive(pid) for pid in before)
    assert {r.name: (await backend.status(r)).endpoint_url for r in await backend.list_owned()} == urls
    await fleet.becomes(State.READY)
    assert (await fleet.ask()).status_code == 200, "the same key opens the same address"
    assert (await side.ask()).status_code == 200


async def test_a_kill_loses_no_billed_time_of_what_ran_on(backend: LocalBackend) -> None:
    fleet = await deploy(backend, spot("paid"))
    await fleet.becomes(State.READY)
    await kill_daemon(backend)
    killed = time.time()
    await asyncio.sleep(1.2)
    first, *_ = await backend.usage(fleet.ref)
    assert first.ended_at is not None
    assert first.ended_at >= killed + 1.2, "the orphan ran until the next daemon ended it"


async def test_an_engine_whose_start_was_not_yet_recorded_is_found(backend: LocalBackend) -> None:
    fleet = await deploy(backend, spot("unrecorded"))
    await fleet.becomes(State.READY)
    known = cloud_id(backend.folder)
    assert known is not None
    [orphan] = engines(known)
    await kill_daemon(backend)
    with sqlite3.connect(backend.folder / "journal.db") as db:
        db.execute("UPDATE replicas SET pid=NULL, create_time=NULL")
    await backend.destroy(fleet.ref)
    assert not alive(orphan.pid)


async def test_a_stranger_with_an_orphans_number_is_not_touched(backend: LocalBackend) -> None:
    fleet = await deploy(backend, spot("reused"))
    await fleet.becomes(State.READY)
    await kill_daemon(backend)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        with sqlite3.connect(backend.folder / "journal.db") as db:
            db.execute("UPDATE replicas SET pid=?", (stranger.pid,))
        await backend.destroy(fleet.ref)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_worker_that_wiped_its_environment_goes_with_its_dead_server(backend: LocalBackend) -> None:
    """As vLLM's do: setproctitle writes over the marker that they inherited."""
    request = spot("wiped")
    worker = f"env -i sleep {random.randint(100_000, 999_999)}"
    command = f"sh -c {shlex.quote(f'{worker} & exec {TINY}')}"
    request = replace(request, engine=replace(request.engine, command=command))
    fleet = await deploy(backend, request)
    await fleet.becomes(State.READY)
    [server] = engines(cloud_id(backend.folder) or "")
    [left] = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == worker.split()[2:]]
    try:
        await kill_daemon(backend)
        server.kill()
        await until(lambda: not alive(server.pid))
        assert left.is_running()
        await backend.destroy(fleet.ref)
        assert not alive(left.pid)
    finally:
        if alive(left.pid):
            left.kill()


async def test_a_destroy_that_a_kill_broke_off_is_finished(backend: LocalBackend) -> None:
    fleet = await deploy(backend, spot("half", flags="--ignore-sigterm", options={"stop_grace_s": "20"}))
    await fleet.becomes(State.READY)
    doomed = asyncio.create_task(backend.destroy(fleet.ref))
    with sqlite3.connect(backend.folder / "journal.db") as db:
        await until(lambda: db.execute("SELECT deleting FROM resources").fetchone() == (1,))
    pid = await daemon_pid(backend)
    os.kill(pid, signal.SIGKILL)
    await doomed
    assert await backend.list_owned() == []
    assert engines(cloud_id(backend.folder) or "") == []


async def test_another_process_can_destroy_it(backend: LocalBackend) -> None:
    fleet = await deploy(backend, spot("elsewhere"))
    await fleet.becomes(State.READY)
    [replica] = engines(cloud_id(backend.folder) or "")
    code = (
        "import asyncio; from tuna_nb.backends.local.backend import LocalBackend\n"
        "async def main():\n"
        "    b = LocalBackend()\n"
        "    for ref in await b.list_owned(): await b.destroy(ref)\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "TUNA_LOCAL_FOLDER": str(backend.folder)}
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
    assert await done.wait() == 0
    assert not alive(replica.pid)
    assert await backend.list_owned() == []
    await backend.destroy(fleet.ref)


async def test_a_daemon_that_is_told_to_stop_ends_its_engines_and_its_resources_come_back(
    backend: LocalBackend,
) -> None:
    fleet = await deploy(backend, spot("restart"))
    await fleet.becomes(State.READY)
    await kill_daemon(backend, signal.SIGTERM)
    assert engines(cloud_id(backend.folder) or "") == []
    await fleet.becomes(State.READY)
    first, second = await backend.usage(fleet.ref)
    assert first.ended_at is not None
    assert second.ended_at is None


async def test_a_daemon_whose_folder_is_taken_away_leaves_nothing_running(backend: LocalBackend) -> None:
    fleet = await deploy(backend, spot("rug"))
    await fleet.becomes(State.READY)
    pid, known = await daemon_pid(backend), cloud_id(backend.folder)
    assert known is not None
    moved = backend.folder.rename(backend.folder.with_name("elsewhere"))
    await until(lambda: not alive(pid))
    assert engines(known) == []
    moved.rename(backend.folder)


async def test_a_broken_journal_is_an_error_and_never_an_empty_list(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    (tmp_path / "journal.db").write_bytes(b"this is no database" * 500)
    ref = Ref("local", Kind.SPOT, "x")
    for call in (backend.list_owned(), backend.status(ref), backend.usage(ref), backend.destroy(ref)):
        with pytest.raises(BackendError, match=r"journal\.db"):
            await call
    with pytest.raises(BackendError, match=r"journal\.db"):
        await deploy(backend, serverless("x"))
    assert daemons(tmp_path) == []


async def test_a_resource_that_can_not_be_read_is_not_skipped(backend: LocalBackend) -> None:
    await deploy(backend, serverless("whole"))
    await kill_daemon(backend)
    with sqlite3.connect(backend.folder / "journal.db") as db:
        db.execute("UPDATE resources SET spec='{}'")
    with pytest.raises(BackendError, match="record"):
        await backend.list_owned()
    with sqlite3.connect(backend.folder / "journal.db") as db:
        db.execute("DELETE FROM resources")


async def test_a_folder_that_can_not_be_made_is_told_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    backend = LocalBackend(tmp_path / "file" / "cloud")
    with pytest.raises(SettingsError) as told:
        await deploy(backend, serverless("x"))
    assert "TUNA_LOCAL_FOLDER" in (told.value.hint or "")
    checks = {c.name: c for c in await backend.check(serverless("x"))}
    assert not checks["folder"].passed


async def test_a_name_is_one_specification(backend: LocalBackend) -> None:
    first = await deploy(backend, serverless("same"))
    again = await deploy(backend, serverless("same"))
    assert again.endpoint == first.endpoint
    with pytest.raises(ConflictError, match="same"):
        await deploy(backend, serverless("same", workers_max=3))


async def test_shutdown_does_not_take_resources_with_it_unless_forced(backend: LocalBackend) -> None:
    await deploy(backend, serverless("kept"))
    pid = await daemon_pid(backend)
    with pytest.raises(ConflictError, match="kept"):
        await backend.cloud.shutdown()
    await backend.cloud.shutdown(force=True)
    assert not psutil.pid_exists(pid) or not alive(pid)
    assert await backend.list_owned() == []


LEAVES = """
import http.server, json, os, pathlib, psutil, sys
class Asked(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.send_header("content-length", "2"), self.end_headers(), self.wfile.write(b"{}")
    def do_POST(self):
        os._exit(0)
server = http.server.HTTPServer(("127.0.0.1", 0), Asked)
told = {"pid": os.getpid(), "create_time": psutil.Process().create_time(), "port": server.server_port, "token": "t"}
(pathlib.Path(sys.argv[1]) / "cloud.json").write_text(json.dumps(told))
print("up", flush=True)
server.serve_forever()
"""


async def test_one_that_leaves_by_itself_as_it_is_told_to_is_as_well(backend: LocalBackend) -> None:
    """And what it had, if anything, the next one ends."""
    await deploy(backend, serverless("left"))
    await kill_daemon(backend)
    left = subprocess.Popen([sys.executable, "-c", LEAVES, str(backend.cloud.folder)], stdout=subprocess.PIPE)
    assert left.stdout is not None
    assert left.stdout.readline() == b"up\n"
    await backend.cloud.shutdown(force=True)
    assert left.wait(10) == 0
    assert await backend.cloud.running() is None
    assert await backend.list_owned() == []


async def test_a_deploy_that_meets_a_leaving_daemon_is_taken_by_the_next(backend: LocalBackend) -> None:
    slow = await deploy(backend, spot("slow", flags="--ignore-sigterm", options={"stop_grace_s": "1"}))
    await slow.becomes(State.READY)
    first = await daemon_pid(backend)
    leaving = asyncio.create_task(backend.cloud.shutdown(force=True))
    await slow.becomes(State.STOPPING)
    await deploy(backend, serverless("next"))
    await leaving
    assert [r.name for r in await backend.list_owned()] == ["next"]
    assert await daemon_pid(backend) != first


@pytest.mark.parametrize("seed", range(4))
async def test_a_kill_at_any_moment_leaves_nothing_unfound(backend: LocalBackend, seed: int) -> None:
    dice = random.Random(seed)

    async def live() -> None:
        """A life with everything in it, as far as it comes."""
        fleet = await deploy(
            backend, spot("fleet", flags="--child", options={"boot_s": "0", "stop_grace_s": "0.2"})
        )
        await backend.cloud.preempt(fleet.ref.name, notice_s=dice.choice([0, 0.3]))
        side = deploy(backend, serverless("side", workers_min=2, workers_max=2))
        # Both to their end: a call that goes on behind our back would deploy again after the clean-up.
        await asyncio.gather(fleet.ask(), side, return_exceptions=True)
        await backend.destroy(fleet.ref)

    await backend.cloud.ensure_running()
    pid, known = await daemon_pid(backend), cloud_id(backend.folder)
    assert known is not None
    work = asyncio.create_task(live())
    await asyncio.sleep(dice.uniform(0, 0.7))
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait({work})
    for ref in await backend.list_owned():
        await backend.destroy(ref)
    assert await backend.list_owned() == []
    assert engines(known) == []
    assert all(i.ended_at is not None for i in (await backend.cloud.bill()).intervals)


async def test_a_port_that_was_taken_meanwhile_is_replaced_and_told(backend: LocalBackend) -> None:
    side = await deploy(backend, serverless("moved"))
    await kill_daemon(backend)
    port = int(side.endpoint.url.rsplit(":", 1)[1])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        url = (await backend.status(side.ref)).endpoint_url
        assert url is not None
        assert url != side.endpoint.url
        headers = dict((await backend.auth(side.ref)).headers)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as http:
            assert (await http.get("/v1/models")).status_code == 200
