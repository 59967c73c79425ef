"""Real vLLM for the tests of this folder: its Python, two tiny models, and one deployment that they share."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.real_engine import prepare, tiny_model
from tests.real_engine.deployment import START_S, Client, Tuna

SERVICE = "real"
POLICY = """
serverless: {workers_max: 1, scaledown_window: 3600, concurrency: 8}
spot: {min_replicas: 1, max_replicas: 1}
"""


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python of the venv that prepare.py makes."""
    venv = prepare.venv_folder()
    if not prepare.is_ready(venv):
        pytest.skip(f"real vLLM is not prepared in {venv}: `make test-real-engine` does that, and runs this")
    return venv / "bin" / "python"


@dataclass(frozen=True)
class Models:
    """Folders. `good` serves, `raw` too but writes any bytes; `broken` starts, answers /health, and dies at its
    first request."""

    good: Path
    raw: Path
    broken: Path


@pytest.fixture(scope="session")
def models(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = Models(*(tmp_path_factory.mktemp(f"{name}-model") for name in ("good", "raw", "broken")))

    def make(folder: Path, *how: str) -> None:
        words = [str(vllm_python), tiny_model.__file__, str(folder), *how]
        subprocess.run(words, check=True, timeout=300, capture_output=True)

    with ThreadPoolExecutor() as pool:
        for done in (
            pool.submit(make, made.good),
            pool.submit(make, made.raw, "32", "raw"),
            pool.submit(make, made.broken, "16"),
        ):
            done.result()
    return made


@dataclass
class Deployed:
    """A deployment that is up. `first_answers`: who gave them, and what, while `deploy --wait` still waited."""

    tuna: Tuna
    client: Client
    first_answers: list[tuple[str, str]]


@pytest.fixture(scope="session")
def deployed(vllm_python: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The tiny model as local serverless and as local spot, each a real vLLM."""
    folder = tmp_path_factory.mktemp("real")
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)
    tuna = Tuna(folder / "data", vllm_python, models.good)
    # The spot machine boots while serverless already starts, as in life.
    deploy = tuna.start_deploy(SERVICE, "--option", "boot_s=15", "--scaling-policy", str(policy))
    try:
        client = connect(tuna, deploy)
        first_answers = []
        while deploy.poll() is None:
            backend, answer = client.chat()
            first_answers.append((backend, answer.choices[0].message.content))
            time.sleep(0.5)
        assert deploy.returncode == 0, deploy.communicate()[1]
        yield Deployed(tuna, client, first_answers)
    finally:
        clear(tuna, deploy)


def connect(tuna: Tuna, deploy: subprocess.Popen[str]) -> Client:
    """A client as soon as the endpoint is known, which is before the spot side is ready."""
    while True:
        try:
            return tuna.connect(SERVICE)
        except AssertionError:
            # Its record is not written yet, or it has failed.
            assert deploy.poll() is None, deploy.communicate()[1]
            time.sleep(0.5)


@pytest.fixture(scope="session")
def broken_deploy(
    vllm_python: Path, models: Models, deployed: Deployed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tuna, subprocess.Popen[str]]]:
    """A deploy of the broken model, under way in a cloud of its own.

    Begun when the good one is up and looked at by the last test: vLLM takes its minute to start three times.
    """
    tuna = Tuna(tmp_path_factory.mktemp("broken") / "data", vllm_python, models.broken)
    deploy = tuna.start_deploy("broken", "--serverless-only")
    try:
        yield tuna, deploy
    finally:
        clear(tuna, deploy)


def clear(tuna: Tuna, deploy: subprocess.Popen[str]) -> None:
    """Nothing of a deployment may outlive its tests, whatever became of them."""
    if deploy.poll() is None:
        deploy.terminate()
        try:
            deploy.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            deploy.kill()
    try:
        tuna.run("destroy", "--all", within=START_S)
    finally:
        for process in tuna.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
