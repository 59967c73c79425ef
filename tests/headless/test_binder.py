"""Binder: what repo2docker makes of this repository, without docker and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.headless.notebooks import ROOT

BINDER = ROOT / "binder"
PIN = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==(\S+)")


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Dockerfile that Binder would build, from the tracked files alone."""
    folder = tmp_path_factory.mktemp("binder") / "tuna"
    folder.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        source = ROOT / name
        if source.is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())
            (folder / name).chmod(source.stat().st_mode)
    done = subprocess.run(
        [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(folder)],
        capture_output=True, text=True, timeout=60, cwd=folder.parent,
        env={k: v for k, v in os.environ.items() if not k.startswith("DOCKER")} | {"HOME": str(folder.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_repo2docker_takes_the_binder_folder(dockerfile: str) -> None:
    assert "binder/requirements.txt" in dockerfile
    assert "./binder/postBuild" in dockerfile
    assert "R2D_ENTRYPOINT" in dockerfile
    assert re.search(r"R2D_ENTRYPOINT.*binder/start", dockerfile)
    # From runtime.txt: the Python that the project asks for.
    assert "3.11" in dockerfile


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_its_scripts_can_be_executed(name: str) -> None:
    path = BINDER / name
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    listed = subprocess.run(
        ["git", "ls-files", "--stage", str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert listed.stdout.startswith("100755 ")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_start_runs_what_it_is_given_with_a_folder_for_tuna(tmp_path: Path) -> None:
    script = "import os, sys; print(sys.argv[1:], os.environ['TUNA_DATA_DIR'])"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TUNA_")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [str(BINDER / "start"), sys.executable, "-c", script, "a b", "c"],
        env=environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"['a b', 'c'] {tmp_path}/.local/share/tuna\n"
    failed = subprocess.run([str(BINDER / "start"), "false"], env=environ, check=False)
    assert failed.returncode == 1


def test_post_build_installs_this_checkout_by_the_pins() -> None:
    said = (BINDER / "postBuild").read_text()
    assert "-c constraints.txt" in said
    for package in ("./router", "'.[lab,all]'"):
        assert package in said


def test_requirements_are_pinned_by_the_constraints() -> None:
    """One place says which version: the constraints, which hold names and versions only."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            match = PIN.match(line)
            assert match, line
            assert "://" not in line
            pins[match[1].lower().replace("_", "-")] = match[2]
    lines = (BINDER / "requirements.txt").read_text().splitlines()
    assert "-c ../constraints.txt" in lines
    wanted = [line for line in lines if line and not line.startswith(("#", "-"))]
    assert wanted
    for line in wanted:
        name, _, version = line.partition("==")
        assert name.lower() in pins
        assert version in ("", pins[name.lower()])


def test_only_one_folder_is_for_binder() -> None:
    assert not (ROOT / ".binder").exists()
    assert (BINDER / "runtime.txt").read_text().strip() == "python-3.11"
