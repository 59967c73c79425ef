"""No key leaves its place: not into a notebook, a record, a log, a command line or an environment."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.deployments.leftovers import processes_of
from tests.frontends.terminals import MODEL, Done, Terminal, deploy_words
from tests.headless.notebooks import execute, notebook

pytestmark = pytest.mark.e2e

CHAT = (
    f"client.chat.completions.create(model={MODEL!r}, "
    "messages=[{'role': 'user', 'content': 'hi'}], max_tokens=4).usage.completion_tokens"
)


def keys_of(folder: Path) -> dict[str, str]:
    """Every key that a deployment in this folder has, by where it belongs."""
    found = {}
    for path in (folder / "secrets").glob("*.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        found |= json.loads(path.read_text())
    assert set(found) == {"api_key", "admin_key"}
    db = sqlite3.connect(folder / "local-cloud" / "journal.db")
    found |= {f"invoke key of {name}": key for name, key in db.execute("SELECT name, invoke_key FROM resources")}
    db.close()
    found["the local cloud's token"] = json.loads((folder / "local-cloud" / "cloud.json").read_text())["token"]
    assert len(set(found.values())) == 5
    assert all(len(key) >= 20 for key in found.values())
    return found


def files_with(keys: dict[str, str], folder: Path) -> dict[str, set[str]]:
    """Path below the folder to the keys that its bytes hold."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            held = {name for name, key in keys.items() if key.encode() in path.read_bytes()}
            if held:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
                found[str(path.relative_to(folder))] = held
    return found


def held_by(keys: dict[str, str], text: str) -> set[str]:
    return {name for name, key in keys.items() if key in text}


def test_no_key_is_where_it_could_be_read(home: Terminal, tuna: Callable[..., Done], tmp_path: Path) -> None:
    import nbformat

    folder = home.folder
    said = ""

    def run(*words: str, code: int = 0) -> None:
        nonlocal said
        done = tuna(*words, code=code)
        said += done.out + done.err

    home(*deploy_words("secretive", "--wait", "-v"))
    said += home.said
    keys = keys_of(folder)

    executed = execute(
        notebook(
            "%load_ext tuna_nb",
            "%tuna " + " ".join(deploy_words("secretive", "--wait")),
            "%tuna connect secretive as client",
            CHAT,
            "client",
            "vars(client).keys()",
            "%tuna connect secretive",
            "link = %tuna connect secretive\nprint(link, link.result)\nlink.result",
            "%tuna connect secretive --env",
            "client.api_key = 'wrong'\n" + CHAT,
            "%tuna status --service-name secretive",
            "%tuna logs --service-name secretive",
            "%tuna cost --service-name secretive",
            "job = %tuna jobs secretive\njob",
        ),
        folder,
        tmp_path,
        allow_errors=True,
    )
    in_notebook = nbformat.writes(executed)
    assert '"finish_reason"' not in in_notebook  # only what was asked for is shown
    assert "connect --env prints the key" in in_notebook
    assert "AuthenticationError" in in_notebook
    assert held_by(keys, in_notebook) == set()

    run("status", "--service-name", "secretive", "-o", "json")
    run("status", "--service-name", "secretive", "-v")
    run("logs", "--service-name", "secretive", "-o", "json")
    run("cost", "--service-name", "secretive", "-o", "json")
    run("list", "-o", "json", "-v")
    run("jobs", "--all", "-o", "json")
    run("connect", "secretive", "-o", "json")
    run(*deploy_words("secretive"), "--public", "-v", code=1)
    assert held_by(keys, said) == set()

    # While it runs: command lines are for everyone to see, environments are inherited and dumped.
    running = processes_of(folder)
    assert len(running) >= 4  # the cloud, the router, two engines
    for process in psutil.process_iter():
        try:
            assert held_by(keys, "\0".join(process.cmdline())) == set(), process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    for process in running:
        assert held_by(keys, "\0".join(f"{k}={v}" for k, v in process.environ().items())) == set(), process

    allowed = {"secrets", "routers", "local-cloud"}
    holders = files_with(keys, folder)
    assert {Path(path).parts[0] for path in holders} == allowed
    for path, held in holders.items():
        ours = held & {"api_key", "admin_key"}
        assert not ours or path.startswith("secrets/"), (path, held)
        assert not path.startswith("local-cloud/logs"), (path, held)
        assert not path.endswith(".log"), (path, held)

    run("destroy", "--service-name", "secretive", "-v")
    run("status", "--service-name", "secretive", "-o", "json")
    assert held_by(keys, said) == set()
    assert {Path(path).parts[0] for path in files_with(keys, folder)} <= {"local-cloud"}
