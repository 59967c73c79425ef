"""The live view of a job in a notebook: head, bar, Cancel, log; plain HTML once the job has ended.

A widget in a saved notebook reopens as an error, so the output is replaced by static HTML at the end. The view
is written by the jobs' thread only, at most eight times a second, and keeps no timer of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from typing import Any

from tuna_nb.jobs import Job, Snapshot
from tuna_nb.views import html
from tuna_nb.views.text import progress_line

MIN_INTERVAL_S = 0.12
CLOSE_AFTER_S = 1.0
"""The frontend needs a moment to swap the output before its widget models may go."""


def static_bundle(s: Snapshot, now: float) -> dict[str, str]:
    text = progress_line(s, now)
    if s.error is not None:
        text = "\n".join([text, *s.error.lines()])
    return {"text/plain": text, "text/html": html.job(s, now)}


class JobView:
    """One view of one job. `show()` puts it under the cell; showing the job again closes the older view."""

    _open: dict[str, JobView] = {}  # noqa: RUF012 - the views on the page, by job name

    def __init__(self, job: Job, clock: Callable[[], float] = time.time, *, blocks: bool = False) -> None:
        """blocks: the cell waits for it, so that no button could be heard: an interrupt of the kernel is."""
        import ipywidgets as widgets

        self._job = job
        self._clock = clock
        self._shown_at = 0.0
        self._handle: Any = None
        self._closed = False
        self._head = widgets.HTML()
        self._bar = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="100%"))
        self._cancel = widgets.Button(
            description="Cancel",
            icon="times",
            button_style="warning",
            tooltip=f"Cancel {job.name} and remove what it has created",
        )
        self._cancel.on_click(lambda _button: job.cancel())
        self._stop = self._cancel
        if blocks:
            self._stop = widgets.HTML(f'<span style="{html.FONT};{html.QUIET}">■ or I, I stops it</span>')
        self._log = widgets.HTML()
        row = widgets.HBox(
            [self._head, self._stop],
            layout=widgets.Layout(justify_content="space-between", align_items="flex-start"),
        )
        self._box = widgets.VBox([row, self._bar, self._log])

    def show(self) -> None:
        from IPython.display import display

        older = JobView._open.get(self._job.name)
        if older is not None:
            older.close()
        JobView._open[self._job.name] = self
        bundle: dict[str, Any] = static_bundle(self._job.snapshot, self._clock())
        bundle["application/vnd.jupyter.widget-view+json"] = {
            "version_major": 2,
            "version_minor": 0,
            "model_id": self._box.model_id,
        }
        self._handle = display(bundle, raw=True, display_id=True)
        self._job.subscribe(self)

    def __call__(self, s: Snapshot) -> None:
        if self._closed:
            return
        now = self._clock()
        if s.final:
            self._handle.update(static_bundle(s, now), raw=True)
            self._job.unsubscribe(self)
            self._later(self.close)
        elif now - self._shown_at >= MIN_INTERVAL_S:
            self._shown_at = now
            self._draw(s, now)
        else:
            # The last of a burst must be seen too, though nothing may come after it.
            self._later(lambda: self._draw(self._job.snapshot, self._clock()), MIN_INTERVAL_S)

    def _draw(self, s: Snapshot, now: float) -> None:
        if self._closed or s.final:
            return
        self._head.value = html.job_head(s, now)
        self._bar.value = s.fraction
        self._cancel.disabled = s.state == "cancelling"
        lines = escape("\n".join(html.log_lines(s, last=8)))
        self._log.value = (
            # Laid out from the bottom up, so that the newest line is in sight however the lines wrap.
            '<div role="log" tabindex="0" aria-label="log" style="max-height:11em;overflow:auto;'
            'display:flex;flex-direction:column-reverse">'
            '<pre style="margin:0;white-space:pre-wrap;color:var(--jp-content-font-color1,inherit)">'
            f"{lines}</pre></div>"
        )

    def _later(self, what: Callable[[], None], delay_s: float = CLOSE_AFTER_S) -> None:
        import asyncio

        asyncio.get_running_loop().call_later(delay_s, what)

    def close(self) -> None:
        """Free the widget models; the output stays as it is."""
        self._closed = True
        if JobView._open.get(self._job.name) is self:
            del JobView._open[self._job.name]
        for widget in (self._head, self._bar, self._cancel, self._stop, self._log, *self._box.children, self._box):
            # A widget's layout and style are models of their own, and stay open when it closes.
            for model in (widget.layout, getattr(widget, "style", None), widget):
                if model is not None:
                    model.close()
