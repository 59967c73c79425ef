"""`%tuna` and `%%tuna`: the verbs in a notebook and in IPython."""

from __future__ import annotations

import keyword
import sys
import time
from argparse import Namespace
from dataclasses import replace
from typing import Any

from IPython.core.magic import (
    Magics,
    line_cell_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
    output_can_be_silenced,
)

from tuna_nb import grammar
from tuna_nb.errors import CancelledError, UsageError
from tuna_nb.frontends import expansion, mode
from tuna_nb.frontends.pages import page


@magics_class
class TunaMagics(Magics):
    """Holds this kernel's jobs; everything else is opened per command."""

    shell: Any

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        from tuna_nb.jobs import Jobs

        self.jobs = Jobs()
        self._parser = grammar.build("%tuna")
        self._names: set[str] = set()

    @needs_local_scope
    @no_var_expand
    @output_can_be_silenced
    @line_cell_magic
    def tuna(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
        namespace = {**self.shell.user_ns, **(local_ns or {})}
        words = expansion.split(line.strip().removesuffix(";"), namespace)
        try:
            options = grammar.parse(self._parser, words)
        except grammar.HelpShown as shown:
            print(shown.text)
            return None
        if cell is not None and not grammar.BY_NAME[options.verb].cell:
            raise UsageError(f"%%tuna {options.verb} takes no cell body", f"write %tuna {options.verb} on one line")
        if options.out and (not options.out.isidentifier() or keyword.iskeyword(options.out)):
            raise UsageError(f"--out: {options.out!r} is not a variable name", "write --out NAME, e.g. --out table")
        try:
            options.quiet = line.rstrip().endswith(";")
            result = self._run(options, cell)
        except KeyboardInterrupt:
            raise CancelledError(f"{options.verb}: interrupted") from None
        if options.out:
            self.shell.user_ns[options.out] = result
            return None
        return result

    def stop_boards(self) -> None:
        """Leave plain HTML where a live board stands."""
        # Not imported for this: where it is not, no board was shown.
        dashboard = sys.modules.get("tuna_nb.views.dashboard")
        if dashboard is not None:
            dashboard.Dashboard.stop_all()

    def service_names(self) -> list[str]:
        """The deployments that this kernel has dealt with, for completion."""
        return sorted(self._names)

    def _run(self, options: Namespace, cell: str | None) -> Any:
        from tuna_nb.commands.context import Context, run
        from tuna_nb.deployments.workspace import Workspace
        from tuna_nb.jobs import Work
        from tuna_nb.settings import Settings

        settings = Settings.load()
        shown = mode.detect(self.shell, settings.mode)
        context = Context(Workspace(settings), self.jobs, cell, page=page)
        result = run(options, context)
        name = getattr(options, "service_name", None) or getattr(result, "name", None)
        if isinstance(name, str):
            self._names.add(name)
        if isinstance(result, Work):
            # The job outlives this cell, and its workspace with it.
            return self._work(_closing(result, context.workspace), options, shown)
        try:
            return self._present(result, options)
        finally:
            context.workspace.close()

    def _work(self, work: Any, options: Namespace, shown: str) -> Any:
        job, _ = self.jobs.submit(work)
        # A deploy goes on in the background; what removes things is worth waiting for, except on request.
        wait = getattr(options, "wait", False) or shown == mode.HEADLESS or work.verb != "deploy"
        try:
            _show_progress(job, shown, wait)
            if not wait:
                return _JobHandle(job, quiet_once=shown == mode.WIDGET)
            result = job.wait()
        except KeyboardInterrupt:
            # Before it was waited for: the job may have come far while this cell was only about to show it.
            if not wait:
                raise
            job.interrupt()
            result = None
        if shown == mode.WIDGET and not work.shows_result:
            return None
        return self._present(result, options)

    def _present(self, result: Any, options: Namespace) -> Any:
        from tuna_nb.deployments.board import Board
        from tuna_nb.deployments.connection import Connection
        from tuna_nb.deployments.status import LogStream
        from tuna_nb.jobs import Job
        from tuna_nb.views import data

        if isinstance(result, Connection):
            return self._connect(result, options)
        if isinstance(result, Board):
            return self._board(result)
        if isinstance(result, LogStream):
            return self._logs(result)
        if isinstance(result, Job):
            return _JobHandle(result)
        if hasattr(result, "steps"):
            return self._load_test(result, options)
        if hasattr(result, "phase_names"):
            return self._cold_start(result, options)
        if getattr(options, "explore", False):
            from tuna_nb.views import explorer

            return explorer.show(result)
        if getattr(options, "chart", None):
            from tuna_nb.views import charts

            return charts.chart(result, options.chart)
        if getattr(options, "history", False):
            from IPython.display import display

            from tuna_nb.views import charts

            # Seen above the table, which is what `df = ...` gets.
            display(charts.chart(result, "history"))
        table = data.frame(result)
        for line in data.beside(result):
            print(line)
        meter = getattr(result, "meter", None)
        if meter is not None and not options.quiet:
            print(meter.line)
        return table if table is not None else Shown(result)

    def _cold_start(self, report: Any, options: Namespace) -> Any:
        from tuna_nb.views.cold_start_chart import chart_of

        return self._drawn(report, options, chart_of)

    def _load_test(self, report: Any, options: Namespace) -> Any:
        from tuna_nb.views.load_charts import charts_of

        return self._drawn(report, options, charts_of)

    def _drawn(self, report: Any, options: Namespace, charts_of: Any) -> Any:
        """Figures and charts under the cell; `df = ...` gets the figures as a DataFrame."""
        from IPython.display import display

        from tuna_nb.views import data

        table = data.frame(report)
        if options.quiet:
            return table
        for part in (Shown(report), *charts_of(report)):
            display(part)
        return _shown_already(table, self.shell)

    def _board(self, board: Any) -> None:
        """Live under the cell, or in the terminal until Ctrl-C; once, where nobody watches."""
        shown = mode.detect(self.shell, mode.forced())
        if shown == mode.WIDGET:
            from tuna_nb.views.dashboard import Dashboard

            Dashboard(board).show()
            return
        from tuna_nb.views import ticker

        try:
            if shown == mode.TERMINAL:
                ticker.run(board, sys.stdout)
            else:
                from IPython.display import display

                from tuna_nb.views.dashboard import static_bundle

                display(static_bundle(ticker.once(board), board.money_first), raw=True)
        finally:
            board.close()

    def _connect(self, connection: Any, options: Namespace) -> Any:
        if options.env:
            raise UsageError(
                "connect --env prints the key, which would stay in the notebook",
                f"write: %tuna connect {options.name} as client",
            )
        if options.variable is None:
            return Shown(connection)
        self.shell.user_ns[options.variable] = connection.client()
        print(f"{options.variable} talks to {connection.base_url}; model {connection.model}")
        return None

    def _logs(self, stream: Any) -> None:
        from tuna_nb.jobs import LoopThread

        async def pump() -> None:
            async for role, line in stream.lines:
                print(f"{time.strftime('%H:%M:%S', time.localtime(line.at))} {role} {line.source}: {line.text}")

        LoopThread.run(pump())


def _show_progress(job: Any, shown: str, wait: bool) -> None:
    """As the cell can: live widgets, or lines; nothing in a headless run that does not wait."""
    if shown == mode.WIDGET:
        from tuna_nb.views.live import JobView

        JobView(job, blocks=wait).show()
    elif wait or shown == mode.TERMINAL:
        from tuna_nb.views.text import TextProgress

        job.subscribe(TextProgress(sys.stdout, error_is_shown=wait))


def _closing(work: Any, workspace: Any) -> Any:
    """The same work, which closes its workspace at its end."""

    async def run(report: Any) -> Any:
        try:
            return await work.run(report)
        finally:
            workspace.close()

    return replace(work, run=run)


class Shown:
    """A result with its views. `.result` is the data itself."""

    def __init__(self, result: Any) -> None:
        self.result = result
        # Shown again later, it still says how old things were when they were asked, not how old they would be.
        self._asked_at = time.time()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tuna_nb.views import html, text
        from tuna_nb.views.sheets import sheet

        made = sheet(self.result, self._asked_at)
        return {"text/plain": text.render(made), "text/html": html.render(made)}

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_()["text/html"]

    def __repr__(self) -> str:
        return self._repr_mimebundle_()["text/plain"]


def _shown_already(table: Any, shell: Any) -> Any:
    """A DataFrame that this cell does not display: what it says stands there already. Any later one does."""
    cell = shell.execution_count

    def show() -> None:
        if shell.execution_count == cell:
            return
        from IPython.display import display

        del table.__dict__["_ipython_display_"]
        display(table)

    table.__dict__["_ipython_display_"] = show
    return table


class _JobHandle:
    """What `%tuna deploy` returns: `await job`, `job.cancel()`, `job.wait()`.

    Its first display is left out where the live view stands under the cell already.
    """

    def __init__(self, job: Any, quiet_once: bool = False) -> None:
        self._job = job
        self._quiet = quiet_once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __await__(self) -> Any:
        return self._job.__await__()

    def _ipython_display_(self) -> None:
        if self._quiet:
            self._quiet = False
            return
        from IPython.display import display

        from tuna_nb.views.live import static_bundle

        display(static_bundle(self._job.snapshot, time.time()), raw=True)

    def __repr__(self) -> str:
        return repr(self._job)


def install(shell: Any) -> TunaMagics:
    """Register the magics, with the grammar's help as their docstring (`%tuna?`)."""
    TunaMagics.tuna.__doc__ = grammar.SHORT_HELP.format("%tuna")
    magics = TunaMagics(shell)
    shell.register_magics(magics)
    return magics
