"""A workspace of the test's own folder, with providers that a test can make fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import nothing_may_be_left
from tests.deployments.leftovers import settings_of
from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.jobs import Report


@pytest.fixture
def workspace(own_data_folder: Path) -> Iterator[Workspace]:
    """Over the local cloud of the test's own folder. The test must leave nothing there."""
    made = Workspace(settings_of(own_data_folder))
    made._backends["local"] = LocalBackend(own_data_folder / "local-cloud")
    yield made
    made.close()
    nothing_may_be_left(own_data_folder)


class Told:
    """A report that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.report = Report(self._publish)

    def _publish(self, *, log: str | None = None, **_: Any) -> None:
        if log is not None:
            self.lines.append(log)

    def __contains__(self, text: object) -> bool:
        return any(str(text) in line for line in self.lines)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def request_of() -> Callable[..., DeployRequest]:
    """A request for the stand-in that is up in about a second."""

    def make(name: str, boot_s: float = 0, **change: Any) -> DeployRequest:
        values: dict[str, Any] = {
            "service_name": name,
            "model": "Qwen/Qwen3-0.6B",
            "gpu": "L4",
            "serverless_provider": "local",
            "options": {"cold_start_s": "0", "boot_s": str(boot_s), "stop_grace_s": "1"},
        }
        return DeployRequest(**values | change)

    return make


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Callable[..., None]:
    """market(backend, ...): these providers are installed beside the local cloud."""

    def install(*backends: Backend) -> None:
        entries = {b.name: EntryPoint(b.name, "x:y", registry.GROUP) for b in backends}
        monkeypatch.setattr(registry, "_found", lambda: entries)
        for backend in backends:
            workspace._backends[backend.name] = backend

    return install
