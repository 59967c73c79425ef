"""A router on a machine that only ssh reaches: installed, kept running, exchanged without a lost request, removed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployments.leftovers import settings_of
from tests.deployments.lives import until
from tests.deployments.router_hosts.conftest import Host, OneMachine
from tests.router.backends import Backend, Seen, Wire
from tuna_nb.deployments.router_hosts import wheel
from tuna_nb.deployments.router_hosts.controller import ControllerHost
from tuna_nb.deployments.router_hosts.vm import VmHost, cluster_name
from tuna_nb.errors import RouterError

pytestmark = pytest.mark.e2e

ID = "feedbeef00"
KEY, SECRET = "the-admin-key", "the-provider's-key"


@pytest.fixture
def host(own_data_folder: Path, machines: OneMachine) -> ControllerHost:
    return ControllerHost(settings_of(own_data_folder), machines)


@pytest.fixture
def argvs(ssh: Host) -> Iterator[set[str]]:
    """Every command line of this machine while the test runs."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_text(errors="replace"))
                except OSError:
                    continue
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    done.set()
    thread.join()


def config(*backends: dict[str, Any]) -> dict[str, Any]:
    import hashlib

    digest = hashlib.sha256(KEY.encode()).hexdigest()
    return {"backends": list(backends), "admin_key_sha256": [digest]}


async def healthy(url: str) -> bool:
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            return (await client.get(f"{url}/router/health")).status_code == 200
    except httpx.HTTPError:
        return False


