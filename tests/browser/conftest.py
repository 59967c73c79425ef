from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import CHROMIUM, JupyterServer, NotebookPage, chromium

SHOTS = Path(__file__).parent / "shots"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Ends with its module: while it lives, Playwright runs an event loop in this thread, and asyncio.run() fails."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium fonts-dejavu-core)")
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    with JupyterServer(tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("lab-home"), "lab") as server:
        yield server


@pytest.fixture(scope="module")
def notebook7(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    with JupyterServer(tmp_path_factory.mktemp("nb7"), tmp_path_factory.mktemp("nb7-home"), "notebook") as server:
        yield server


@pytest.fixture
def open_notebook(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., NotebookPage]]:
    """open_notebook(server, [cell, ...]) or open_notebook(server, name="there.ipynb")."""
    import nbformat

    pages: list[NotebookPage] = []

    def open_(server: JupyterServer, cells: list[str] | None = None, name: str | None = None, width: int = 1200):
        if name is None:
            name = f"{request.node.name}-{len(pages)}.ipynb"
        if cells is not None:
            made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
            made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(made, server.root / name)
        page = NotebookPage(server, browser, name, width)
        pages.append(page)
        return page

    yield open_
    report = getattr(request.node, "call_report", None)
    for number, page in enumerate(pages):
        if page.page.is_closed():
            continue
        if report is not None and report.failed:
            page.screenshot(SHOTS / f"FAILED-{request.node.name}-{number}.png")
            print("browser console:", *page.console[-20:], sep="\n  ")
        page.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    if call.when == "call":
        item.call_report = outcome.get_result()  # type: ignore[attr-defined]
