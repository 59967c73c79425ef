"""Unmodified SkyPilot with a cloud of its own: moto's EC2 for the books, namespaces of this machine for the instances.

`python -m tests.rig` makes the namespaces; a Rig is what is inside them. SkyPilot believes in an AWS account with three
regions; its home, its settings and the cloud's endpoint are all that it is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.rig import catalogs, golden, network
from tests.rig.cloud import OWNER
from tests.rig.instances import KEPT, Instance, Machines
from tests.rig.metadata import Metadata

ROOT = Path(__file__).parents[2]
CLOUD = f"http://{network.GATEWAY}:5000"
SERVER = "http://127.0.0.1:46580"
SSHD = """PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
SetEnv {variables}
"""
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
CODE = "/opt/tuna"
"""Where the instances find this repository's packages."""
ENGINE = "rig-engine --model {model} --host {host} --port {port}"
"""The stand-in as a command of the user's: found here and on the instances."""
KEPT_VARIABLES = frozenset(
    {"LANG", "TERM", "TUNA_RIG_ASLEEP_S", "TUNA_RIG_DIR", "TUNA_RIG_RUN", "TUNA_TEST_REQUIRE"}
)
PYTHON = f"/home/{golden.USER}/sky-user-env/bin/python"
"""On the instances: has what the stand-in engine imports."""


def run_folder() -> Path:
    """One run's files: SkyPilot's home and all logs. It is kept until the next run of the name, to be read."""
    return golden.folder() / os.environ.get("TUNA_RIG_RUN", "run")


