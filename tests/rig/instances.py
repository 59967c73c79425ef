"""Machines for the instances that moto knows: a namespace on the bridge, an overlay root, and sshd, nothing more.

moto keeps the books and runs nothing. A thread reads them each second, as a cloud's own control plane would, and
boots, stops and removes machines to match.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig import golden, network
from tests.rig.catalogs import REGIONS

ALIVE = frozenset({"pending", "running"})
KEPT = ALIVE | {"stopping", "stopped"}

BOOT = """
mount --make-rprivate /
cd {root}
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs tmpfs run && mkdir -p run/sshd run/lock
mount -t tmpfs -o mode=755 tmpfs root
mount -t tmpfs -o mode=755 tmpfs mnt
mount --rbind /dev dev && mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t proc proc proc
mount -t sysfs sysfs sys
hostname {name}
echo "127.0.0.1 localhost {name}" > etc/hosts
chroot . /usr/sbin/cron
exec chroot . /usr/sbin/sshd -D -e
"""
"""This machine's own /root is not the instance's to see."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What the cloud's books say of an instance. spot: rented as interruptible."""

    id: str
    type: str
    region: str
    zone: str
    state: str
    spot: bool
    private: str | None
    public: str | None
    tags: dict[str, str]

    @property
    def name(self) -> str:
        """The name of its SkyPilot cluster."""
        return self.tags.get("ray-cluster-name") or self.tags.get("Name", "")


@dataclass(slots=True)
class _Machine:
    instance: Instance
    folder: Path
    process: subprocess.Popen[bytes] | None = None


class Machines:
    """clients: region to boto3's EC2 client. layer: the unpacked golden layer. boot_s: seconds that a boot takes."""

    def __init__(self, clients: dict[str, Any], layer: Path, folder: Path, boot_s: float = 1.0) -> None:
        self._clients = clients
        self._layer = layer
        self._folder = folder
        self._boot_s = boot_s
        self._machines: dict[str, _Machine] = {}
        self._due: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="machines", daemon=True)
        self.log: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(30)
        for machine in list(self._machines.values()):
            self._remove(machine)

    def listed(self) -> list[Instance]:
        """All that the cloud's books hold, the terminated ones too. Raises what boto3 raises."""
        found = []
        for region in REGIONS:
            for page in self._clients[region].describe_instances()["Reservations"]:
                found += [_instance(region, told) for told in page["Instances"]]
        return found

    def by_address(self, address: str) -> str | None:
        """The id of the machine that has this public address; of one without, this private address."""
        machines = [machine.instance for machine in self._machines.values()]
        return next((each.id for each in machines if (each.public or each.private) == address), None)

    def _keep(self) -> None:
        while not self._over.wait(1.0):
            try:
                listed = {each.id: each for each in self.listed()}
                for instance in listed.values():
                    self._match(instance)
            except Exception as error:  # noqa: BLE001 - its machines run on, whatever moto says
                self.note(f"not matched: {error!r}")

    def _match(self, instance: Instance) -> None:
        machine = self._machines.get(instance.id)
        runs = machine is not None and machine.process is not None
        if instance.state in ALIVE and not runs:
            due = self._due.setdefault(instance.id, time.monotonic() + self._boot_s)
            if time.monotonic() >= due:
                del self._due[instance.id]
                self._boot(instance)
        elif machine is not None and runs and instance.state not in ALIVE:
            self._power_off(machine)
        if machine is not None and instance.state not in KEPT:
            self._remove(machine)

    def _boot(self, instance: Instance) -> None:
        machine = self._machines.get(instance.id) or self._new(instance)
        machine.instance = instance
        namespace = instance.id[-12:]
        network.plug_in(namespace, str(instance.private), instance.public)
        name = "ip-" + str(instance.private).replace(".", "-")
        script = BOOT.format(root=machine.folder / "root", name=name)
        alone = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child=SIGKILL"]
        with (self._folder / f"{instance.id}.log").open("ab") as log:
            machine.process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *alone, "bash", "-ec", script],
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.note(
            f"{instance.name} boots: {instance.type} {instance.zone} {'spot' if instance.spot else 'on demand'}"
        )

    def _new(self, instance: Instance) -> _Machine:
        folder = self._folder / instance.id
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        layers = f"lowerdir={self._layer}:/,upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, folder / "root"], check=True)
        told = self._clients[instance.region].describe_instance_attribute(
            InstanceId=instance.id, Attribute="userData"
        )
        script = base64.b64decode(told["UserData"].get("Value", "")).decode()
        keys = folder / f"root/home/{golden.USER}/.ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        # Of cloud-init's work only the key: it is all that SkyPilot waits for.
        keys.write_text("\n".join(re.findall(r"(?:ssh-(?:rsa|ed25519)|ecdsa-\S+) \S+", script)) + "\n")
        keys.chmod(0o600)
        for path in (keys.parent, keys):
            shutil.chown(path, golden.UID, golden.UID)
        machine = _Machine(instance, folder)
        self._machines[instance.id] = machine
        return machine

    def _power_off(self, machine: _Machine) -> None:
        assert machine.process is not None
        machine.process.kill()
        machine.process.wait()
        machine.process = None
        instance = machine.instance
        network.unplug(instance.id[-12:], str(instance.private), instance.public)
        self.note(f"{instance.name} is off")

    def _remove(self, machine: _Machine) -> None:
        if machine.process is not None:
            self._power_off(machine)
        subprocess.run(["umount", "-l", machine.folder / "root"], check=False)
        shutil.rmtree(machine.folder, ignore_errors=True)
        self._machines.pop(machine.instance.id, None)

    def note(self, text: str) -> None:
        self.log.append(f"{time.strftime('%H:%M:%S')} {text}")


def _instance(region: str, told: dict[str, Any]) -> Instance:
    return Instance(
        id=told["InstanceId"],
        type=told["InstanceType"],
        region=region,
        zone=told["Placement"]["AvailabilityZone"],
        state=told["State"]["Name"],
        spot=told.get("InstanceLifecycle") == "spot",
        private=told.get("PrivateIpAddress"),
        public=told.get("PublicIpAddress"),
        tags={tag["Key"]: tag["Value"] for tag in told.get("Tags", ())},
    )
