"""Machines through SkyPilot that are no replicas: SkyServe's controller, and small VMs that stay.

Its public SDK, with two exceptions that have no public way yet: the credentials of a cluster come with
`status(_include_credentials=True)`, as its own command line asks for them, and `open_port` is
`sky.provision.open_ports`. A raw status record never leaves this module: it may carry secrets.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from tuna_nb.backends.skyserve import accounts
from tuna_nb.backends.skyserve.client import Client, installed
from tuna_nb.backends.skyserve.task import DEPLOYMENT_LABEL
from tuna_nb.errors import BackendError

CONTROLLER: Final = "sky-serve-controller-"
"""How the controller's cluster is named, before its owner's hash."""
KNOWN_VERSIONS: Final = ("0.14.",)
"""Those whose private functions were read."""
DOWN_S: Final = 600
ASK_S: Final = 180.0
LAUNCH_S: Final = 1800.0
"""SkyPilot looks in one zone after the other."""
LOOK_S: Final = 5

Result = TypeVar("Result")


class Machine:
    """name: its cluster's, also its name for ssh. address: public IP. ssh_config: a file for `ssh -F`."""

    __slots__ = ("address", "name", "ssh_config")

    def __init__(self, name: str, address: str, ssh_config: Path) -> None:
        self.name, self.address, self.ssh_config = name, address, ssh_config


class SkyMachines:
    """folder: keeps the ssh configuration and key (0600) of each machine that was found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sky = Client(timeout_s=ASK_S, pace=1.0)

    async def controller(self, fresh: bool = False) -> Machine | None:
        """SkyServe's controller; None where none runs now. fresh: its cloud is asked, not SkyPilot's records."""
        found = [r for r in await self._records(None, fresh=False) if r["name"].startswith(CONTROLLER)]
        if fresh and found:
            # Only these: to ask for every cluster of a team would take its time.
            found = await self._records([r["name"] for r in found], fresh=True)
        if len(found) > 1:
            own = await self._ask("the controller's name", _controller_name)
            found = [r for r in found if r["name"] == own] or [r for r in found if _runs(r)]
        return self._machine(found[0]) if found and _runs(found[0]) else None

    async def find(self, name: str, fresh: bool = False) -> Machine | None:
        """The machine of that name; None where none of it runs now."""
        found = [r for r in await self._records([name], fresh) if r["name"] == name]
        return self._machine(found[0]) if found and _runs(found[0]) else None

    async def launch(
        self, name: str, deployment_id: str, port: int, near: str | None, mend: bool = False
    ) -> Machine:
        """A small on-demand machine that stays, with the port open to all; the one that is there already, else.

        near: SkyPilot's `infra`, such as `aws/us-east-1`. mend: it may have been off: SkyPilot starts it where it
        is stopped, and learns its address, which it does in no other way. Raises CapacityError, BackendError.
        """
        found = None if mend else await self.find(name)
        if found is None:

            def launch(_: Any) -> None:
                _launch(name, cluster_spec(name, deployment_id, port, near))

            await self._sky.rent(f"launching {name}", launch, within_s=LAUNCH_S)
            found = await self.find(name)
        if found is None:
            raise BackendError(f"SkyPilot has launched {name} but does not list it as UP", f"`sky status {name}`")
        return found

    async def down(self, name: str) -> None:
        """Remove it; returns when a fresh listing no longer has it. Not found is success."""
        end = time.monotonic() + DOWN_S
        while any(r["name"] == name for r in await self._records([name], fresh=True)):
            if time.monotonic() > end:
                raise BackendError(f"{name} is still there after {DOWN_S} s", f"`sky down {name}`")
            await self._ask(f"taking {name} down", lambda: _down(name), DOWN_S)
            if any(r["name"] == name for r in await self._records([name], fresh=True)):
                await asyncio.sleep(LOOK_S)
        for path in self._folder.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    async def names(self) -> list[str]:
        """Of every cluster, whatever its state."""
        return [r["name"] for r in await self._records(None, fresh=False)]

    async def open_port(self, name: str, port: int) -> None:
        """Let everyone reach that port. Raises BackendError where this can't be done from here."""
        hint = "--use-different-vm-for-lb runs the router on a VM of its own, with its port open from the start"
        if remote_server():
            raise BackendError(
                f"port {port} of {name} can't be opened through a SkyPilot API server elsewhere", hint
            )
        records = [r for r in await self._records([name], fresh=False) if r["name"] == name]
        if not records:
            raise BackendError(f"there is no {name}", hint)
        await self._ask(f"port {port} of {name}", lambda: _open_port(records[0]["handle"], port, hint))

    async def no_controller(self) -> str | None:
        """Why SkyServe has, or will have, no controller VM that a router could run on; None where it has."""
        if remote_server():
            return "the SkyPilot API server is elsewhere"
        return await self._ask("SkyPilot's configuration", _no_controller)

    async def no_cloud(self) -> str | None:
        """Why no machine can be rented, as far as this machine's files tell; None where one may be."""
        if not installed():
            return "SkyPilot is not installed here"
        return None if accounts.clouds_here() else "no cloud is set up here for SkyPilot"

    async def price(self, near: str | None) -> float | None:
        """USD per hour of what `launch` would take; None where the catalog does not tell."""
        cloud, _, region = (near or "").partition("/")
        if not cloud:
            return None
        return await self._ask(f"the catalog of {cloud}", lambda: _price(cloud, region or None))

    async def _records(self, names: list[str] | None, fresh: bool) -> list[Any]:
        return await self._ask("SkyPilot's clusters", lambda: _status(names, fresh))

    async def _ask(self, what: str, call: Callable[[], Result], within_s: float = ASK_S) -> Result:
        found: Result = await self._sky.ask(what, lambda _: call(), within_s=within_s)
        return found

    def _machine(self, record: Any) -> Machine:
        """Writes its ssh configuration. Raises BackendError where SkyPilot gives no way in."""
        name, handle, credentials = record["name"], record["handle"], record.get("credentials") or {}
        addresses = handle.cached_external_ips if handle is not None else None
        if not addresses or not credentials:
            raise BackendError(f"SkyPilot tells no address or no ssh key of {name}", f"`sky status -r {name}`")
        key = Path(os.path.expanduser(str(credentials["ssh_private_key"])))
        if content := credentials.get("ssh_private_key_content"):
            key = self._folder / f"{name}.key"
            _write_private(key, content)
        ports = handle.cached_external_ssh_ports or [22]
        lines = [
            f"Host {name}",
            f"  HostName {addresses[0]}",
            f"  User {handle.ssh_user or credentials['ssh_user']}",
            f"  Port {ports[0]}",
            f'  IdentityFile "{key}"',
            "  IdentitiesOnly yes",
            # A machine that replaces another has another hash, and may have another key.
            f"  HostKeyAlias {record.get('cluster_hash') or name}",
            f'  UserKnownHostsFile "{self._folder / f"{name}.known_hosts"}"',
            "  StrictHostKeyChecking accept-new",
        ]
        if proxy := credentials.get("ssh_proxy_command"):
            lines.append(f"  ProxyCommand {proxy}")
        config = self._folder / f"{name}.config"
        _write_private(config, "\n".join(lines) + "\n")
        return Machine(name, addresses[0], config)


