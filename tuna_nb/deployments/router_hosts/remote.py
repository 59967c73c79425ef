"""A router on another Linux machine, reached by ssh: how it is installed, kept running and exchanged there.

What is done there is `machine.sh`, which goes over ssh's standard input as the configuration does, so that neither
is in any list of processes. A supervisor (`tuna_router.supervise`) holds the socket, so that exchanging the router
loses no request; systemd starts it at boot where it runs, cron where that runs.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import io
import json
import shlex
import tarfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from tuna_nb import tls
from tuna_nb.backends.base import LogLine
from tuna_nb.deployments.router_hosts import wheel
from tuna_nb.deployments.router_hosts.base import Prospect, RouterState
from tuna_nb.errors import RouterError
from tuna_nb.settings import Settings

SCRIPT: Final = Path(__file__).with_name("machine.sh")
CONNECT_S: Final = 15
LOOK_S: Final = 60
INSTALL_S: Final = 600
"""Where the machine gets a Python of its own first."""
REACH_S: Final = 60
"""A firewall's new rule takes a while."""
LAST_LINES: Final = 5000
_LOST: Final = 255
"""ssh's own exit code: it did not get there, or the connection broke."""


class Machine(Protocol):
    """name: its name for ssh too. address: where clients reach it. ssh_config: a file for `ssh -F`."""

    name: str
    address: str
    ssh_config: Path


class Unreachable(RouterError):
    """ssh does not get there: the machine may have been stopped, or have another address by now."""


class Machines(Protocol):
    """The provider of machines; see `backends/skyserve/machines.py`. Each raises BackendError.

    fresh: its cloud is asked, not only records.
    """

    async def controller(self, fresh: bool = False) -> Machine | None:
        """SkyServe's controller, or None where none runs now."""

    async def find(self, name: str, fresh: bool = False) -> Machine | None:
        """The machine of that name, or None where none of it runs now."""

    async def launch(
        self, name: str, deployment_id: str, port: int, near: str | None, mend: bool = False
    ) -> Machine:
        """A small machine that stays, with the port open. Found again where it is there already; with `mend`
        started again where it is off, and looked for at another address."""

    async def down(self, name: str) -> None:
        """Remove it; returns when it is seen gone. Not found is success."""

    async def names(self) -> list[str]:
        """Of every machine, stopped ones too."""

    async def open_port(self, name: str, port: int) -> None:
        """Let everyone reach that port of a machine."""

    async def no_cloud(self) -> str | None:
        """Why no machine can be rented; None where one may be."""

    async def no_controller(self) -> str | None:
        """Why there is no controller VM, nor will be; None where there is or will be one."""

    async def price(self, near: str | None) -> float | None:
        """USD per hour of what `launch` makes; None where it is not known."""


