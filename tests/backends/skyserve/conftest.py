"""One API server for all tests of a module: `import sky` costs seconds, and a process keeps its first HOME."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.skypilot import FakeSkyPilot, enter, home
from tuna_nb.backends.skyserve.accounts import SERVER
from tuna_nb.backends.skyserve.quiet import quiet


@pytest.fixture(scope="module")
def server() -> Iterator[FakeSkyPilot]:
    with FakeSkyPilot() as running:
        yield running


@pytest.fixture
def cloud(server: FakeSkyPilot, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSkyPilot]:
    """It has nothing of ours, and works."""
    server.reset()
    server.faults.calls.clear()
    enter(monkeypatch.setenv, server.url)
    yield server
    server.faults.clear()
    server.do(server.clear())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SkyPilot's own classes without any server; what they do to the process ends with the test."""
    enter(monkeypatch.setenv, "http://127.0.0.1:9")
    with quiet():
        yield


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No account anywhere."""
    enter(monkeypatch.setenv, "http://127.0.0.1:9")
    monkeypatch.delenv(SERVER)
    monkeypatch.setenv("HOME", str(home()))
