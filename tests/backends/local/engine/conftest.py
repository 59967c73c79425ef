from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from .engine_process import AT_ONCE, EngineProcess


@pytest.fixture(scope="session")
def engine() -> Iterator[EngineProcess]:
    """One engine for all tests that order no fault: no time passes in it, and its context is 2048 tokens."""
    with EngineProcess(*AT_ONCE, "--max-model-len", "2048") as running:
        yield running


@pytest.fixture(scope="session")
def http(engine: EngineProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=10, trust_env=False) as client:
        yield client
