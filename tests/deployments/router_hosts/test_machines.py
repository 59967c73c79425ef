"""What is asked of SkyPilot for a router's machine, and the way into one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuna_nb.backends.skyserve.machines import SkyMachines, cluster_spec, remote_server
from tuna_nb.errors import BackendError

pytestmark = pytest.mark.e2e

CHECK = """
import json, sys
import sky
task = sky.Task.from_yaml_config(json.loads(sys.argv[1]))
(resources,) = task.resources
print(json.dumps([resources.cpus, resources.memory, resources.use_spot, resources.ports, resources.labels,
    str(resources.cloud), resources.region, resources.autostop_config is None]))
"""


def test_skypilot_takes_the_machine_as_it_is_asked_for(tmp_path: Path) -> None:
    import json

    spec = cluster_spec("tuna-feedbeef00-router", "feedbeef00", 8080, "aws/us-east-1")
    environment = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps(spec)],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if "No module named 'sky'" in done.stderr:
        pytest.skip("SkyPilot is not installed here")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == ["2+", "4+", False, ["8080"], {"tuna-deployment": "feedbeef00"}, "AWS", "us-east-1", True]


def test_the_way_into_a_machine_is_private_and_changes_with_it(tmp_path: Path) -> None:
    handle = SimpleNamespace(cached_external_ips=["10.1.2.3"], cached_external_ssh_ports=[22], ssh_user="ubuntu")
    record = {
        "name": "sky-serve-controller-ab",
        "handle": handle,
        "cluster_hash": "h1",
        "credentials": {"ssh_private_key": "~/.sky/k", "ssh_private_key_content": "KEY\n", "ssh_user": "x"},
    }
    found = SkyMachines(tmp_path)._machine(record)
    assert found.address == "10.1.2.3"
    told = subprocess.run(
        ["ssh", "-G", "-F", str(found.ssh_config), found.name], capture_output=True, text=True, check=True
    ).stdout
    for line in ("hostname 10.1.2.3", "user ubuntu", "port 22", "hostkeyalias h1", "identitiesonly yes"):
        assert line in told.splitlines()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    with pytest.raises(BackendError, match="no address or no ssh key"):
        SkyMachines(tmp_path)._machine(record | {"credentials": None})


@pytest.mark.parametrize(
    ("endpoint", "remote"),
    [
        (None, False),
        ("http://127.0.0.1:46580", False),
        ("http://localhost:1", False),
        ("https://sky.example", True),
    ],
)
def test_an_api_server_elsewhere_is_known_by_its_address(
    endpoint: str | None, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if endpoint is None:
        monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    else:
        monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", endpoint)
    assert remote_server() is remote
