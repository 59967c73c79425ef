"""Clouds in folders of their own; at the end of each, not one process of it is left."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.backends.local.clouds import daemons, engines
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.errors import TunaError


def cloud_id(folder: Path) -> str | None:
    try:
        with sqlite3.connect(f"{(folder / 'journal.db').as_uri()}?mode=rw", uri=True) as db:
            return str(db.execute("SELECT value FROM about WHERE key='cloud_id'").fetchone()[0])
    except sqlite3.Error:
        return None


def end(backend: LocalBackend) -> None:
    """Shut the cloud down and look for what it may have left."""
    known = cloud_id(backend.folder)
    try:
        asyncio.run(backend.cloud.shutdown(force=True))
    except TunaError:
        # The test broke the journal on purpose; its daemon, if any, must have gone by itself.
        assert known is None
    left = daemons(backend.folder) + (engines(known) if known else [])
    shown = [(p.pid, p.cmdline()) for p in left]
    for process in left:
        process.kill()
    assert shown == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackend]:
    """One cloud for the tests of a file that don't break it."""
    backend = LocalBackend(tmp_path_factory.mktemp("shared") / "cloud", idle_exit_s=30)
    yield backend
    end(backend)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalBackend]:
    """A cloud for one test, which may do to it what it likes."""
    backend = LocalBackend(tmp_path / "cloud", idle_exit_s=30)
    yield backend
    end(backend)


@pytest.fixture
async def unclouded(shared: LocalBackend) -> AsyncIterator[None]:
    """After the test the shared cloud has no resource any more, so that no engine takes time from the next."""
    yield
    for ref in await shared.list_owned():
        await shared.destroy(ref)
