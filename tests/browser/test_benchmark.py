"""A load test in JupyterLab: live percentiles, a preemption in the charts, both themes, a page that reads anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.browser.conftest import SHOTS
from tests.browser.lab import JupyterServer, NotebookPage
from tests.browser.test_dashboard import theme
from tests.conftest import nothing_may_be_left
from tests.frontends.terminals import MODEL, Terminal, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

Open = Callable[..., NotebookPage]
WIDGET = "application/vnd.jupyter.widget-view+json"
NAME = "measured"
SEND = (
    f"%tuna benchmark load-test --service-name {NAME} --rate 6 --duration 10s --output-tokens 24 --preempt-at 5s"
    " --slo ttft=1s,tpot=100ms --name {name}"
)


@pytest.fixture(scope="module")
def measured(lab: JupyterServer) -> Iterator[Terminal]:
    """A deployment in the folder of JupyterLab's kernels."""
    terminal = Terminal(lab.data_folder)
    words = ("--option", "cold_start_s=0", "--option", "boot_s=2", "--wait", "--no-scale-to-zero")
    terminal("deploy", "--model", MODEL, "--gpu", "L4", "--service-name", NAME, *words)
    yield terminal
    terminal("destroy", "--all")
    # Playwright's loop runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(nothing_may_be_left, terminal.folder).result()


def shot(page: NotebookPage, cell: int, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.output(cell).screenshot(path=str(SHOTS / f"{name}.png"))


def test_a_load_test_is_watched_and_leaves_a_report_in_both_themes(
    lab: JupyterServer, measured: Terminal, open_notebook: Open, browser: Any
) -> None:
    page = open_notebook(lab, ["%load_ext tuna_nb", SEND.format(name="seen")])
    page.start_cell(0)
    page.start_cell(1)
    live = page.output(1)
    until(lambda: "TTFT p50" in live.inner_text(), 40)
    shot(page, 1, "load-test-live")
    until(lambda: "seen: failed = 0 of" in live.inner_text(), 60)
    assert page.errors() == []
    said = live.inner_text()
    for part in ("$0.00", "goodput", "n too small", "spot was taken away", "cost of the run"):
        assert part in said, part
    page.page.wait_for_timeout(1500)
    for name in ("JupyterLab Dark", "JupyterLab Light"):
        theme(page, name)
        page.page.wait_for_timeout(500)
        shot(page, 1, f"load-test-{name.split()[-1].lower()}")
    assert WIDGET not in str(page.save())

    kept = measured.folder / "benchmarks" / "seen" / "report.html"
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, java_script_enabled=False, offline=True)
        alone = context.new_page()
        alone.goto(kept.as_uri())
        assert "seen: failed = 0 of" in alone.inner_text("body")
        assert alone.locator("svg").count() >= 3
        alone.screenshot(path=str(SHOTS / f"load-test-page-{scheme}.png"), full_page=True)
        context.close()


def test_an_interrupt_keeps_what_came(lab: JupyterServer, measured: Terminal, open_notebook: Open) -> None:
    endless = SEND.format(name="cut").replace("--duration 10s", "--duration 10m").replace("--preempt-at 5s", "")
    page = open_notebook(lab, ["%load_ext tuna_nb", endless])
    page.start_cell(0)
    page.start_cell(1)
    live = page.output(1)
    until(lambda: "TTFT p50" in live.inner_text(), 40)
    assert "stops it" in live.inner_text(), "a button would not be heard: the cell waits"
    assert live.get_by_role("button", name="Cancel").count() == 0
    page.command("notebook:interrupt-kernel")
    until(lambda: "are kept as 'cut'" in live.inner_text(), 30)
    told = measured("benchmark", "show", "cut", "-o", "json").json
    assert told["interrupted"]
    assert told["steps"][0]["figures"]["whole"] > 0
