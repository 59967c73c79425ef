"""A Linux machine to run routers on: this one, through a real sshd with a home of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import psutil
import pytest

from tests.deployments.router_hosts.wheels import rebuilt
from tuna_nb.deployments.router_hosts.remote import Machine

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ssh" not in getattr(item, "fixturenames", ()):
            continue
        # A router is installed into a new environment each time.
        item.add_marker(pytest.mark.timeout(400))
        if not Path(SSHD).exists():
            item.add_marker(pytest.mark.skip(reason="there is no sshd here (openssh-server)"))


@dataclass
class Host:
    """name, address, ssh_config: as a provider of machines tells them. home: of its user."""

    name: str
    address: str
    ssh_config: Path
    home: Path

    def processes(self) -> list[psutil.Process]:
        """Everything that runs out of its home, and only that."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(str(self.home / ".tuna") in word for word in process.cmdline()):
                    found.append(process)
        return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]

    def clear(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class OneMachine:
    """A provider that has the one machine, as long as `up`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.up = True
        self.opened: list[int] = []
        self.launched: list[tuple[str, str, int, str | None]] = []
        self.asked_fresh = 0
        self.trouble: str | None = None
        self.usd: float | None = 0.04
        self.left: Host | None = None
        """Where the records still have the machine, after it was started again elsewhere."""

    async def controller(self, fresh: bool = False) -> Machine | None:
        self.asked_fresh += fresh
        return self.host if self.up else None

    async def find(self, name: str, fresh: bool = False) -> Machine | None:
        return (self.left or self.host) if any(one[0] == name for one in self.launched) else None

    async def launch(
        self, name: str, deployment_id: str, port: int, near: str | None, mend: bool = False
    ) -> Machine:
        if mend:
            self.left = None
        else:
            self.launched.append((name, deployment_id, port, near))
        return self.left or self.host

    async def down(self, name: str) -> None:
        self.launched = [one for one in self.launched if one[0] != name]

    async def names(self) -> list[str]:
        return ["somebody-else", *(one[0] for one in self.launched)]

    async def open_port(self, name: str, port: int) -> None:
        self.opened.append(port)

    async def no_cloud(self) -> str | None:
        return None

    async def no_controller(self) -> str | None:
        return self.trouble

    async def price(self, near: str | None) -> float | None:
        return self.usd


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a router needs, as wheels: a machine gets them from here instead of a registry."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in needed("tuna-router", {}):
        if name != "tuna-router":
            rebuilt(name, folder)
    return folder


def needed(name: str, seen: dict[str, None]) -> list[str]:
    from packaging.requirements import Requirement

    seen[name] = None
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            inner = requirement.name.lower().replace("_", "-")
            if inner not in seen:
                needed(inner, seen)
    return list(seen)


@pytest.fixture
def ssh(tmp_path: Path, wheelhouse: Path) -> Iterator[Host]:
    """A machine that ssh reaches as `machine`."""
    folder = tmp_path / "sshd"
    home = folder / "home"
    home.mkdir(parents=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    keys = folder / "authorized_keys"
    shutil.copy(folder / "user.pub", keys)
    keys.chmod(0o600)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = (
        f"HOME={home} PIP_NO_INDEX=1 PIP_FIND_LINKS={wheelhouse} PIP_CONFIG_FILE=/dev/null TUNA_SUPERVISED_BY=loop"
    )
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {keys}\nPasswordAuthentication no\nPermitRootLogin yes\nSetEnv {environment}\n"
    )
    user = pwd.getpwuid(os.getuid()).pw_name
    config = folder / "config"
    config.write_text(
        f"Host machine\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n  IdentityFile {folder}/user\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  StrictHostKeyChecking accept-new\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    made = Host("machine", "127.0.0.1", config, home)
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as daemon:
        try:
            end = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert daemon.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.02)
            yield made
        finally:
            made.clear()
            for child in psutil.Process(daemon.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            daemon.terminate()


@pytest.fixture
def machines(ssh: Host) -> OneMachine:
    return OneMachine(ssh)