class RemoteHost(abc.ABC):
    """What `vm` and `controller` share."""

    name: ClassVar[str]
    beside_spot: ClassVar[bool] = False
    elsewhere: ClassVar[bool] = True
    takes_minutes: ClassVar[bool] = True
    memory_mb: ClassVar[int]
    """Of the router; above it, another one takes its place."""

    def __init__(self, settings: Settings, machines: Machines | None = None) -> None:
        self._settings = settings
        self._given = machines
        self._last_url: dict[str, str] = {}
        """By deployment: where it was seen."""

    @property
    def machines(self) -> Machines:
        """Where machines come from. Raises BackendError where its package is not installed."""
        if self._given is None:
            from tuna_nb.backends.skyserve.machines import SkyMachines

            self._given = SkyMachines(self._settings.data_folder("ssh"))
        return self._given

    @abc.abstractmethod
    async def machine(self, deployment_id: str, fresh: bool = False) -> Machine | None:
        """The one that has this router, or would have; None where none runs."""

    @abc.abstractmethod
    async def prepared(self, deployment_id: str, port: int | None, near: str | None, mend: bool = False) -> Machine:
        """As `machine`, made where there is none yet. mend: the one that is known is not reached. Raises
        RouterError."""

    @abc.abstractmethod
    def ports(self, wanted: int | None) -> list[int]:
        """Those the router may listen on, the first free one of which it takes."""

    @abc.abstractmethod
    async def opened(self, machine: Machine, port: int) -> None:
        """Make sure that clients reach the port."""

    @abc.abstractmethod
    async def removed(self, deployment_id: str) -> None:
        """What is to be done when the router is gone."""

    @abc.abstractmethod
    async def prospect(self, near: str | None) -> Prospect:
        """As RouterHost has it."""

    async def start(
        self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool, near: str | None = None
    ) -> str:
        machine = await self.prepared(deployment_id, port, near)
        try:
            there = await self._status(machine, deployment_id)
        except Unreachable:
            machine = await self.prepared(deployment_id, port, near, mend=True)
            there = await self._status(machine, deployment_id)
        if there.get("card") is None:
            launch = {
                "host": "0.0.0.0",
                "ports": self.ports(port),
                "public": public,
                "memory_mb": self.memory_mb,
            }
            # What bodies and streams may take together leaves room for the rest.
            bodies = {"body_memory_bytes": self.memory_mb << 18, "body_limit_bytes": self.memory_mb << 17}
            made = await asyncio.to_thread(wheel.make)
            files = {
                "config.json": json.dumps(config | bodies).encode(),
                "launch.json": json.dumps(launch).encode(),
            }
            await self._install(machine, deployment_id, made, files)
            said = await self._do(machine, "start", deployment_id, made.build)
            there = _read(said)
        listens_at = int(there["card"]["port"])
        await self.opened(machine, listens_at)
        url = f"http://{machine.address}:{listens_at}"
        await self._reached(url, listens_at)
        return url

    async def url(self, deployment_id: str) -> str | None:
        # The router itself is the quickest to ask; only where it is silent, ssh and SkyPilot are.
        last = self._last_url.get(deployment_id)
        if last is not None and await _answers(last):
            return last
        found = (await self.state(deployment_id)).url
        self._last_url.pop(deployment_id, None)
        if found is not None:
            self._last_url[deployment_id] = found
        return found

    async def state(self, deployment_id: str) -> RouterState:
        machine, there = await self._look(deployment_id)
        if machine is None:
            return RouterState(self.name, None)
        card = there.get("card")
        if card is None:
            return RouterState(self.name, None, supervised=there.get("supervised", ""), address=machine.address)
        port, memory = int(card["port"]), there["memory_kib"]
        return RouterState(
            host=self.name,
            url=f"http://{machine.address}:{port}",
            version=str(there["version"]).rpartition(" ")[2],
            build=there["build"],
            supervised=there["supervised"],
            pid=int(card["pid"]),
            started_at=float(card["started_at"]),
            memory_bytes=None if memory is None else int(memory) * 1024,
            restarts=int(there["restarts"]),
            address=machine.address,
            tunnel=f"ssh -F {shlex.quote(str(machine.ssh_config))} -N -L {port}:127.0.0.1:{port} {machine.name}",
        )

    async def config(self, deployment_id: str) -> dict[str, Any]:
        return _read(await self._do(await self._here(deployment_id), "config", deployment_id))

    async def restart(self, deployment_id: str) -> str:
        machine = await self._here(deployment_id)
        build = (await self._status(machine, deployment_id)).get("build")
        if not build:
            raise RouterError(f"no router of {deployment_id} is on {machine.name}", "deploy the name again")
        return await self._swap(machine, deployment_id, build)

    async def upgrade(self, deployment_id: str) -> str:
        machine = await self._here(deployment_id)
        made = await asyncio.to_thread(wheel.make)
        await self._install(machine, deployment_id, made, {})
        return await self._swap(machine, deployment_id, made.build)

    async def stop(self, deployment_id: str) -> None:
        machine, _ = await self._look(deployment_id)
        if machine is not None:
            left = _read(await self._do(machine, "stop", deployment_id))
            if left.get("there"):
                raise RouterError(f"the router of {deployment_id} is still on {machine.name}", "try again")
        await self.removed(deployment_id)

    async def logs(
        self, deployment_id: str, since: float | None = None, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        machine = await self.machine(deployment_id)
        if machine is None:
            return
        words = ["logs", deployment_id, str(LAST_LINES), *(["follow"] if follow else [])]
        process = await _ssh(machine, f"sh -s -- {shlex.join(words)}")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(SCRIPT.read_bytes())
        process.stdin.close()
        at = 0.0
        try:
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip("\n")
                at = _written_at(line) or at
                if since is None or at >= since:
                    yield LogLine(at, "router", line)
            if await process.wait() == _LOST:
                raise RouterError(f"ssh lost {machine.name}", "`tuna router status` shows whether it runs")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def list_owned(self) -> list[str]:
        machine = await self.machine("")
        return [] if machine is None else (await self._do(machine, "list", "0")).split()

    async def _look(self, deployment_id: str) -> tuple[Machine | None, dict[str, Any]]:
        """The machine and what it says. One that ssh does not reach is asked of its cloud: it may have stopped, or
        been started again with another address. Where it runs all the same, the error stands."""
        machine = await self.machine(deployment_id)
        if machine is None:
            return None, {}
        try:
            return machine, await self._status(machine, deployment_id)
        except Unreachable:
            machine = await self.machine(deployment_id, fresh=True)
            return machine, {} if machine is None else await self._status(machine, deployment_id)

    async def _here(self, deployment_id: str) -> Machine:
        machine, _ = await self._look(deployment_id)
        if machine is None:
            raise RouterError(
                f"the machine of the router of {deployment_id} does not run",
                "deploy the same name again to mend it",
            )
        return machine

    async def _install(
        self, machine: Machine, deployment_id: str, made: wheel.Wheel, files: dict[str, bytes]
    ) -> None:
        packed = _packed({**files, f"wheel-{made.build}/{made.name}": made.data})
        await self._ship(machine, deployment_id, packed)
        await self._do(machine, "install", deployment_id, made.build, within_s=INSTALL_S)

    async def _swap(self, machine: Machine, deployment_id: str, build: str) -> str:
        there = _read(await self._do(machine, "swap", deployment_id, build))
        return f"http://{machine.address}:{int(there['card']['port'])}"

    async def _status(self, machine: Machine, deployment_id: str) -> dict[str, Any]:
        return _read(await self._do(machine, "status", deployment_id))

    async def _ship(self, machine: Machine, deployment_id: str, packed: bytes) -> None:
        into = f'umask 077; mkdir -p "$HOME/.tuna/{deployment_id}" && tar -xf - -C "$HOME/.tuna/{deployment_id}"'
        await _run(machine, into, packed, LOOK_S * 2)

    async def _do(self, machine: Machine, verb: str, *words: str, within_s: float = LOOK_S) -> str:
        """What a verb of machine.sh prints. Raises RouterError."""
        return await _run(machine, f"sh -s -- {shlex.join((verb, *words))}", SCRIPT.read_bytes(), within_s)

    async def _reached(self, url: str, port: int) -> None:
        """Raises RouterError where no health comes from there: a router that clients can't reach is none."""
        end = time.monotonic() + REACH_S
        while not await _answers(url):
            if time.monotonic() > end:
                raise RouterError(
                    f"the router runs, but {url} can't be reached from here",
                    f"let port {port} through the firewalls on the way, or choose another --router-host",
                )
            await asyncio.sleep(1)


async def _answers(url: str) -> bool:
    import httpx

    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(verify=tls.trusted(), timeout=5, trust_env=False) as client:
            return (await client.get(f"{url}/router/health")).status_code == 200
    return False


async def _ssh(machine: Machine, command: str) -> asyncio.subprocess.Process:
    options = ["-F", str(machine.ssh_config), "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
    options += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-o", "LogLevel=ERROR"]
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            "ssh", *options, machine.name, command, stdin=pipe, stdout=pipe, stderr=pipe
        )
    except FileNotFoundError:
        raise RouterError("there is no ssh on this machine", "install OpenSSH's client") from None


async def _run(machine: Machine, command: str, told: bytes, within_s: float) -> str:
    """Standard output of a command there. Raises RouterError with the last thing that it said."""
    process = await _ssh(machine, command)
    try:
        async with asyncio.timeout(within_s):
            out, said = await process.communicate(told)
    except TimeoutError:
        raise RouterError(f"{machine.name} did not answer within {within_s:g} s", "try again") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        return out.decode()
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    why = lines[-1] if lines else f"exit {process.returncode}"
    if process.returncode == _LOST:
        raise Unreachable(f"ssh does not reach {machine.name} ({machine.address}): {why}", "see `sky status`")
    raise RouterError(f"{machine.name}: {why}", "`tuna router logs` has more, where the router ran before")


def _packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _read(said: str) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # Its text may hold the configuration, and is not shown.
        raise RouterError("the router's machine answered something else than expected", "try again")
    return found


def _written_at(line: str) -> float | None:
    """Unix seconds at the head of a line of the router's log, which is in UTC there."""
    with contextlib.suppress(ValueError):
        return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC).timestamp()
    return None
