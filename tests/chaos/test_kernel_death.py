"""A kernel that dies in the middle of a deploy: nothing is lost, and the next kernel takes up where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from tests.chaos.folders import assert_nothing_left, owned
from tuna_nb.settings import Settings
from tuna_nb.store import Store

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

DEPLOY = (
    "%tuna deploy --model Qwen/Qwen3-0.6B --gpu L4 --service-name kernel --option cold_start_s=1 --option boot_s=4"
)
STEPS = ["serverless on local", "router", "first answer", "spot is booting; serverless answers meanwhile"]


def tuna(*words: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "tuna_nb", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "json" in words else done.stdout


def wait_for_step(store: Store, wanted: str) -> None:
    """Until the job has reached the step, or is past it: steps can be shorter than a look at the store."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        step = next((j.step for j in store.jobs(name="kernel")), None)
        if step in STEPS and STEPS.index(step) >= STEPS.index(wanted):
            return
        time.sleep(0.005)
    raise AssertionError(f"the deploy never came to {wanted!r}")


@pytest.mark.parametrize("step", STEPS)
def test_a_kernel_killed_during_a_deploy_is_taken_over_by_the_next(step: str, own_data_folder: Path) -> None:
    environment = os.environ | {"TUNA_NB_MODE": "widget"}
    manager, client = start_new_kernel(env=environment)
    store = Store(Settings.load())
    try:
        client.execute_interactive("%load_ext tuna_nb", timeout=30, output_hook=lambda _m: None)
        client.execute(DEPLOY)
        wait_for_step(store, step)
        pid = manager.provisioner.pid
        os.kill(pid, signal.SIGKILL)
        manager.provisioner.process.wait()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

    listed = tuna("list", "-o", "json")
    states = {d["name"]: d["state"] for d in listed["deployments"]}
    assert states.get("kernel") in ("interrupted", "running")
    assert listed["orphans"] == []
    before = owned(own_data_folder)

    manager, client = start_new_kernel(env=environment)
    try:
        said: list[str] = []
        for code in ("%load_ext tuna_nb", f"job = {DEPLOY}\n(await job).state"):
            reply = client.execute_interactive(
                code, timeout=90, output_hook=lambda m: said.append(str(m["content"]))
            )
            assert reply["content"]["status"] == "ok", said
        assert "running" in "".join(said)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    # What the first kernel had made is used, not made again.
    assert before <= owned(own_data_folder)
    assert len(owned(own_data_folder)) == 2
    assert [d["state"] for d in tuna("list", "-o", "json")["deployments"]] == ["running"]
    tuna("destroy", "--all")
    store.close()
    assert_nothing_left(own_data_folder)
