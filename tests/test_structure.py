"""The house stands as README says: no room imports one above it, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tuna_nb"
FLOORS = {
    "frontends": 5,
    "commands": 4,
    "views": 4,
    "deployments": 3,
    "costs": 3,
    "benchmarks": 3,
    "backends": 2,
    "catalog": 2,
    "grammar": 1,
    "jobs": 1,
    "store": 1,
    "records": 1,
    "migrations": 1,
    "settings": 1,
    "errors": 1,
    "secrets": 1,
    "tls": 1,
}
ALLOWED = {("backends", "catalog"), ("deployments", "costs")}
"""Adapters quote in the catalogue's words; the catalogue knows no adapter. Who watches a deployment writes its ledger;
the ledger knows records only."""
LOOSE = {"__init__", "__main__"}
"""The package's own front door: it opens the frontends for whoever starts it."""

WIDGETS = {"ipywidgets", "anywidget", "plotly"}
HEAVY = (
    "pandas",
    "plotly",
    "ipywidgets",
    "sqlalchemy",
    "alembic",
    "openai",
    "httpx",
    "rich",
    "sky",
    "modal",
    "truss",
    "gpuhunt",
    "anywidget",
    "huggingface_hub",
    "pyarrow",
    "numpy",
)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if room(p) not in LOOSE)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import hides its floor"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_has_a_floor() -> None:
    assert {room(p) for p in modules()} == set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_goes_up_a_floor_or_across_to_another_room_of_the_same(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tuna_nb" and len(parts) > 1 and parts[1] in FLOORS and parts[1] != own:
            below = FLOORS[parts[1]] < FLOORS[own]
            # The ground floor is one room with several doors.
            beside = FLOORS[parts[1]] == FLOORS[own] and FLOORS[own] in (1, 3)
            assert below or beside or (own, parts[1]) in ALLOWED, (
                f"{path.relative_to(ROOT)} (floor {FLOORS[own]}) imports {name}"
            )


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_views_know_widgets(path: Path) -> None:
    if room(path) not in ("views",) and path.name != "mode.py":
        assert not WIDGETS & {name.split(".")[0] for name in imports(path)}


def test_commands_never_print() -> None:
    for path in (PACKAGE / "commands").rglob("*.py"):
        assert not re.search(r"\bprint\(", path.read_text()), path


def test_the_router_never_imports_the_notebook_package() -> None:
    for path in (ROOT / "router" / "tuna_router").rglob("*.py"):
        assert not any(name.split(".")[0] in ("tuna_nb", "IPython", "pandas") for name in imports(path)), path


def loaded_after(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(chr(10).join(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {line.split(".")[0] for line in out.stdout.splitlines()}


def test_loading_the_extension_imports_nothing_heavy() -> None:
    loaded = loaded_after(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\nshell.extension_manager.load_extension('tuna_nb')\n"
        "assert 'tuna' in shell.magics_manager.magics['line']"
    )
    assert not loaded & set(HEAVY)


def test_help_imports_nothing_heavy() -> None:
    loaded = loaded_after("from tuna_nb.frontends.terminal import main\nassert main(['--help']) == 0")
    assert not loaded & {*HEAVY, "IPython", "asyncio"} - {"asyncio"}


@pytest.mark.parametrize("folder", ["tuna_nb", "router/tuna_router"])
def test_no_room_is_longer_than_five_hundred_lines(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path
