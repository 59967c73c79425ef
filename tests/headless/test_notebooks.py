"""Notebooks that a tool executes: every example runs, what is saved is small and readable anywhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import nothing_may_be_left
from tests.frontends.terminals import Done, Terminal, deploy_words
from tests.headless.notebooks import NOTEBOOKS, WIDGET, errors, execute, notebook, outputs, text

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(480),  # whoever comes first executes every notebook
]

DEPLOY = "%tuna " + " ".join(deploy_words("nb"))
DESTROY = "%tuna destroy --service-name nb"


def nbmake(
    environ: dict[str, str], *notebooks: Path, more: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """`pytest --nbmake`, as a user's CI runs notebooks; it executes them with nbclient."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider", "-q", *more, *map(str, notebooks)],
        env=environ, cwd=notebooks[0].parent, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every notebook of `notebooks/`, executed."""
    import nbformat

    folder = tmp_path_factory.mktemp("notebooks")
    terminal = Terminal(folder / "data")
    copies = [Path(shutil.copy(path, folder)) for path in NOTEBOOKS]
    done = nbmake(terminal.environ, *copies, more=("--overwrite",))
    assert done.returncode == 0, done.stdout
    assert f"{len(NOTEBOOKS)} passed" in done.stdout
    nothing_may_be_left(terminal.folder)
    return {path.name: nbformat.read(path, 4) for path in copies}


def test_there_are_notebooks() -> None:
    assert "01_quickstart.ipynb" in [p.name for p in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_is_saved_without_outputs(path: Path) -> None:
    import nbformat

    saved = nbformat.read(path, 4)
    nbformat.validate(saved)
    code = [c for c in saved.cells if c.cell_type == "code"]
    assert all(c.outputs == [] and c.execution_count is None for c in code)
    assert set(saved.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_an_example_runs_and_stays_small(executed: dict[str, Any], path: Path) -> None:
    import nbformat

    made = executed[path.name]
    assert errors(made) == []
    saved = nbformat.writes(made)
    assert len(saved.encode()) < 200_000
    assert WIDGET not in saved
    assert "widgets" not in made.metadata


def test_the_quickstart_tells_its_story(executed: dict[str, Any]) -> None:
    made = executed["01_quickstart.ipynb"]
    said = "\n".join(text(made, i) for i, cell in enumerate(made.cells) if cell.cell_type == "code")
    for part in ("spot is ready and takes the traffic", "{'spot': 4}", "quickstart is running", "has cost $0.0",
                 "is being taken away", "gone: quickstart"):  # fmt: skip
        assert part in said, part


def test_the_notebook_of_providers_tells_its_story(executed: dict[str, Any]) -> None:
    made = executed["02_providers.ipynb"]
    said = "\n".join(text(made, i) for i, cell in enumerate(made.cells) if cell.cell_type == "code")
    for part in ("MISSING", "is the cheapest that sells it", "passed over: azure", "six is running",
                 "container started", "gone: six"):  # fmt: skip
        assert part in said, part


def test_the_notebook_of_prices_tells_its_story(executed: dict[str, Any]) -> None:
    made = executed["03_prices.ipynb"]
    said = "\n".join(text(made, i) for i, cell in enumerate(made.cells) if cell.cell_type == "code")
    for part in ("cloudrun", "What a GPU costs", "Price against memory", "Spot by region", "GPU prices",
                 "serverless_usd_per_hour", "no price has been kept yet"):  # fmt: skip
        assert part in said, part
    drawn = [o.data for c in made.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert sum("application/vnd.plotly.v1+json" in d for d in drawn) == 3
    assert sum("data-tuna-explorer" in d.get("text/html", "") for d in drawn) == 1


def test_the_notebook_of_cost_tells_its_story(executed: dict[str, Any]) -> None:
    made = executed["04_cost.ipynb"]
    said = "\n".join(text(made, i) for i, cell in enumerate(made.cells) if cell.cell_type == "code")
    for part in ("bill has cost $0.0", "serverless only for the same traffic", "spot only for the same traffic",
                 "the month's end", "key:", "scale-down", "gone: bill"):  # fmt: skip
        assert part in said, part


def test_the_notebook_of_load_tests_tells_its_story(executed: dict[str, Any]) -> None:
    made = executed["05_benchmark_router.ipynb"]
    said = "\n".join(text(made, i) for i, cell in enumerate(made.cells) if cell.cell_type == "code")
    for part in ("calm: failed = 0 of", "preempted: failed = 0 of", "spot was taken away", "n too small",
                 "p95 TTFT", "sweep: failed = 0 of 32", "gone: bench"):  # fmt: skip
        assert part in said, part
    drawn = [o.data for c in made.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert any("taken away" in d.get("text/html", "") and "<svg" in d["text/html"] for d in drawn)


def test_the_notebook_of_cold_starts_tells_its_story(executed: dict[str, Any]) -> None:
    made = executed["06_cold_start.ipynb"]
    said = "\n".join(text(made, i) for i, cell in enumerate(made.cells) if cell.cell_type == "code")
    for part in ("warm-cold", "fresh", "first token", "nothing runs"):
        assert part in said, part


def test_a_page_made_of_the_executed_quickstart_has_the_tables(executed: dict[str, Any]) -> None:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(executed["01_quickstart.ipynb"])
    assert "quickstart is running" in page
    for header in ("part", "provider", "replicas", "billing"):
        assert f">{header}</th>" in page


def test_nbmake_fails_a_notebook_whose_deploy_fails(home: Terminal, tmp_path: Path) -> None:
    """IPython's own UsageError is no error output: nbmake would pass these."""
    import nbformat

    lines = (
        "%tuna deploy --model x --gpu L99",
        "%tuna lsit",
        DEPLOY + " --serverless-only --engine-cmd false",
    )
    paths = [tmp_path / f"failing_{number}.ipynb" for number in range(len(lines))]
    for path, line in zip(paths, lines, strict=True):
        nbformat.write(notebook("%load_ext tuna_nb", line), path)
    done = nbmake(home.environ, *paths)
    assert done.returncode == 1, done.stdout
    assert "3 failed" in done.stdout
    for hint in ("unknown GPU 'L99'", "did you mean 'list'?", "check --model, --engine-cmd"):
        assert hint in done.stdout


