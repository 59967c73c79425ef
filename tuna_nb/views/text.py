"""Plain text: for a terminal, a log, and the `text/plain` of every notebook output."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tuna_nb.jobs import LogEntry, Snapshot
from tuna_nb.views.sheets import Sheet, age

_PROSE = ("detail", "error", "what happened", "found", "to fix", "step")
_STYLE = {"good": "bold green", "bad": "bold red", "busy": "bold yellow", "plain": "bold"}


def render(sheet: Sheet, width: int = 120) -> str:
    """Without colour, `width` characters wide at most where cells can be wrapped."""
    out = io.StringIO()
    # Inside a kernel rich would display its own HTML beside ours.
    _print(sheet, out, width=width, force_jupyter=False, force_terminal=False, color_system=None)
    return out.getvalue().rstrip("\n")


def show(sheet: Sheet, stream: TextIO) -> None:
    """To a terminal, with colour where it has any."""
    _print(sheet, stream, force_jupyter=False)


def show_in(sheet: Sheet, stream: TextIO, width: int) -> None:
    """With a terminal's colours, whatever the stream is."""
    _print(sheet, stream, width=width, force_jupyter=False, force_terminal=True, color_system="standard")


def _print(sheet: Sheet, out: TextIO, **console_options: Any) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, highlight=False, **console_options)
    console.print(Text(sheet.title, style=_STYLE[sheet.tone]), soft_wrap=True)
    if sheet.facts:
        widest = max(len(label) for label, _ in sheet.facts)
        for label, value in sheet.facts:
            # Not wrapped: an endpoint that is broken over two lines can't be copied.
            console.print(Text(f"  {label:<{widest}}  {value}"), soft_wrap=True)
    if sheet.columns:
        table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.SIMPLE, pad_edge=False)
        for number, column in enumerate(sheet.columns):
            # Only prose may be folded: a folded name or address can't be copied.
            whole = column not in _PROSE
            widest = max(cell_len(text) for text in (column, *(row[number] for row in sheet.rows)))
            table.add_column(column, overflow="fold", no_wrap=whole, min_width=widest if whole else None)
        for row in sheet.rows:
            table.add_row(*(Text(cell) for cell in row))
        # Nor can one that is cut off: where the terminal is too narrow, it wraps the line, and nothing is lost.
        unbounded = console.options.update(width=10_000)
        console.width = max(console.width, console.measure(table, options=unbounded).minimum)
        console.print(table)
    for note in sheet.notes:
        console.print(Text(f"  {note}"), soft_wrap=True)


def progress_line(s: Snapshot, now: float) -> str:
    """One line of a running job."""
    bar = "#" * int(s.fraction * 20)
    return f"{s.name} [{bar:<20}] {s.fraction:4.0%} {s.state}: {s.step} ({age(s.elapsed_s(now))})"


class TextProgress:
    """A job's progress on a stream: its log line by line, and on a terminal a redrawn bar below.

    error_is_shown: whoever waits for the job shows its error, which is then not said twice.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
        error_is_shown: bool = False,
    ) -> None:
        self._out = stream or sys.stderr
        self._error_is_shown = error_is_shown
        self._clock = clock
        self._last: LogEntry | None = None

    def __call__(self, s: Snapshot) -> None:
        bar = self._out.isatty()
        if bar:
            self._out.write("\r\x1b[K")
        # The log is capped, so new lines are those after the last one seen, not those after a count.
        seen = next((i for i in range(len(s.log) - 1, -1, -1) if s.log[i] is self._last), -1)
        for entry in s.log[seen + 1 :]:
            self._last = entry
            if self._error_is_shown and s.error is not None and entry is s.log[-1]:
                continue
            self._out.write(f"{age(entry.at - s.started_at):>7}  {entry.text}\n")
        if bar and not s.final:
            self._out.write(progress_line(s, self._clock()))
        self._out.flush()
