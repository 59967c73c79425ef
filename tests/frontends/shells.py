"""An IPython shell in this process whose failed cell fails the test."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.utils.capture import capture_output


class TestingShell(InteractiveShell):
    """No history, no colours; `run` raises what the cell raised."""

    __test__ = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.history_manager.enabled = False  # type: ignore[union-attr]
        self.colors = "nocolor"

    def run(self, cell: str) -> Any:
        """The value of the cell's last expression."""
        return self._run(cell)[0]

    def printed(self, cell: str) -> str:
        return self._run(cell)[1]

    def failed(self, cell: str) -> tuple[BaseException, str]:
        """(what it raised, what a person saw of it)."""
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            result = self.run_cell(cell, store_history=False)
        error = result.error_before_exec or result.error_in_exec
        assert error is not None, out.getvalue()
        return error, out.getvalue()

    def _run(self, cell: str) -> tuple[Any, str]:
        with capture_output() as captured:
            result: ExecutionResult = self.run_cell(cell, store_history=False)
        result.raise_error()
        return result.result, captured.stdout