def test_an_error_is_a_real_error_output_of_two_lines(home: Terminal, tmp_path: Path) -> None:
    made = notebook(
        "%load_ext tuna_nb", "%tuna deploy --model 'a b' --gpu L4", "%%tuna list\nspot:\n", "%tuna lsit"
    )
    execute(made, home.folder, tmp_path, allow_errors=True)
    for cell, name in ((1, "RequestError"), (2, "UsageError"), (3, "UsageError")):
        (shown,) = outputs(made, cell)
        assert (shown.output_type, shown.ename) == ("error", name)
        assert len(shown.traceback) == 2
        assert "hint: " in shown.traceback[1]


def test_headless_waits_and_prints_plain_lines_in_the_cell_that_asked(home: Terminal, tmp_path: Path) -> None:
    import nbformat

    made = notebook(
        "%load_ext tuna_nb", DEPLOY, "%tuna logs --service-name nb", "df = %tuna list\nprint(len(df))", DESTROY
    )
    execute(made, home.folder, tmp_path)
    assert "spot is ready and takes the traffic" in text(made, 1)
    assert "nb is running" in text(made, 1)
    assert "\r" not in text(made, 1)
    assert " serverless cloud: " in text(made, 2)
    assert re.fullmatch(r"1 deployment runs: .* so far\n1\n", text(made, 3))
    assert text(made, 4).count("is gone") == 3
    assert WIDGET not in nbformat.writes(made)


def test_a_live_output_becomes_static_when_its_job_ends(home: Terminal, tmp_path: Path) -> None:
    """nbclient takes updates only while the cell that they belong to runs, so the cells wait."""
    made = notebook("%load_ext tuna_nb", DEPLOY + " --wait", DESTROY)
    execute(made, home.folder, tmp_path, mode="widget")
    for cell in (1, 2):
        (shown,) = [o for o in outputs(made, cell) if "data" in o]
        assert set(shown.data) == {"text/html", "text/plain"}
        assert "done" in shown.data["text/plain"]
        assert "<details" in shown.data["text/html"]
        assert "log lines" in shown.data["text/html"]
    assert errors(made) == []


def test_a_failed_live_output_says_why_in_the_saved_file(home: Terminal, tmp_path: Path) -> None:
    made = notebook("%load_ext tuna_nb", f"{DEPLOY} --wait --serverless-only --engine-cmd false")
    execute(made, home.folder, tmp_path, mode="widget", allow_errors=True)
    (shown,) = [o for o in outputs(made, 1) if "data" in o]
    assert "the engine for Qwen/Qwen3-0.6B can" in shown.data["text/html"]
    assert "hint: " in shown.data["text/plain"]
    assert [o.ename for o in outputs(made, 1) if o.output_type == "error"] == ["EngineError"]


def test_two_notebooks_and_a_terminal_at_once_lose_no_record(
    home: Terminal, tuna: Callable[..., Done], tmp_path: Path
) -> None:
    import nbformat

    names = ["first", "second", "third"]

    def in_a_notebook(name: str) -> str:
        words = " ".join(deploy_words(name, "--serverless-only"))
        loop = f"for _ in range(10):\n    get_ipython().run_line_magic('tuna', 'status --service-name {name}')"
        made = notebook(
            "%load_ext tuna_nb", f"%tuna {words}", loop, "%tuna list", f"%tuna destroy --service-name {name}"
        )
        return nbformat.writes(execute(made, home.folder, tmp_path, allow_errors=True))

    def in_a_terminal(name: str) -> str:
        home(*deploy_words(name, "--serverless-only"))
        for _ in range(3):
            home("status", "--service-name", name, "-o", "json")
        home("destroy", "--service-name", name)
        return home.said

    with ThreadPoolExecutor(3) as pool:
        works = (in_a_notebook, in_a_notebook, in_a_terminal)
        said = [f.result() for f in [pool.submit(w, n) for w, n in zip(works, names, strict=True)]]
    for text_of_one in said:
        assert "locked" not in text_of_one
        assert "Traceback" not in text_of_one
        assert 'output_type": "error' not in text_of_one
    shown = tuna("list", "--status", "destroyed", "-o", "json").json["deployments"]
    assert sorted(d["name"] for d in shown) == sorted(names)
    ended = tuna("jobs", "--all", "-o", "json").json
    assert sorted((j["name"], j["verb"]) for j in ended) == sorted(
        (n, v) for n in names for v in ("deploy", "destroy")
    )
    assert {j["state"] for j in ended} == {"done"}
    assert all(json.dumps(tuna("cost", "--service-name", n, "-o", "json").json["usd"]) != "0" for n in names)
