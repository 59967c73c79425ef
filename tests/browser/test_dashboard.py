"""The live board in JupyterLab, over a real deployment under load: through a preemption, in both themes, narrow, by
keyboard; it asks nobody once nobody looks, and leaves plain HTML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.browser.conftest import SHOTS
from tests.browser.lab import JupyterServer, NotebookPage
from tests.conftest import nothing_may_be_left
from tests.frontends.terminals import MODEL, Terminal, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

Open = Callable[..., NotebookPage]
WIDGET = "application/vnd.jupyter.widget-view+json"
NAME = "seen"
STATUS = f"%tuna status --service-name {NAME} --live"
COST = f"%tuna cost --service-name {NAME} --live"
LOAD = """
import asyncio, json, sys
from tuna_nb.benchmarks.load.run import run
from tuna_nb.benchmarks.load.spec import Arrivals, Lengths, LoadSpec, Prompts, Target
url, key, model = sys.argv[1:]
target = Target(url, (model,), {"Authorization": f"Bearer {key}"})
prompts = Prompts(input_tokens=Lengths(16), output_tokens=Lengths(24))
asyncio.run(run(LoadSpec(target, Arrivals("constant", rate=6.0), prompts, requests=100_000), lambda rows: None))
"""


@pytest.fixture(scope="module")
def seen(lab: JupyterServer) -> Iterator[Terminal]:
    """A deployment in the folder of JupyterLab's kernels."""
    terminal = Terminal(lab.data_folder)
    settings = ("cold_start_s=0", "boot_s=2", "notice_s=0", "decode_tokens_per_s=60")
    words = [word for setting in settings for word in ("--option", setting)]
    terminal(
        "deploy", "--model", MODEL, "--gpu", "L4", "--service-name", NAME, "--wait", "--no-scale-to-zero", *words
    )
    yield terminal
    terminal("destroy", "--all")
    # Playwright's loop runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(nothing_may_be_left, terminal.folder).result()


@contextmanager
def load(terminal: Terminal) -> Iterator[None]:
    """Six streamed requests a second, from a process of its own."""
    told = dict(
        line.removeprefix("export ").split("=", 1) for line in terminal("connect", NAME, "--env").out.splitlines()
    )
    words = [told["OPENAI_BASE_URL"].strip("'"), told["OPENAI_API_KEY"].strip("'"), MODEL]
    with subprocess.Popen([sys.executable, "-c", LOAD, *words], env=terminal.environ) as process:
        try:
            yield
        finally:
            process.kill()


def board(page: NotebookPage, cell: int = 1) -> Any:
    return page.output(cell).locator("[data-tuna-board]")


def tile(place: Any, label: str) -> str:
    found = place.locator(".tile").filter(has=place.page.locator("dt", has_text=label)).locator("dd").first
    return str(found.inner_text())


def theme(page: NotebookPage, name: str) -> None:
    page.page.evaluate(
        "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name}).then(() => null)", name
    )
    page.page.wait_for_function(
        "dark => document.body.dataset.jpThemeLight === (dark ? 'false' : 'true')", arg="Dark" in name
    )


def listeners(terminal: Terminal) -> int:
    """Connections to the router from kernels: what else runs on this machine is no kernel."""
    port = port_of(terminal)
    kernels = [
        p for p in psutil.process_iter(["cmdline"]) if "ipykernel_launcher" in " ".join(p.info["cmdline"] or ())
    ]
    found = [c for kernel in kernels for c in kernel.net_connections() if c.raddr and c.raddr.port == port]
    return sum(c.status == psutil.CONN_ESTABLISHED for c in found)


def port_of(terminal: Terminal) -> int:
    """Of the router, as it notes it itself."""
    (noted,) = (terminal.folder / "routers").glob("*/router.json")
    return int(json.loads(noted.read_text())["port"])


def bundles(page: NotebookPage, cell: int = 1) -> list[dict[str, Any]]:
    return [o["data"] for o in page.cells()[cell]["outputs"] if "data" in o]