def environment() -> dict[str, str]:
    """The variables of everything in the rig. No account of the user's is among them."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES}
    folder = run_folder()
    code = (str(ROOT / "router"), str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(":")))
    authority = str(folder / "authority.pem")
    return kept | {
        "HOME": str(folder / "home"),
        "PYTHONPATH": ":".join(dict.fromkeys(code)),
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "AWS_ENDPOINT_URL": CLOUD,
        "AWS_DEFAULT_REGION": "us-east-1",
        "REQUESTS_CA_BUNDLE": authority,
        "SSL_CERT_FILE": authority,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(golden.wheels()),
        "TUNA_RIG": str(folder),
    }


class Rig:
    """consolidated: SkyServe's controllers run in SkyPilot's server and not on a machine of their own."""

    def __init__(self, consolidated: bool) -> None:
        if os.environ.get("TUNA_RIG") != str(run_folder()):
            raise RuntimeError("the rig runs in namespaces of its own: make rig, or python -m tests.rig")
        self.consolidated = consolidated
        self.folder = run_folder()
        self.home = Path(os.environ["HOME"])
        self._layer = self.folder / "memory/layer"
        self._began = time.monotonic()
        self._cloud: subprocess.Popen[bytes] | None = None
        self._clients: dict[str, Any] = {}
        self._internet = network.Internet(self.folder)

    # A run

    def start(self) -> None:
        self._write_home()
        if not self._layer.exists():
            network.build()
            self._layer.mkdir()
            golden.unpack(self._layer)
            self._internet.certify()
            self._finish_image()
        self._internet.start()
        self._start_cloud()
        self.machines = Machines(self._clients, self._layer, self.folder / "memory")
        self.metadata = Metadata(self.machines.by_address)
        self.metadata.start()
        self.machines.start()
        self.start_server()
        # As its user does once. Its own check at the start of the server may end later, and otherwise.
        self.wait("sky check", lambda: "AWS: enabled" in self.sky("check", "aws"), 180)

    def stop(self) -> None:
        """Ends everything in these namespaces but who asks."""
        self.machines.stop()
        self.metadata.stop()
        self._internet.stop()
        end_everything()
        # SkyPilot knows nothing of this run in the next one; its logs stay to be read.
        self.home.rename(self.home.with_name(f"home-{'consolidated' if self.consolidated else 'controlled'}"))

    def say(self, text: str) -> None:
        """A line with the seconds since the rig was made; pytest shows it with -s."""
        print(f"[{self.folder.name} {time.monotonic() - self._began:6.1f}] {text}", flush=True)

    def wait(self, what: str, seen: Callable[[], Any], timeout_s: float, every_s: float = 2.0) -> Any:
        """Asks until the answer is truthy, says how long it took, and returns it."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            if answer := seen():
                self.say(f"{what}: {time.monotonic() - began:.1f} s")
                return answer
            time.sleep(every_s)
        log = "\n".join(self.machines.log[-20:])
        raise TimeoutError(f"{what}: not in {timeout_s:.0f} s; the machines' log:\n{log}")

    def timed(self, what: str, done: Callable[[], Any]) -> Any:
        began = time.monotonic()
        answer = done()
        self.say(f"{what}: {time.monotonic() - began:.1f} s")
        return answer

    # The cloud

    def instances(self) -> list[Instance]:
        """Those that cost money or have a disk: neither terminated nor shutting down."""
        return [each for each in self.machines.listed() if each.state in KEPT]

    def take_away(self, instance: Instance) -> None:
        """As the cloud does with a spot machine: SkyPilot is not told."""
        self._clients[instance.region].terminate_instances(InstanceIds=[instance.id])
        self.say(f"taken away: {instance.name} in {instance.zone}")

    def power_off(self, instance: Instance) -> None:
        self._clients[instance.region].stop_instances(InstanceIds=[instance.id])

    def power_on(self, instance: Instance) -> None:
        """It has another public address afterwards, and none of its processes."""
        self._clients[instance.region].start_instances(InstanceIds=[instance.id])

    def faults(self, no_capacity: tuple[str, ...] = (), expired: bool = False) -> None:
        """What is wrong with the cloud from now on; nothing, when nothing is named."""
        self._ask_cloud(json.dumps({"no_capacity": no_capacity, "expired": expired}).encode())

    def refused(self) -> list[str]:
        """The regions in which machines were asked for in vain since the faults were last told."""
        return list(self._ask_cloud(None)["refused"])

    def _ask_cloud(self, told: bytes | None) -> Mapping[str, Any]:
        request = urllib.request.Request(f"{CLOUD}/rig/faults", data=told, method="PUT" if told else "GET")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))

    def _start_cloud(self) -> None:
        amis = self.folder / "amis.json"
        catalogs.write(self.home, amis)
        with (self.folder / "cloud.log").open("ab") as log:
            self._cloud = subprocess.Popen(
                [sys.executable, "-m", "tests.rig.cloud", network.GATEWAY, "5000"],
                cwd=ROOT,
                env={**os.environ, "MOTO_AMIS_PATH": str(amis), "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
                stdout=log,
                stderr=log,
            )
        import boto3

        keys = {"aws_access_key_id": OWNER, "aws_secret_access_key": "rig", "endpoint_url": CLOUD}
        self._clients = {region: boto3.client("ec2", region_name=region, **keys) for region in catalogs.REGIONS}
        began = time.monotonic()
        while True:
            try:
                self._ask_cloud(None)
                break
            except OSError:
                if time.monotonic() - began > 60:
                    raise
                time.sleep(0.2)
        for client in self._clients.values():
            _open_to_the_internet(client)

    # SkyPilot

    def start_server(self) -> None:
        subprocess.run(["sky", "api", "start"], check=True, cwd=self.home, stdin=subprocess.DEVNULL, timeout=180)

    def kill_server(self) -> None:
        """As when the machine that it runs on is switched off: none of its workers is left to hold a port."""
        import psutil

        for pid, words in processes():
            if "-m sky.server.server" in words:
                for each in (*psutil.Process(pid).children(recursive=True), psutil.Process(pid)):
                    _end(each.pid)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """As a laptop with its lid closed: nothing of Tuna or SkyPilot runs on it. Its serverless side stands for
        somebody else's cloud, and goes on."""
        ours = ("-m sky.server.server", "SkyPilot:", "-m tuna_nb.deployments.keeping.keeper", "-m tuna_router ")
        held = [pid for pid, words in processes() if runs_here(pid) and any(word in words for word in ours)]
        self.say(f"asleep: {len(held)} processes")
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in held:
                os.kill(pid, signal.SIGCONT)

    def sky(self, *words: str, timeout_s: float = 300) -> str:
        done = subprocess.run(
            ["sky", *words], cwd=self.home, capture_output=True, text=True, timeout=timeout_s, check=True
        )
        return done.stdout

    # What the home and the image hold

    def _write_home(self) -> None:
        (self.home / ".aws").mkdir(parents=True, exist_ok=True)
        (self.home / ".sky").mkdir(exist_ok=True)
        keys = "[default]\naws_access_key_id = rig\naws_secret_access_key = rig\n"
        (self.home / ".aws/credentials").write_text(keys)
        (self.home / ".aws/config").write_text(AWS_CONFIG)
        _program(self.folder / "bin/rig-engine", sys.executable, str(ROOT))
        mode = "true" if self.consolidated else "false"
        (self.home / ".sky/config.yaml").write_text(f"serve:\n  controller:\n    consolidation_mode: {mode}\n")

    def _finish_image(self) -> None:
        """What of the image is this run's own: the authority, the cloud's address, this repository's code."""
        variables = {
            "SSL_CERT_FILE": BUNDLE,
            "REQUESTS_CA_BUNDLE": BUNDLE,
            "AWS_ENDPOINT_URL": CLOUD,
            "UV_OFFLINE": "1",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": golden.WHEELS,
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        }
        listed = " ".join(f"{k}={v}" for k, v in variables.items())
        _write(self._layer / "etc/ssh/sshd_config", SSHD.format(variables=listed))
        _write(self._layer / BUNDLE.lstrip("/"), self._internet.bundle.read_text())
        _write(
            self._layer / "etc/resolv.conf", ""
        )  # every name is asked of the machine itself, and refused at once
        home = self._layer / "home" / golden.USER
        _write(home / ".aws/config", AWS_CONFIG)
        catalogs.write_common(home)
        code = self._layer / CODE.lstrip("/")
        left_out = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(ROOT / "tuna_nb", code / "tuna_nb", ignore=left_out)
        shutil.copytree(ROOT / "router/tuna_router", code / "tuna_router", ignore=left_out)
        _program(self._layer / "usr/local/bin/rig-engine", PYTHON, CODE)
        for folder in (".aws", ".sky"):
            subprocess.run(["chown", "-R", f"{golden.UID}:{golden.UID}", home / folder], check=True)


AWS_CONFIG = f"[default]\nregion = us-east-1\nendpoint_url = {CLOUD}\n"


def _program(path: Path, python: str, code: str) -> None:
    """The stand-in engine as a command."""
    _write(path, f'#!/bin/sh\nPYTHONPATH={code} exec {python} -m tuna_nb.backends.local.engine "$@"\n')
    path.chmod(0o755)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _open_to_the_internet(client: Any) -> None:
    """moto's default networks have no gateway, and SkyPilot would take all of their subnets for private."""
    vpc = next(each["VpcId"] for each in client.describe_vpcs()["Vpcs"] if each["IsDefault"])
    gateway = client.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    client.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    for table in client.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]:
        client.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)


def processes() -> list[tuple[int, str]]:
    """Every process of these namespaces with its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue
    return found


def runs_here(pid: int) -> bool:
    """Whether a process is this machine's own, and not one of an instance's."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


def end_everything() -> None:
    """Kills every process of these namespaces but this one and the first. Only where they are the rig's own."""
    first = dict(processes())[1]
    if "tests.rig --inside" not in first:
        raise RuntimeError("these are not the rig's own namespaces")
    for pid, _ in processes():
        if pid not in {1, os.getpid()}:
            _end(pid)


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
