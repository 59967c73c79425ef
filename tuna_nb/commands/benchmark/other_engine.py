"""`benchmark load-test --engine aiperf`: the same load once more by another tool, and its figures beside ours."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tuna_nb.benchmarks import aiperf
from tuna_nb.benchmarks.aiperf import Beside
from tuna_nb.benchmarks.load.spec import LoadSpec
from tuna_nb.benchmarks.rows import Row
from tuna_nb.errors import UsageError
from tuna_nb.jobs import Report
from tuna_nb.settings import Settings

FOLDER: Final = "engines"


def folder_of(settings: Settings) -> Path:
    """Where aiperf is kept, each version in a folder of its own."""
    return settings.data_dir / FOLDER / f"aiperf-{aiperf.VERSION}"


def check(options: Namespace, settings: Settings, spec: LoadSpec) -> tuple[str, ...]:
    """What its reader should know; empty where only ours is asked for.

    Raises UsageError, RequestError; nothing has been installed or sent then.
    """
    if options.engine == "native":
        if options.yes:
            raise UsageError("--yes goes with --engine aiperf", "leave it out: nothing is installed")
        return ()
    if options.sweep is not None:
        raise UsageError("--engine aiperf takes one load", "leave --sweep out")
    notes = aiperf.check(spec)
    aiperf.require_consent(folder_of(settings), options.yes)
    return notes


async def beside(
    spec: LoadSpec, rows: Sequence[Row], settings: Settings, report: Report
) -> tuple[tuple[Beside, ...], tuple[str, ...]]:
    """aiperf's run of the same load, its figures beside ours, and notes. Raises TunaError where it fails."""
    report.step("the same load once more, by aiperf", 0.95)
    begun = time.monotonic()
    settings.data_folder(FOLDER)
    figures = await aiperf.run_aiperf(spec, folder_of(settings), report.note)
    notes = [
        f"aiperf {figures.version}: {figures.requests} requests answered, {figures.errors} failed, "
        f"in {figures.took_s:.1f} s ({time.monotonic() - begun:.0f} s with its own start)"
    ]
    if figures.late_p99_ms is not None:
        notes.append(
            f"aiperf was late itself: p99 {figures.late_p99_ms:.1f} ms from a request's time to its leaving"
        )
    return aiperf.beside(figures, rows), (*notes, *figures.notes)
