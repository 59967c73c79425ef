"""Kill -9 at every step of deploy and destroy: the list tells the truth, and destroying everything leaves nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.folders import assert_nothing_left, owned

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

DEPLOY = (
    "deploy --model Qwen/Qwen3-0.6B --gpu L4 --service-name crashed --wait --option cold_start_s=0 --option boot_s=0"
).split()
DESTROY = "destroy --service-name crashed".split()


def tuna(*words: str, folder: Path, code: int | None = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tuna_nb", *words],
        env=os.environ | {"TUNA_DATA_DIR": str(folder)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert code is None or done.returncode == code, done.stderr
    return json.loads(done.stdout) if "json" in words else done.stdout


def crash(at: int, words: list[str], folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.crashing", str(at), *words],
        env=os.environ | {"TUNA_DATA_DIR": str(folder)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def count_points(tmp_path: Path) -> tuple[int, int]:
    counts = []
    for words in (DEPLOY, DESTROY):
        code, said = crash(0, words, tmp_path / "counting")
        assert code == 0, said
        found = re.search(r"points: (\d+)", said)
        assert found
        counts.append(int(found[1]))
    assert_nothing_left(tmp_path / "counting")
    return counts[0], counts[1]


def test_a_crash_at_any_point_of_deploy_or_destroy_loses_nothing(tmp_path: Path) -> None:
    deploy_points, destroy_points = count_points(tmp_path)
    assert deploy_points > 20
    assert destroy_points > 10

    def crash_deploy(at: int) -> None:
        folder = tmp_path / f"deploy-{at}"
        code, said = crash(at, DEPLOY, folder)
        # The order of two things that happen side by side varies, so the last point may lie after the end.
        assert code in (-9, 0), said
        check_truth_then_clear(folder, said)

    def crash_destroy(at: int) -> None:
        folder = tmp_path / f"destroy-{at}"
        tuna(*DEPLOY, folder=folder)
        code, said = crash(at, DESTROY, folder)
        assert code in (-9, 0), said
        check_truth_then_clear(folder, said)

    # Each crash has a cloud of its own; most of the time is spent waiting, so a few go side by side.
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(crash_deploy, range(1, deploy_points + 1)))
        list(pool.map(crash_destroy, range(1, destroy_points + 1)))


def check_truth_then_clear(folder: Path, said: str) -> None:
    listed = tuna("list", "-o", "json", folder=folder)
    names = {d["name"]: d for d in listed["deployments"]}
    if owned(folder):
        # Whatever exists is shown, under its deployment, with the state it is really in.
        assert set(names) == {"crashed"}, (said, listed)
        assert names["crashed"]["state"] in ("interrupted", "running", "degraded"), (said, listed)
        shown = {c["name"] for c in names["crashed"]["components"] if c["state"] not in ("not created", "gone")}
        assert owned(folder) <= shown, (said, listed)
    assert listed["orphans"] == [], (said, listed)
    tuna("destroy", "--all", folder=folder)
    assert tuna("list", "-o", "json", folder=folder)["deployments"] == []
    assert_nothing_left(folder)


@pytest.mark.parametrize("at", [12, 20])
def test_deploying_again_finishes_what_a_crash_left_half_done(at: int, tmp_path: Path) -> None:
    code, said = crash(at, DEPLOY, tmp_path)
    assert code == -9, said
    tuna(*DEPLOY, folder=tmp_path)
    listed = tuna("list", "-o", "json", folder=tmp_path)
    assert [d["state"] for d in listed["deployments"]] == ["running"]
    assert len(owned(tmp_path)) == 2
    tuna("destroy", "--all", folder=tmp_path)
    assert_nothing_left(tmp_path)
