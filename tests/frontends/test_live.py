"""`--live` outside of a notebook: a terminal that is redrawn, lines, JSON; it ends with Ctrl-C, and cleanly."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.conftest import nothing_may_be_left
from tests.frontends.kernels import Kernel, started
from tests.frontends.terminals import Terminal, deploy_words, until
from tests.headless.notebooks import execute, notebook, outputs

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def alive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("alive") / "data")
    terminal(*deploy_words("alive", "--wait"))
    yield terminal
    terminal("destroy", "--all")
    nothing_may_be_left(terminal.folder)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    return out, err


def test_json_has_a_picture_a_line_until_ctrl_c(alive: Terminal) -> None:
    process = alive.start("status", "--service-name", "alive", "--live", "-o", "json")
    assert process.stdout is not None
    told = [json.loads(process.stdout.readline()) for _ in range(4)]
    rest, err = ended(process)
    assert err == ""
    told += [json.loads(line) for line in rest.splitlines()]
    last = told[-1]
    assert (last["name"], last["link"], last["status"]["state"]) == ("alive", "live", "running")
    assert last["moment"]["requests_per_s"] == 0.0
    assert last["bill"]["usd"] > 0
    assert "moments" not in last


def test_a_pipe_gets_a_line_now_and_then(alive: Terminal) -> None:
    process = alive.start("cost", "--service-name", "alive", "--live")
    assert process.stdout is not None
    line = process.stdout.readline()
    out, err = ended(process)
    assert "alive" in line
    assert "per hour" in line + out
    assert err == ""
    assert "\x1b" not in line + out


def test_a_terminal_is_redrawn_in_place(alive: Terminal) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tuna_nb", "status", "--service-name", "alive", "--live"],
        stdout=theirs, stderr=subprocess.PIPE, env=alive.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "50"},
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    said = b""

    def redrawn() -> bool:
        nonlocal said
        try:
            said += os.read(ours, 65536)
        except BlockingIOError:
            pass
        except OSError:
            return True
        return said.count(b"alive is running: live") >= 3

    until(redrawn, 20)
    assert b"\x1b[1A" in said, "what was drawn is drawn over"
    assert b"requests per second" in said
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    os.close(ours)
    assert (process.returncode, err) == (0, b"")


def test_a_notebook_that_a_tool_executes_gets_one_picture(
    alive: Terminal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import nbformat

    made = notebook("%load_ext tuna_nb", "%tuna status --service-name alive --live")
    execute(made, alive.folder, tmp_path_factory.mktemp("cwd"))
    (shown,) = [o["data"] for o in outputs(made, 1) if "data" in o]
    assert set(shown) == {"text/plain", "text/html"}
    assert "alive was running" in shown["text/plain"]
    assert "spent" in shown["text/html"]
    nbformat.validate(made)


WIDGET = "application/vnd.jupyter.widget-view+json"


def asked(kernel: Kernel, terminal: Terminal) -> int:
    """Connections of the kernel to the router."""
    (noted,) = (terminal.folder / "routers").glob("*/router.json")
    port = json.loads(noted.read_text())["port"]
    found = psutil.Process(kernel.manager.provisioner.pid).net_connections()  # type: ignore[union-attr]
    return sum(bool(c.raddr) and c.raddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in found)


def test_a_kernel_asks_the_router_only_while_a_page_shows_the_board(alive: Terminal) -> None:
    with started(alive.environ | {"TUNA_NB_MODE": "widget"}) as kernel:
        kernel.run("%load_ext tuna_nb")
        kernel.client.execute("%tuna status --service-name alive --live")
        shown = kernel.until(lambda m: m["msg_type"] == "display_data")["content"]
        comm = shown["data"][WIDGET]["model_id"]
        assert set(shown["data"]) == {WIDGET, "text/html", "text/plain"}
        kernel.run("pass")
        assert asked(kernel, alive) == 0, "shown by nobody yet"

        def told(message: dict[str, Any], what: str) -> bool:
            content = message["content"]
            custom = message["msg_type"] == "comm_msg" and content["data"].get("method") == "custom"
            return custom and content["comm_id"] == comm and bool(content["data"]["content"].get(what))

        kernel.tell(comm, {"said": "open", "page": "a"})
        kernel.until(lambda m: told(m, "all"))
        (new,) = kernel.until(lambda m: told(m, "add"))["content"]["data"]["content"]["add"]
        assert set(new) == {"t", "sent", "split", "first", "between", "states"}
        assert asked(kernel, alive) >= 1

        # Another page, and the first one closes: one is left. It closes, and nobody is asked.
        kernel.tell(comm, {"said": "open", "page": "b"})
        kernel.tell(comm, {"said": "close", "page": "a"})
        kernel.until(lambda m: told(m, "add"))
        kernel.tell(comm, {"said": "close", "page": "b"})
        until(lambda: asked(kernel, alive) == 0, 10)

        # One that dies says nothing; while a cell runs, which keeps the kernel from hearing it, it is not given up.
        kernel.tell(comm, {"said": "open", "page": "c"})
        kernel.until(lambda m: told(m, "add"))
        kernel.run("import time; time.sleep(17)")
        kernel.until(lambda m: told(m, "add"), 3)
        began = time.monotonic()
        until(lambda: asked(kernel, alive) == 0, 20)
        assert time.monotonic() - began < 16

        kernel.tell(comm, {"said": "stop", "page": "c"})
        kept = kernel.until(lambda m: m["msg_type"] == "update_display_data")["content"]
        assert kept["transient"] == shown["transient"]
        assert set(kept["data"]) == {"text/html", "text/plain"}
        assert "alive was running, as of 20" in kept["data"]["text/plain"]
        kernel.until(lambda m: m["msg_type"] == "comm_close" and m["content"]["comm_id"] == comm)


def test_what_is_gone_has_no_board(alive: Terminal) -> None:
    assert alive("status", "--service-name", "nobody", "--live", code=1).refusal[0].startswith("tuna: ")
    alive(*deploy_words("gone", "--serverless-only"))
    alive("destroy", "--service-name", "gone")
    message, hint = alive("status", "--service-name", "gone", "--live", code=1).refusal
    assert message == "tuna: gone is destroyed: there is nothing to watch"
    assert "tuna cost --service-name gone" in hint
