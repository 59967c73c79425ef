"""An account at each pretended provider: its fake running, the environment that the adapter reads, the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import pytest

from tests.fakes.cloud import FakeCloud
from tuna_nb.backends.base import Backend


@dataclass
class Account:
    """gpu: one that the provider sells. names: of everything in the account, others' resources included. options:
    the provider's own settings that a deployment needs here."""

    backend: Backend
    cloud: FakeCloud
    gpu: str
    names: Callable[[], list[str]]
    options: dict[str, str] = field(default_factory=dict)


Open = Callable[[pytest.MonkeyPatch], AbstractContextManager[Account]]


@contextmanager
def runpod(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    from tests.fakes.runpod import KEY, FakeRunpod
    from tuna_nb.backends.runpod import RunpodBackend

    with FakeRunpod() as cloud:
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        yield Account(RunpodBackend(cloud.url, pace=0.05), cloud, "L4", lambda: cloud.names)


ACCOUNTS: dict[str, Open] = {"runpod": runpod}
"""By the provider's name."""