def cluster_spec(name: str, deployment_id: str, port: int, near: str | None) -> dict[str, Any]:
    """The task as SkyPilot's YAML has it: it does nothing, the machine is all that is wanted."""
    resources: dict[str, Any] = {
        "cpus": "2+",
        "memory": "4+",
        "use_spot": False,
        "ports": [port],
        "labels": {DEPLOYMENT_LABEL: deployment_id},
    }
    if near:
        resources["infra"] = near
    return {"name": name, "resources": resources, "run": "true"}


def remote_server() -> bool:
    """Whether SkyPilot's API server is named to be on another machine."""
    host = urlsplit(accounts.server() or "").hostname
    return host is not None and host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def _runs(record: Any) -> bool:
    """INIT is also what SkyPilot calls a machine that was restarted without it: ssh tells whether it is there."""
    status = str(getattr(record["status"], "value", record["status"]))
    handle = record["handle"]
    return status == "UP" or (status == "INIT" and handle is not None and bool(handle.cached_external_ips))


def _status(names: list[str] | None, fresh: bool) -> list[Any]:
    import sky
    from sky.client import sdk

    refresh = sky.StatusRefreshMode.FORCE if fresh else sky.StatusRefreshMode.NONE
    request = sdk.status(names, refresh=refresh, all_users=True, _include_credentials=True)
    found: list[Any] = sdk.get(request)
    return found or []


def _launch(name: str, spec: dict[str, Any]) -> None:
    import sky

    # Without autostop, and never with down=True: that would remove the machine when its task ends.
    sky.get(sky.launch(sky.Task.from_yaml_config(spec), cluster_name=name))


def _down(name: str) -> None:
    import sky
    from sky import exceptions

    try:
        sky.get(sky.down(name))
    except exceptions.ClusterDoesNotExist:
        return


def _open_port(handle: Any, port: int, hint: str) -> None:
    import sky

    if not sky.__version__.startswith(KNOWN_VERSIONS):
        raise BackendError(f"SkyPilot {sky.__version__} has no way known here to open a port", hint)
    from sky import global_user_state, provision

    config = global_user_state.get_cluster_yaml_dict(handle.cluster_yaml)
    cloud = repr(handle.launched_resources.cloud)
    provision.open_ports(cloud, handle.cluster_name_on_cloud, [str(port)], config["provider"])


def _controller_name() -> str:
    from sky.utils import common

    return str(common.SKY_SERVE_CONTROLLER_NAME)


def _no_controller() -> str | None:
    from sky import skypilot_config

    if skypilot_config.get_nested(("serve", "controller", "consolidation_mode"), False):
        return "SkyPilot's configuration has SkyServe's controller in its API server (consolidation mode)"
    resources = skypilot_config.get_nested(("serve", "controller", "resources"), None) or {}
    where = str(resources.get("infra") or resources.get("cloud") or "").lower()
    if where.startswith(("kubernetes", "k8s")):
        return "SkyServe's controller is on Kubernetes"
    return None


def _price(cloud: str, region: str | None) -> float | None:
    from sky import catalog

    kind = catalog.get_default_instance_type(cpus="2+", memory="4+", clouds=cloud)
    if kind is None:
        return None
    return float(catalog.get_hourly_cost(kind, use_spot=False, region=region, zone=None, clouds=cloud))


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as f:
        f.write(text)
