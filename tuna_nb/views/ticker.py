"""A live board in a terminal: redrawn in place until Ctrl-C, a line every few seconds where it is not one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

from tuna_nb.deployments.board import Board, Picture
from tuna_nb.jobs import LoopThread
from tuna_nb.views import board_face, data, text

LINE_S: Final = 5.0
ONCE_S: Final = 6.0
"""So long a single picture waits for router and providers."""
Show = Callable[[Picture], None]


def run(board: Board, out: TextIO, *, as_json: bool = False) -> None:
    """Show it until Ctrl-C, which is its proper end, or until the deployment is gone."""
    with contextlib.suppress(KeyboardInterrupt):
        if not as_json and out.isatty():
            _redrawn(board, out)
        else:
            LoopThread.run(_watch(board, _Lines(out, as_json)))


def once(board: Board) -> Picture:
    """One picture, with all that could be had in a few seconds."""

    async def look() -> Picture:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ONCE_S), contextlib.aclosing(board.watch()) as pictures:
                async for p in pictures:
                    if board_face.whole(p) and (p.status is not None or p.status_error is not None):
                        return p
        return board.picture

    return LoopThread.run(look())


async def _watch(board: Board, show: Show) -> None:
    async with contextlib.aclosing(board.watch()) as pictures:
        async for picture in pictures:
            show(picture)


def _redrawn(board: Board, out: TextIO) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out, highlight=False, force_jupyter=False)
    with Live(Text(f"{board.name}: asking"), console=console, auto_refresh=False, transient=False) as live:

        def show(p: Picture) -> None:
            drawn = io.StringIO()
            # One line less than there are, so that it can be redrawn in place.
            text.show_in(board_face.sheet(p, board.money_first), drawn, console.width)
            made = Text.from_ansi(drawn.getvalue().rstrip("\n") + f"\n\n{_spark(p)}\nCtrl-C ends it")
            live.update(made, refresh=True)

        LoopThread.run(_watch(board, show))


_BARS: Final = "▁▂▃▄▅▆▇█"


def _spark(p: Picture, width: int = 60) -> str:
    """Requests per second of the last minute, and below it who answered: █ spot, ░ serverless."""
    shown = p.moments[-width:]
    rates = [m.requests_per_s or 0.0 for m in shown]
    most = max([*rates, 0.1])
    line = "".join(_BARS[min(int(rate / most * 7.999), 7)] for rate in rates)
    who = ""
    for m in shown:
        spot = sum(n for name, n in m.split.items() if board_face.kind_of(name) == "spot")
        total = sum(m.split.values())
        who += " " if not total else "█" if spot * 2 >= total else "░"
    return f"{line}  requests per second, up to {most:.1f}\n{who}  █ spot, ░ serverless"


class _Lines:
    """A line every few seconds, and at once when something happened; or JSON, one picture a line."""

    def __init__(self, out: TextIO, as_json: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._as_json, self._clock = out, as_json, clock
        self._due = 0.0
        self._link = ""
        self._told = 0
        self._seen: float | None = None

    def __call__(self, p: Picture) -> None:
        if self._as_json:
            at = None if p.now is None else p.now.at
            if at is not None and at == self._seen and p.link == self._link:
                return
            self._seen, self._link = at, p.link
            self._write(json.dumps(snapshot(p), default=str))
            return
        new = [m for m in p.marks if m.kind == "preemption"][self._told :]
        self._told += len(new)
        known = board_face.whole(p)
        if known and (new or p.link != self._link or self._clock() >= self._due):
            self._due, self._link = self._clock() + LINE_S, p.link
            clock = time.strftime("%H:%M:%S", time.localtime(p.at))
            self._write(" ".join([clock, *(f"{m.said}." for m in new), board_face.summary(p)]))

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def snapshot(p: Picture) -> dict[str, Any]:
    """A picture for programs: the figures of now, without those of the minutes before."""
    told: dict[str, Any] = data.plain(p)
    for history in ("moments", "spending"):
        del told[history]
    return told | {"moment": data.plain(p.now), "silent_s": p.silent_s}