async def test_a_router_is_installed_started_killed_and_back_and_gone(
    host: ControllerHost, machines: OneMachine, ssh: Host, argvs: set[str]
) -> None:
    backend = {"name": "s", "kind": "serverless", "url": "http://127.0.0.1:9", "headers": {"x-key": SECRET}}
    url = await host.start(ID, config(backend), None, False)
    assert await healthy(url)
    assert 30011 <= int(url.rpartition(":")[2]) <= 30020
    assert machines.opened == []
    folder = ssh.home / ".tuna" / ID
    assert SECRET in (folder / "config.json").read_text()
    assert {p.stat().st_mode & 0o077 for p in (folder / "config.json", folder, folder / "router.log")} == {0}

    state = await host.state(ID)
    made = wheel.make()
    assert (state.url, state.version, state.build) == (url, made.version, made.build)
    assert state.supervised == "loop"
    assert state.memory_bytes is not None
    assert state.memory_bytes > 10 << 20
    assert await host.list_owned() == [ID]
    assert await host.start(ID, config(), None, False) == url
    assert (await host.config(ID))["backends"][0]["headers"] == {"x-key": SECRET}
    assert (await host.state(ID)).pid == state.pid

    assert state.pid is not None
    os.kill(state.pid, signal.SIGKILL)

    async def back() -> bool:
        now = await host.state(ID)
        return now.pid not in (None, state.pid) and await healthy(url)

    await until(back, 90)
    assert (await host.state(ID)).restarts == 1

    supervisor = int((folder / "supervisor.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)

    async def supervised_again() -> bool:
        pid = folder / "supervisor.pid"
        return pid.exists() and pid.read_text() != str(supervisor) and await healthy(url)

    await until(supervised_again, 90)
    assert [line async for line in host.logs(ID) if "listening on" in line.text]

    await host.stop(ID)
    assert await host.url(ID) is None
    assert not (ssh.home / ".tuna").exists()
    assert ssh.processes() == []
    await host.stop(ID)
    assert not [line for line in argvs if SECRET in line or KEY in line]


async def test_an_upgrade_and_a_restart_under_load_lose_no_request(
    host: ControllerHost, ssh: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stream(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for number in range(20):
            await wire.token(f"t{number} ")
            await asyncio.sleep(0.01)
        await wire.token("end", "stop")
        await wire.done()

    backend = Backend(stream)
    await backend.start()
    wanted = {"name": "s", "kind": "serverless", "url": backend.url}
    url = await host.start(ID, config(wanted), None, True)
    before = await host.state(ID)
    load = Load(url)
    load.start()
    try:
        await until(lambda: load.done > 20, 90)
        assert await host.restart(ID) == url
        restarted = await host.state(ID)
        made = wheel.make()
        other = wheel.Wheel(made.name, made.version, "abcdefabcdef", made.data)
        monkeypatch.setattr(wheel, "make", lambda: other)
        seen = load.done
        assert await host.upgrade(ID) == url
        upgraded = await host.state(ID)
        await until(lambda: load.done > seen + 40, 90)
    finally:
        await asyncio.to_thread(load.stop)
        await host.stop(ID)
        await backend.stop()
    assert load.failed == []
    assert len({before.pid, restarted.pid, upgraded.pid}) == 3
    assert (restarted.build, upgraded.build) == (made.build, "abcdefabcdef")
    assert ssh.processes() == []


async def test_a_broken_wheel_leaves_the_router_that_runs(
    host: ControllerHost, ssh: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await host.start(ID, config(), None, True)
    before = await host.state(ID)
    made = wheel.make()
    monkeypatch.setattr(wheel, "make", lambda: wheel.Wheel(made.name, made.version, "badbadbadbad", b"no zip"))
    with pytest.raises(RouterError):
        await host.upgrade(ID)
    after = await host.state(ID)
    assert (after.pid, after.build) == (before.pid, before.build)
    assert await healthy(url)
    await host.stop(ID)


async def test_a_port_of_the_users_is_opened(host: ControllerHost, machines: OneMachine) -> None:
    from tests.router.conftest import free_port

    port = free_port()
    url = await host.start(ID, config(), port, True)
    assert url == f"http://127.0.0.1:{port}"
    assert machines.opened == [port]
    await host.stop(ID)


async def test_a_controller_that_has_stopped_is_no_error_and_one_that_ssh_does_not_reach_is(
    host: ControllerHost, machines: OneMachine, ssh: Host
) -> None:
    good = ssh.ssh_config
    ssh.ssh_config = good.with_name("dead")
    ssh.ssh_config.write_text(good.read_text().replace("Port ", "Port 1 #"))
    with pytest.raises(RouterError, match="ssh does not reach machine"):
        await host.url(ID)
    assert machines.asked_fresh == 1
    machines.up = False
    assert await host.url(ID) is None
    with pytest.raises(RouterError, match="no controller VM") as e:
        await host.start(ID, config(), None, True)
    assert "--use-different-vm-for-lb" in str(e.value.hint)


async def test_a_vm_is_rented_for_the_router_and_given_back(
    own_data_folder: Path, machines: OneMachine, ssh: Host
) -> None:
    host = VmHost(settings_of(own_data_folder), machines)
    from tests.router.conftest import free_port

    port = free_port()
    url = await host.start(ID, config(), port, True, "aws/us-east-1")
    assert machines.launched == [(cluster_name(ID), ID, port, "aws/us-east-1")]
    assert await healthy(url)
    assert await host.list_owned() == [ID]
    await host.stop(ID)
    assert machines.launched == []
    assert ssh.processes() == []


class Load(threading.Thread):
    """Eight clients that stream without a pause, each over a connection that it keeps."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._end = url, threading.Event()
        self.done = 0
        self.failed: list[str] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        clients = [threading.Thread(target=self._client) for _ in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def stop(self) -> None:
        self._end.set()
        self.join(60)

    def _client(self) -> None:
        body = {"model": "m", "prompt": "p", "stream": True}
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30) as client:
            while not self._end.is_set():
                try:
                    answer = client.post("/v1/completions", json=body)
                    whole = answer.status_code == 200 and answer.text.endswith("[DONE]\n\n")
                    trouble = (
                        "" if whole and '"end"' in answer.text else f"{answer.status_code} {answer.text[-200:]}"
                    )
                except httpx.HTTPError as e:
                    trouble = repr(e)
                with self._lock:
                    self.done += 1
                    if trouble:
                        self.failed.append(trouble)


def test_the_same_files_make_the_same_wheel() -> None:
    assert wheel.make() == wheel.make()
    assert json.dumps(wheel.make().version)
