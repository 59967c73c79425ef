"""A person in JupyterLab and Notebook 7: run all, watch, cancel, reopen, in the dark; nothing leaves the machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SHOTS
from tests.browser.lab import JupyterServer, NotebookPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

Open = Callable[..., NotebookPage]
QUICKSTART = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"
CHAT = (
    "r = client.chat.completions.create(model='Qwen/Qwen3-0.6B', "
    "messages=[{'role': 'user', 'content': 'hi'}], max_tokens=5)\nr.choices[0].finish_reason"
)


def deploy(name: str, *options: str) -> str:
    settings = " ".join(f"--option {o}" for o in options)
    return f"%tuna deploy --model Qwen/Qwen3-0.6B --gpu L4 --service-name {name} {settings}"


def wait_for(page: NotebookPage, cell: int, text: str, timeout_s: float = 60) -> None:
    page.output(cell).get_by_text(re.compile(text)).first.wait_for(timeout=timeout_s * 1000)


def bundles(page: NotebookPage, cell: int) -> list[dict[str, Any]]:
    return [o["data"] for o in page.cells()[cell]["outputs"] if "data" in o]


def test_the_quickstart_runs_in_jupyterlab_and_sends_nothing_outside(
    lab: JupyterServer, open_notebook: Open
) -> None:
    shutil.copy(QUICKSTART, lab.root / "quickstart.ipynb")
    page = open_notebook(lab, name="quickstart.ipynb")
    page.run_all(timeout_s=240)
    page.screenshot(SHOTS / "quickstart-lab.png")
    assert page.errors() == []
    assert page.external == []
    saved = page.save()
    assert len(json.dumps(saved)) < 200_000
    wait_for(page, 1, "done")
    assert "spot" in json.dumps(page.cells()[4]["outputs"])


def test_cancel_on_a_running_deploy_removes_what_it_made(lab: JupyterServer, open_notebook: Open) -> None:
    page = open_notebook(lab, ["%load_ext tuna_nb", deploy("cancelled", "boot_s=120"), "df = %tuna list\nlen(df)"])
    page.run_all()
    wait_for(page, 1, "spot is booting")
    page.screenshot(SHOTS / "deploying-lab.png")
    page.output(1).get_by_role("button", name="Cancel").click()
    wait_for(page, 1, "everything it had created is gone")
    page.screenshot(SHOTS / "cancelled-lab.png")
    page.start_cell(2)
    wait_for(page, 2, "^0$")
    # What is saved is readable anywhere: no widget is left in the output.
    assert all(WIDGET not in data for data in bundles(page, 1))
    assert any("cancelled" in data["text/html"] for data in bundles(page, 1))


def test_the_page_stays_usable_and_the_job_can_be_awaited(lab: JupyterServer, open_notebook: Open) -> None:
    page = open_notebook(
        lab,
        [
            "%load_ext tuna_nb",
            "job = " + deploy("awaited", "boot_s=3"),
            "print('the kernel is free')",
            "done = await job\ndone.state",
            "%tuna connect awaited as client",
            CHAT,
            "%tuna status --service-name awaited",
            "%tuna destroy --service-name awaited",
        ],
    )
    page.run_all()
    page.screenshot(SHOTS / "awaited-lab.png")
    assert page.errors() == []
    wait_for(page, 2, "the kernel is free")
    wait_for(page, 3, "running")
    wait_for(page, 5, "length")
    wait_for(page, 6, "awaited is running")
    wait_for(page, 7, "done")


def test_a_reopened_notebook_reattaches_by_name_after_a_kernel_restart(
    lab: JupyterServer, open_notebook: Open
) -> None:
    cells = ["%load_ext tuna_nb", deploy("kept", "boot_s=3"), "%tuna connect kept as client", CHAT]
    page = open_notebook(lab, cells)
    page.run_all()
    wait_for(page, 3, "length")
    wait_for(page, 1, "done")
    page.save()
    page.close()

    again = open_notebook(lab, name=page.name)
    # As saved: static HTML, not a dead widget.
    wait_for(again, 1, "done")
    assert again.page.get_by_text("Error displaying widget").count() == 0
    again.screenshot(SHOTS / "reopened-lab.png")
    again.run_all()
    wait_for(again, 1, "done")
    wait_for(again, 3, "length")
    assert again.errors() == []
    again.page.evaluate(
        """async () => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const f = k.requestExecute({code: '%tuna destroy --service-name kept'}); await f.done; }"""
    )


def test_the_dark_theme_is_readable(browser: Any, tmp_path: Path, open_notebook: Open) -> None:
    with JupyterServer(tmp_path / "dark", tmp_path / "dark-home", "lab", theme="JupyterLab Dark") as server:
        page = open_notebook(
            server,
            ["%load_ext tuna_nb", deploy("dark", "boot_s=2"), "%tuna connect dark as client",
             "%tuna status --service-name dark", "%tuna cost --service-name dark", "%tuna check",
             "%tuna deploy --model x --gpu L99", "%tuna destroy --service-name dark"],
        )  # fmt: skip
        page.run_all()
        assert page.errors() == ["cell 6: RequestError: unknown GPU 'L99'"]
        # The failed cell stopped the rest, as it should; the last one is run by hand.
        page.start_cell(7)
        wait_for(page, 7, "done")
        page.screenshot(SHOTS / "dark-lab.png")
        theme = page.page.evaluate("() => document.body.dataset.jpThemeLight")
        assert theme == "false"
        for cell in (3, 4):
            # Text against the page's background, by WCAG's contrast formula: 4.5 is the least for small text.
            assert page.page.evaluate(_CONTRAST, cell) >= 4.5
        assert page.external == []
        page.close()


def test_notebook_7_shows_the_same(notebook7: JupyterServer, open_notebook: Open) -> None:
    page = open_notebook(
        notebook7,
        ["%load_ext tuna_nb", deploy("seven", "boot_s=60"), "%tuna connect seven as client", CHAT],
        width=700,
    )
    page.run_all()
    wait_for(page, 3, "length")
    wait_for(page, 1, "spot is booting")
    page.screenshot(SHOTS / "deploying-notebook7.png")
    page.output(1).get_by_role("button", name="Cancel").click()
    wait_for(page, 1, "everything it had created is gone")
    assert page.errors() == []
    assert page.external == []


_CONTRAST = """cell => {
    const area = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[cell].querySelector('.jp-OutputArea');
    const text = [...area.querySelectorAll('td, b, div')].find(e => e.innerText && e.innerText.trim());
    const rgb = s => s.match(/[\\d.]+/g).slice(0, 4).map(Number);
    let back = text, colour;
    do { colour = rgb(getComputedStyle(back).backgroundColor); back = back.parentElement; }
    while (back && colour[3] === 0);
    const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const [a, b] = [light(rgb(getComputedStyle(text).color)), light(colour)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""
