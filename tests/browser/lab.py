"""A real Jupyter server and a real headless Chromium, each with folders of its own and nothing from the network.

Outputs are read from the notebook's model, which is what is saved; the page itself is only looked at and clicked.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

CHROMIUM = os.environ.get("TUNA_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = [
    "--no-sandbox",  # CI runs as root
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    # Every name but this machine's fails at once: a page that needs the network fails, and fast.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
_OVERRIDES: dict[str, dict[str, object]] = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
_PANEL = "window.jupyterapp.shell.currentWidget"


class JupyterServer:
    """`jupyter lab` or `jupyter notebook` on a free port; app: lab or notebook."""

    def __init__(self, root: Path, home: Path, app: str, theme: str | None = None) -> None:
        self.root, self._home, self.app, self._theme = root, home, app, theme
        self._token = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        for folder in ("config/labconfig", "data", "runtime", "ipython"):
            (self._home / folder).mkdir(parents=True)
        self.root.mkdir(parents=True, exist_ok=True)
        overrides = dict(_OVERRIDES)
        if self._theme:
            overrides["@jupyterlab/apputils-extension:themes"] = {"theme": self._theme}
        (self._home / "config/labconfig/default_setting_overrides.json").write_text(json.dumps(overrides))
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER_", "JPY_", "IPYTHON"))}
        environment |= {
            "JUPYTER_CONFIG_DIR": str(self._home / "config"),
            "JUPYTER_DATA_DIR": str(self._home / "data"),
            "JUPYTER_RUNTIME_DIR": str(self._home / "runtime"),
            "IPYTHONDIR": str(self._home / "ipython"),
            "TUNA_DATA_DIR": str(self._home / "tuna"),
        }
        command = [
            sys.executable, "-m", "jupyterlab" if self.app == "lab" else "notebook", "--no-browser", "--allow-root",
            "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--IdentityProvider.token={self._token}",
            f"--ServerApp.root_dir={self.root}", "--ServerApp.use_redirect_file=False",
            "--ServerApp.terminals_enabled=False", "--LabApp.extension_manager=readonly",
            "--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True",
        ]  # fmt: skip
        with (self._home / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.root, start_new_session=True
            )
        # The server writes this file once its port is bound: no guessing of free ports.
        told = self._home / f"runtime/jpserver-{self._process.pid}.json"
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                self._port = json.loads(told.read_text())["port"]
                self.call("/api/status")
                return self
            time.sleep(0.1)
        raise RuntimeError(f"jupyter did not start:\n{(self._home / 'server.log').read_text()[-3000:]}")

    @property
    def data_folder(self) -> Path:
        """Tuna's data folder in this server's kernels."""
        return self._home / "tuna"

    def url(self, notebook: str) -> str:
        route = "doc/tree" if self.app == "lab" else "notebooks"
        return f"http://127.0.0.1:{self._port}/{route}/{notebook}?token={self._token}"

    def call(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", method=method, headers={"Authorization": f"token {self._token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            for kernel in self.call("/api/kernels"):
                self.call(f"/api/kernels/{kernel['id']}", "DELETE")
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class NotebookPage:
    """One open notebook. external: every address outside this machine that the page asked for."""

    def __init__(self, server: JupyterServer, browser: Any, name: str, width: int = 1200) -> None:
        self._server, self.name = server, name
        self._context = browser.new_context(viewport={"width": width, "height": 1500})
        self.page = self._context.new_page()
        self.page.set_default_timeout(90_000)
        self.external: list[str] = []
        self.console: list[str] = []
        self.page.on("console", lambda m: self.console.append(f"{m.type}: {m.text}"))
        self.page.on("request", self._asked)
        self.page.goto(server.url(name))
        self.page.wait_for_function(
            f"() => window.jupyterapp && {_PANEL} && {_PANEL}.sessionContext && {_PANEL}.context"
        )
        self.page.evaluate(
            f"""async () => {{ const w = {_PANEL}; await w.revealed; await w.context.ready;
                await w.sessionContext.ready;
                const k = w.sessionContext.session && w.sessionContext.session.kernel; if (k) await k.info; }}"""
        )

    def _asked(self, request: Any) -> None:
        if request.url.startswith(("http", "ws")) and urlsplit(request.url).hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            self.external.append(request.url)

    def command(self, name: str) -> None:
        self.page.evaluate("name => window.jupyterapp.commands.execute(name).then(() => null)", name)

    def run_all(self, timeout_s: float = 120) -> None:
        """Run every cell; returns when the kernel has answered the last one."""
        self.page.evaluate(
            """() => { window.tunaRan = false; window.jupyterapp.commands.execute('notebook:run-all-cells')
                .finally(() => window.tunaRan = true); }"""
        )
        self.page.wait_for_function("() => window.tunaRan", timeout=timeout_s * 1000)

    def start_cell(self, number: int) -> None:
        """Run code cell `number` and return at once."""
        self.page.evaluate(
            f"""number => {{ const notebook = {_PANEL}.content;
                const code = notebook.widgets.map((w, i) => [w, i]).filter(x => x[0].model.type === 'code');
                notebook.activeCellIndex = code[number][1];
                window.jupyterapp.commands.execute('notebook:run-cell'); }}""",
            number,
        )

    def cells(self) -> list[dict[str, Any]]:
        """The code cells as the model has them: what a save would write."""
        model = self.page.evaluate(f"() => {_PANEL}.content.model.sharedModel.toJSON()")
        return [c for c in model["cells"] if c["cell_type"] == "code"]

    def errors(self) -> list[str]:
        return [
            f"cell {i}: {o['ename']}: {o['evalue']}"
            for i, cell in enumerate(self.cells())
            for o in cell["outputs"]
            if o["output_type"] == "error"
        ]

    def output(self, number: int) -> Any:
        """The output area of code cell `number` on the page."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-OutputArea").first

    def save(self) -> dict[str, Any]:
        self.command("docmanager:save")
        saved: dict[str, Any] = json.loads((self._server.root / self.name).read_text())
        return saved

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))

    def close(self) -> None:
        """Close the page and end its kernel."""
        self.page.evaluate(f"async () => {{ await {_PANEL}.sessionContext.shutdown(); }}")
        self._context.close()

    def leave(self) -> None:
        """Close the page; the kernel goes on, as when a person closes the tab."""
        self._context.close()
