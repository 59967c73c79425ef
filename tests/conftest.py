"""Rules for every test: nothing of the user's is touched, and nothing required is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REQUIRED = frozenset(os.environ.get("TUNA_TEST_REQUIRE", "").split())
"""Marks whose tests may not be skipped: where this is set, a skip is a failure."""


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test has a data folder of its own, also in the processes that it starts."""
    folder = tmp_path / "data"
    for name in ("TUNA_DATABASE_URL", "TUNA_NB_MODE", "TUNA_LOCAL_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNA_DATA_DIR", str(folder))
    yield folder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    needed = REQUIRED & {mark.name for mark in item.iter_markers()}
    if report.skipped and not hasattr(report, "wasxfail") and needed:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"required here ({', '.join(sorted(needed))}), but {reason}"
