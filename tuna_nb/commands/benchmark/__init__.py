"""`benchmark`: real traffic to an endpoint, what it did, and two runs side by side."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any

from tuna_nb.benchmarks.cold_start import KIND as COLD_START
from tuna_nb.benchmarks.cold_start import ColdStartReport, from_json
from tuna_nb.benchmarks.compare import Comparison, compare
from tuna_nb.benchmarks.kept import Shelf
from tuna_nb.benchmarks.report import LoadReport, differences
from tuna_nb.benchmarks.rows import replace
from tuna_nb.benchmarks.run_list import RowList, RunList
from tuna_nb.commands.context import Context
from tuna_nb.errors import UsageError


async def benchmark(options: Namespace, context: Context) -> Any:
    if options.action == "load-test":
        from tuna_nb.commands.benchmark.load_test import load_test

        return await load_test(options, context)
    if options.action == "cold-start":
        from tuna_nb.commands.benchmark import cold_start as command

        return await command.cold_start(options, context)
    shelf = Shelf(context.workspace.settings)
    if options.action == "compare":
        return await asyncio.to_thread(_compare, shelf, options.a, options.b, options.seed)
    if options.action == "show":
        return await asyncio.to_thread(_show, shelf, options, context)
    return RunList(tuple(shelf.runs()))


def _compare(shelf: Shelf, a: str, b: str, seed: int) -> Comparison:
    one, two = shelf.load(a), shelf.load(b)
    for run in (one, two):
        if not run.figures.whole:
            raise UsageError(
                f"{run.name} has no request that came whole", f"`tuna benchmark show {run.name}` says what happened"
            )
    return compare(one.figures, two.figures, (a, b), differences(one, two), seed)


def _show(shelf: Shelf, options: Namespace, context: Context) -> LoadReport | RowList | ColdStartReport:
    told = shelf.kept(COLD_START, options.name)
    if told is not None:
        if options.report is not None or options.show_rows:
            raise UsageError(f"{options.name} measures cold starts", "it has no --rows and no --report")
        return from_json(told)
    report_file(options.report)
    run = shelf.load(options.name)
    if options.report is not None:
        write_page(options.report, run, context)
    if not options.show_rows:
        return run
    return RowList(run.name, tuple((step.level, row) for step in run.steps for row in step.rows))


def report_file(name: str | None) -> None:
    """Raises UsageError where no report can be written there."""
    if name is None:
        return
    path = Path(name).expanduser()
    if path.suffix != ".html" or not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError(f"--report {name} can't be written", "an .html file, in a folder that exists")


def write_page(name: str, run: LoadReport, context: Context) -> None:
    if context.page is not None:
        page = context.page(run)
        replace(Path(name).expanduser(), lambda temporary: temporary.write_text(page, encoding="utf-8"))
