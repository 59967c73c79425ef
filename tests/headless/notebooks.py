"""A notebook that a tool executes, as nbclient, papermill and nbmake do: nobody is there to answer or to press."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebook(*cells: str) -> Any:
    import nbformat  # two seconds, which whoever only collects this need not wait for

    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def execute(made: Any, folder: Path, cwd: Path, mode: str | None = None, allow_errors: bool = False) -> Any:
    """Run every cell in a kernel of its own, whose data folder is `folder`; returns the notebook."""
    from nbclient import NotebookClient

    environ = {k: v for k, v in os.environ.items() if not k.startswith("TUNA_")} | {"TUNA_DATA_DIR": str(folder)}
    if mode is not None:
        environ["TUNA_NB_MODE"] = mode
    client = NotebookClient(
        made,
        timeout=90,
        kernel_name="python3",
        allow_errors=allow_errors,
        resources={"metadata": {"path": str(cwd)}},
    )
    client.execute(env=environ)
    return made


def outputs(made: Any, cell: int) -> list[Any]:
    return list(made.cells[cell].outputs)


def text(made: Any, cell: int) -> str:
    """Everything that a cell shows, as plain text."""
    return "".join(
        o.get("text", "") or o.get("data", {}).get("text/plain", "") or "\n".join(o.get("traceback", []))
        for o in outputs(made, cell)
    )


def errors(made: Any) -> list[str]:
    return [
        f"{o.ename}: {o.evalue}"
        for c in made.cells
        if c.cell_type == "code"
        for o in c.outputs
        if o.output_type == "error"
    ]