def shot(place: Any, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    place.screenshot(path=str(SHOTS / f"{name}.png"))


def test_a_preemption_is_watched_in_both_themes(lab: JupyterServer, seen: Terminal, open_notebook: Open) -> None:
    page = open_notebook(lab, ["%load_ext tuna_nb", STATUS])
    with load(seen):
        page.run_all()
        assert page.errors() == []
        place = board(page)
        until(lambda: float(tile(place, "requests/s")) > 4, 40)
        until(lambda: tile(place, "first token").endswith("s"), 20)
        page.page.wait_for_timeout(12_000)
        assert "spot" in place.locator(".split").inner_text()
        seen("local", "preempt", "--service-name", NAME)
        place.locator(".events .preemption").first.wait_for()
        until(lambda: "serverless" in place.locator(".split").inner_text(), 20)
        shot(place, "board-preempted-light")
        assert place.locator(".taken-head").count() >= 2
        until(lambda: "READY" in place.locator(".events li").first.inner_text(), 40)
        page.page.wait_for_timeout(12_000)
        for name, look in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
            theme(page, name)
            page.page.wait_for_timeout(1500)
            shot(place, f"board-{look}")
            for what in (".tile dt", ".tile dd", ".note", "td", "thead th", ".events li", ".link", "h4 span"):
                assert page.page.evaluate(_CONTRAST, what) >= 4.5, (name, what)
    assert page.external == []


def test_nobody_is_asked_once_nobody_looks_and_the_board_goes_on_when_one_does(
    lab: JupyterServer, seen: Terminal, open_notebook: Open
) -> None:
    busy = "import time\ntime.sleep(20)\nprint('slept')"
    page = open_notebook(lab, ["%load_ext tuna_nb", STATUS, busy])
    page.start_cell(0)
    page.start_cell(1)
    place = board(page)
    place.locator(".good").wait_for()
    until(lambda: listeners(seen) == 1, 10)

    # A kernel that is busy hears no page; nobody is taken for gone, and the figures come.
    page.start_cell(2)
    place.locator(".tile").first.wait_for()
    page.page.wait_for_timeout(16_000)
    assert "slept" not in page.output(2).inner_text()
    until(lambda: listeners(seen) == 1, 2)
    assert "slept" not in page.output(2).inner_text()
    place.locator(".good").wait_for()
    page.output(2).get_by_text("slept").wait_for()

    # Its output is cleared away: the page says so, and the kernel asks nobody any more.
    page.command("notebook:clear-all-cell-outputs")
    until(lambda: listeners(seen) == 0, 10)

    # A tab that is killed says nothing.
    page.start_cell(1)
    place.locator(".good").wait_for()
    until(lambda: listeners(seen) == 1, 10)
    page.save()
    page.leave()
    until(lambda: listeners(seen) == 0, 20)

    # Opened again while the kernel lives, it is live again.
    again = open_notebook(lab, name=page.name)
    place = board(again)
    place.locator(".good").wait_for()
    until(lambda: listeners(seen) == 1, 10)


def test_stop_rerun_and_interrupt_leave_plain_html(lab: JupyterServer, seen: Terminal, open_notebook: Open) -> None:
    page = open_notebook(lab, ["%load_ext tuna_nb", STATUS, COST, "%unload_ext tuna_nb"])
    page.start_cell(0)
    page.start_cell(1)
    board(page).locator(".tile.money").first.wait_for()
    page.page.wait_for_timeout(3000)
    # The same deployment is shown elsewhere: the older board stays as it was last.
    page.start_cell(2)
    money = board(page, 2)
    money.locator(".tile.money").first.wait_for()
    until(lambda: all(WIDGET not in data for data in bundles(page, 1)), 10)
    assert "spent" in bundles(page, 1)[0]["text/html"]
    until(lambda: money.locator(".tile").first.locator("dt").inner_text() == "per hour now", 10)
    page.page.wait_for_timeout(3000)
    shot(money, "board-cost-light")

    # By keyboard: Stop, charts, events; arrows read the charts; nothing holds the focus.
    keys, here = page.page.keyboard, "() => document.activeElement.shadowRoot.activeElement.className || 'button'"
    money.get_by_role("button", name="Stop").focus()
    stops = []
    for _ in range(3):
        stops.append(page.page.evaluate(here))
        if stops[-1] == "charts":
            keys.press("ArrowLeft")
            assert "at " in money.locator(".hidden[role=status]").first.inner_text()
            assert money.locator(".cross").count() >= 4
            keys.press("Escape")
            assert money.locator(".cross").count() == 0
        keys.press("Tab")
    assert stops == ["button", "charts", "events"]
    assert not page.page.evaluate("() => Boolean(document.activeElement.shadowRoot)"), "the next Tab leaves it"
    assert "per hour" in money.locator("div.hidden[role=status]").last.inner_text()

    money.get_by_role("button", name="Stop").focus()
    keys.press("Enter")
    until(lambda: all(WIDGET not in data for data in bundles(page, 2)), 10)
    until(lambda: listeners(seen) == 0, 10)
    page.output(2).get_by_text(re.compile("as of 20")).wait_for()
    shot(page.output(2), "board-stopped-light")

    # An interrupt of the idle kernel stops it, too; so does leaving the extension.
    page.start_cell(1)
    board(page).locator(".good").wait_for()
    page.command("notebook:interrupt-kernel")
    until(lambda: all(WIDGET not in data for data in bundles(page, 1)), 10)
    page.start_cell(2)
    board(page, 2).locator(".good").wait_for()
    page.start_cell(3)
    until(lambda: all(WIDGET not in data for data in bundles(page, 2)), 10)
    until(lambda: listeners(seen) == 0, 10)
    assert page.errors() == []
    saved = page.save()
    assert WIDGET not in json.dumps(saved)
    assert len(json.dumps(saved)) < 100_000
    page.close()

    again = open_notebook(lab, name=page.name)
    again.output(2).get_by_text(re.compile("as of 20")).wait_for()
    assert again.page.get_by_text("Error displaying widget").count() == 0
    theme(again, "JupyterLab Dark")
    shot(again.output(2), "board-reopened-dark")
    theme(again, "JupyterLab Light")
    assert again.external == []


def test_a_narrow_page_has_it_in_one_column(lab: JupyterServer, seen: Terminal, open_notebook: Open) -> None:
    page = open_notebook(lab, ["%load_ext tuna_nb", COST], width=480)
    with load(seen):
        page.run_all()
        place = board(page)
        until(lambda: float(tile(place, "requests/s")) > 2, 40)
        place.locator(".panel").nth(3).wait_for()
        page.page.wait_for_timeout(6000)
        shot(place, "board-narrow-light")
        lefts = {round(box.bounding_box()["x"]) for box in place.locator(".panel").all()}
        assert len(lefts) == 1
        wide = page.page.evaluate("() => { const h = document.querySelector('[data-tuna-board]').shadowRoot"
                                  ".querySelector('section'); return h.scrollWidth - h.clientWidth; }")  # fmt: skip
        assert wide <= 0
        theme(page, "JupyterLab Dark")
        page.page.wait_for_timeout(1500)
        shot(place, "board-narrow-dark")
        theme(page, "JupyterLab Light")


def test_a_router_that_is_restarted_is_found_again_and_one_that_is_gone_is_said_to_be(
    lab: JupyterServer, seen: Terminal, open_notebook: Open
) -> None:
    page = open_notebook(lab, ["%load_ext tuna_nb", STATUS])
    page.run_all()
    place = board(page)
    place.locator(".good").wait_for()
    page.page.wait_for_timeout(3000)
    (router,) = {
        c.pid
        for c in psutil.net_connections()
        if c.laddr and c.laddr.port == port_of(seen) and c.status == psutil.CONN_LISTEN
    }
    psutil.Process(router).suspend()
    try:
        place.locator(".bad").wait_for(timeout=30_000)
        assert "can't be reached; the figures are" in place.locator(".link").inner_text()
        page.page.wait_for_timeout(2000)
        shot(place, "board-lost-light")
    finally:
        psutil.Process(router).resume()
    place.locator(".good").wait_for(timeout=30_000)
    seen("router", "restart", "--service-name", NAME)
    place.locator(".good").wait_for(timeout=30_000)
    until(lambda: listeners(seen) == 1, 20)


_CONTRAST = """place => {
    const rgb = s => { const v = s.match(/[\\d.]+/g).map(Number); return [...v.slice(0, 3), v[3] ?? 1]; };
    const light = c => { const [r, g, b] = c.map(v => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const up = e => e.parentElement || (e.getRootNode() instanceof ShadowRoot ? e.getRootNode().host : null);
    // Text against what is behind it by WCAG's formula: 4.5 is the least for small text.
    const behind = e => {
        const layers = [];
        for (let at = e; at; at = up(at)) {
            const c = rgb(getComputedStyle(at).backgroundColor);
            if (c[3]) layers.push(c);
            if (c[3] === 1) break;
        }
        return layers.reverse().reduce((below, [r, g, b, a]) =>
            [r, g, b].map((v, i) => v * a + below[i] * (1 - a)), [255, 255, 255]);
    };
    const contrast = e => {
        let [r, g, b, alpha] = rgb(getComputedStyle(e).color);
        for (let at = e; at; at = up(at)) alpha *= Number(getComputedStyle(at).opacity);
        const back = behind(e), mixed = [r, g, b].map((v, i) => v * alpha + back[i] * (1 - alpha));
        const [x, y] = [light(mixed), light(back)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const found = [...document.querySelector('[data-tuna-board]').shadowRoot.querySelectorAll(place)];
    return Math.min(...found.filter(e => e.innerText.trim()).map(contrast));
}"""
