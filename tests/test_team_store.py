"""A team's PostgreSQL: the whole life of a deployment, seen by a colleague, keys staying where they were made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.folders import assert_nothing_left
from tests.postgres import database


def tuna(folder: Path, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuna_nb", *words],
        env=os.environ | {"TUNA_DATA_DIR": str(folder), "TUNA_DATABASE_URL": url},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.postgres
def test_a_colleague_sees_the_deployment_but_not_its_key(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    with database() as url:
        deploy = (
            "deploy --model Qwen/Qwen3-0.6B --gpu L4 --service-name team --option cold_start_s=0 --option boot_s=0"
        )
        done = tuna(mine, url, *deploy.split(), "--wait")
        assert done.returncode == 0, done.stderr
        seen = json.loads(tuna(theirs, url, "list", "-o", "json").stdout)["deployments"]
        assert [(d["name"], d["model"]) for d in seen] == [("team", "Qwen/Qwen3-0.6B")]
        refused = tuna(theirs, url, "connect", "team")
        assert refused.returncode == 1
        assert "the key of team is not on this machine" in refused.stderr
        assert tuna(mine, url, "connect", "team").returncode == 0
        assert tuna(mine, url, "destroy", "--all").returncode == 0
        assert json.loads(tuna(theirs, url, "list", "-o", "json").stdout)["deployments"] == []
        assert not (mine / "tuna.db").exists()
    assert_nothing_left(mine)
