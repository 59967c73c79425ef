"""The live board in a notebook: one widget, fed by the kernel, which asks the router; the page asks nobody.

The kernel asks only while a page shows the board. The page says when it opens and closes and gives a sign of life
every few seconds, since a tab that is closed may say nothing. While a cell runs the kernel may not hear it
(ipykernel 7.4 hands a busy kernel no comm message), so silence counts only while none runs. In the end (Stop, an
interrupt of the idle kernel, `%unload_ext`, the cell run again, the deployment gone) plain HTML of the last state
takes its place: a widget in a saved notebook reopens as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Final

from tuna_nb.deployments.board import OFF, Board, Picture
from tuna_nb.deployments.moments import Moment
from tuna_nb.jobs import LoopThread
from tuna_nb.views import board_face, html, text, timeline

BEAT_S: Final = 4.0
"""Between two signs of life of a page."""
PATIENCE_S: Final = 13.0
"""A page that was silent for so long is gone."""
HIDDEN_PATIENCE_S: Final = 90.0
"""One that said it is hidden: browsers let it speak once a minute."""
CLOSE_AFTER_S: Final = 1.0
"""The frontend needs a moment to swap the output before its widget models may go."""
_MARKS_DRAWN: Final = ("preemption", "state", "breaker")


def static_bundle(p: Picture, money_first: bool = False) -> dict[str, str]:
    """What stays of a board: readable anywhere, and of its time."""
    p = replace(p, link=OFF)
    made = board_face.sheet(p, money_first)
    return {"text/plain": text.render(made), "text/html": html.render(made) + timeline.drawing(p)}


@dataclass
class _Page:
    """One view of the board in a browser. heard_at: monotonic."""

    heard_at: float
    patience_s: float = PATIENCE_S


class Pages:
    """Which pages show a board, by what they say. All on one thread; `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pages: dict[str, _Page] = {}
        self._busy = False

    def __bool__(self) -> bool:
        return bool(self._pages)

    def heard(self, page: str, said: str) -> None:
        """A page says `open`, `beat`, `hidden` or `close`. One that is heard again was not gone."""
        if said == "close":
            self._pages.pop(page, None)
        else:
            self._pages[page] = _Page(self._clock(), HIDDEN_PATIENCE_S if said == "hidden" else PATIENCE_S)

    def busy(self, busy: bool) -> None:
        """A cell begins or has ended. What pages said meanwhile comes now: their time begins anew."""
        self._busy = busy
        for page in self._pages.values():
            page.heard_at = self._clock()

    def forget(self) -> None:
        """Drop those that are silent."""
        if self._busy:
            return
        now = self._clock()
        self._pages = {name: page for name, page in self._pages.items() if now - page.heard_at <= page.patience_s}


class Dashboard:
    """One board under a cell. `show()` puts it there; showing the deployment again puts the older one away."""

    _open: dict[str, Dashboard] = {}  # noqa: RUF012 - the boards on the page, by deployment

    def __init__(self, board: Board) -> None:
        self._board = board
        self._pages = Pages()
        self._loop = LoopThread.loop()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent: Moment | None = None
        self._stopped = threading.Event()
        self._handle: Any = None
        self._forget_cells: Callable[[], None] = lambda: None
        self._widget = _widget(face(board.picture, board.money_first))
        self._widget.on_msg(self._heard)

    @classmethod
    def stop_all(cls) -> None:
        """Put every board away, as when the extension is unloaded. From any thread but the jobs' own."""
        for dashboard in list(cls._open.values()):
            dashboard.stop()

    def show(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        older = Dashboard._open.get(self._board.name)
        if older is not None:
            older.stop()
        Dashboard._open[self._board.name] = self
        shell = get_ipython()
        if shell is not None:
            self._forget_cells = _listen_to_cells(shell, self._cell)
            _hear_interrupts(shell)
        bundle: dict[str, Any] = static_bundle(self._board.picture, self._board.money_first)
        bundle["application/vnd.jupyter.widget-view+json"] = {
            "version_major": 2,
            "version_minor": 0,
            "model_id": self._widget.model_id,
        }
        self._handle = display(bundle, raw=True, display_id=True)

    def stop(self, why: str | None = None) -> None:
        """Plain HTML in its place; nobody is asked any more. From any thread. why: said in it."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if Dashboard._open.get(self._board.name) is self:
            del Dashboard._open[self._board.name]
        self._forget_cells()
        picture = self._board.picture
        if why is not None:
            picture = replace(picture, status_error=why)
        if self._handle is not None:
            self._handle.update(static_bundle(picture, self._board.money_first), raw=True)
        self._loop.call_soon_threadsafe(self._put_away)

    @property
    def watching(self) -> bool:
        """Whether it asks anybody now."""
        return self._task is not None and not self._task.done()

    # -- what the page and the kernel say, on whatever thread ------------------------------------------------

    def _heard(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict):
            return
        said, page = str(content.get("said")), str(content.get("page"))
        if said == "stop":
            self.stop()
        elif said in ("open", "beat", "hidden", "close"):
            self._loop.call_soon_threadsafe(self._page_said, page, said)

    def _cell(self, busy: bool) -> None:
        self._loop.call_soon_threadsafe(self._pages.busy, busy)

    # -- on the jobs' thread ----------------------------------------------------------------------------------

    def _page_said(self, page: str, said: str) -> None:
        self._pages.heard(page, said)
        self._judge()
        if said == "open" and not self._stopped.is_set():
            self._send_all(self._board.picture)

    def _judge(self) -> None:
        """Watch while a page is open. The only timer lives as long."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pages.forget()
        wanted = bool(self._pages) and not self._stopped.is_set()
        if wanted and not self.watching:
            self._task = self._loop.create_task(self._watch())
        elif not wanted and self._task is not None:
            self._task.cancel()
        if wanted:
            self._timer = self._loop.call_later(1.0, self._judge)

    async def _watch(self) -> None:
        """It ends by itself with the deployment, or by a defect, which is shown: trying again would hide it."""
        defect = None
        try:
            async with contextlib.aclosing(self._board.watch()) as pictures:
                async for picture in pictures:
                    self._draw(picture)
        except Exception as e:  # noqa: BLE001 - whatever it is, the page must not go on as if it were told of now
            defect = f"this is a defect in Tuna: {type(e).__name__}: {e}"
        self.stop(defect)

    def _draw(self, p: Picture) -> None:
        with self._widget.hold_sync():
            self._widget.face = face(p, self._board.money_first)
        at = [m.at for m in p.moments]
        if self._sent is None or not at or self._sent.at not in at:
            self._send_all(p)
            return
        new = [m for m in p.moments if m.at > self._sent.at]
        self._widget.send({"add": [point(m) for m in new], "marks": marks(p), "spending": p.spending})
        self._sent = p.now

    def _send_all(self, p: Picture) -> None:
        self._widget.send({"all": [point(m) for m in p.moments], "marks": marks(p), "spending": p.spending})
        self._sent = p.now

    def _put_away(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()
        self._loop.call_later(CLOSE_AFTER_S, self._close)

    def _close(self) -> None:
        self._widget.close()
        self._board.close()


def face(p: Picture, money_first: bool) -> dict[str, Any]:
    """What the page shows in words; figures are written here, so that all frontends write them alike."""
    tone, words = board_face.link(p)
    found = board_face.shares(p)
    status = p.status
    return {
        "name": p.name,
        "about": "" if status is None else f"{status.model} on {status.gpu}",
        "state": "" if status is None else status.state,
        "tone": tone,
        "link": words,
        "whole": board_face.whole(p),
        "money_first": money_first,
        "tiles": [asdict(tile) for tile in board_face.tiles(p, money_first)],
        "columns": list(board_face.columns(found)),
        "rows": [list(row) for row in board_face.rows(found)],
        "shares": [[one.name, one.kind, one.share] for one in found],
        "events": [list(line) for line in board_face.mark_lines(p)],
        "notes": [note for note in (p.status_error, p.bill_error) if note],
        "summary": board_face.summary(p),
        "drawn": timeline.told(p),
    }


def point(m: Moment) -> dict[str, Any]:
    """A moment as the page draws it."""
    return {
        "t": m.at,
        "sent": m.requests_per_s,
        "split": dict(m.split),
        "first": [m.ttft_p50_s, m.ttft_p95_s],
        "between": [m.inter_token_p50_s, m.inter_token_p95_s],
        "states": dict(m.states),
    }


def marks(p: Picture) -> list[list[Any]]:
    return [[m.at, m.kind, m.backend, m.said] for m in p.marks if m.kind in _MARKS_DRAWN]


@cache
def _read(name: str) -> str:
    return files("tuna_nb.views").joinpath(name).read_text("utf-8")


def _widget(first: dict[str, Any]) -> Any:
    import anywidget
    import traitlets

    class Live(anywidget.AnyWidget):
        _esm = "\n".join(
            [f"const STYLE = {json.dumps(_read('dashboard.css'))}, BEAT_S = {BEAT_S};", _read("dashboard.js")]
        )
        face = traitlets.Dict().tag(sync=True)

    return Live(face=first)


def _listen_to_cells(shell: Any, tell: Callable[[bool], None]) -> Callable[[], None]:
    """Call `tell` as a cell begins and ends; returns what ends that."""

    def begins(_info: Any = None) -> None:
        tell(True)

    def ended(_result: Any = None) -> None:
        tell(False)

    shell.events.register("pre_run_cell", begins)
    shell.events.register("post_run_cell", ended)

    def forget() -> None:
        for event, told in (("pre_run_cell", begins), ("post_run_cell", ended)):
            with contextlib.suppress(ValueError):
                shell.events.unregister(event, told)

    return forget


def _hear_interrupts(shell: Any) -> None:
    """An interrupt while no cell runs puts the boards away; without any it does nothing, as before.

    Between cells a kernel ignores interrupts, and what it does then it puts back after each cell.
    """
    kernel = getattr(shell, "kernel", None)
    if kernel is not None and getattr(kernel, "saved_sigint_handler", None) == signal.SIG_IGN:
        kernel.saved_sigint_handler = lambda _number, _frame: Dashboard.stop_all()
