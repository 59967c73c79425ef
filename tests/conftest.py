"""Rules for every test: nothing of the user's is touched, and nothing required is skipped."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.frontends.terminals import Done, Terminal

REQUIRED = frozenset(os.environ.get("TUNA_TEST_REQUIRE", "").split())
"""Marks whose tests may not be skipped: where this is set, a skip is a failure."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background like that, and children inherit it: theirs is a terminal's.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ACCOUNTS = (
    "AWS_",
    "AZURE_",
    "BASETEN_",
    "CEREBRIUM_",
    "CLOUDRUN_",
    "CLOUDSDK_",
    "GOOGLE_",
    "GPUHUNT_",
    "MODAL_",
    "RUNPOD_",
    "SKYPILOT_",
    "TENSORDOCK_",
    "VAST_",
    "VASTAI_",
)
"""Beginnings of the variables by which providers know their users."""
PRICE_LISTS = (
    "AZURE_PRICES_URL",
    "GPUHUNT_CATALOG_URL",
    "TENSORDOCK_URL",
    "TUNA_GOOGLE_BILLING_URL",
    "TUNA_SKYPILOT_CATALOG_URL",
    "VAST_URL",
)
"""Price lists that anybody may read: no test reads the real ones."""
SIGNED_IN = (
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AZURE_CONFIG_DIR",
    "CLOUDSDK_CONFIG",
    "HF_TOKEN_PATH",
    "MODAL_CONFIG_PATH",
)
"""Where providers' own tools keep what they know of the user."""


def pytest_configure() -> None:
    """No test meets a real account, in whichever process: a deploy without a provider's name takes the cheapest."""
    for name in [name for name in os.environ if name.startswith(ACCOUNTS)]:
        del os.environ[name]
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(name, None)
    # Some make what they do not find there, and in "/nonexistent" root can.
    nowhere = tempfile.mkdtemp(prefix="tuna-nobody-")
    atexit.register(shutil.rmtree, nowhere, ignore_errors=True)
    for name in SIGNED_IN:
        os.environ[name] = f"{nowhere}/{name.lower()}"
    os.environ["NO_GCE_CHECK"] = "true"
    for name in PRICE_LISTS:
        os.environ[name] = "http://127.0.0.1:9"
    # A shell that starts a script in the background has Ctrl-C ignored there, by all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a data folder of its own, also in the processes that it starts."""
    folder = tmp_path / "data"
    for name in ("TUNA_DATABASE_URL", "TUNA_NB_MODE", "TUNA_LOCAL_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNA_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def home(own_data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal in the test's own folder. The test must leave nothing there."""
    from tests.frontends.terminals import Terminal

    _forget_backends(monkeypatch)
    yield Terminal(own_data_folder)
    nothing_may_be_left(own_data_folder)


@pytest.fixture
def tuna(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Done]]:
    """tuna(*words, code=0): one command line in this process, which spares a second of imports."""
    from tests.frontends.terminals import Done
    from tuna_nb.frontends.terminal import main

    _forget_backends(monkeypatch)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main() sets it for its process

    def run(*words: str, code: int | None = 0) -> Done:
        capfd.readouterr()
        done = Done(main(list(words)), *capfd.readouterr())
        assert code is None or done.code == code, done
        return done

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def nothing_may_be_left(folder: Path) -> None:
    """Fails where a process, record or key of the folder is left, and removes it."""
    from tests.deployments import leftovers

    try:
        asyncio.run(leftovers.assert_nothing_left(folder))
    except BaseException:
        asyncio.run(leftovers.clear(folder))
        raise


def _forget_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    # A backend remembers the folder that it was made for, and every test has another.
    from tuna_nb.backends import registry

    monkeypatch.setattr(registry, "_loaded", {})


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    needed = REQUIRED & {mark.name for mark in item.iter_markers()}
    if report.skipped and not hasattr(report, "wasxfail") and needed:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"required here ({', '.join(sorted(needed))}), but {reason}"
