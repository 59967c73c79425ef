"""Static HTML: what a saved notebook keeps.

Inline styles only (GitHub drops `<style>`), nothing from the network, colours from JupyterLab's variables with
fallbacks that are readable on white and on black.
"""

from __future__ import annotations

import time
from html import escape

from tuna_nb.jobs import Snapshot
from tuna_nb.views.sheets import Sheet, age

_COLOUR = {
    "good": "var(--jp-success-color1,#2e8b3d)",
    "bad": "var(--jp-error-color1,#d9363e)",
    "busy": "var(--jp-warn-color1,#c77700)",
    "plain": "inherit",
}
_SIGN = {"good": "✔", "bad": "✖", "busy": "…", "plain": ""}
PLAIN = 'class="mathjax_ignore tex2jax_ignore"'
"""On the outermost element: two dollar signs in a line would be read as a formula between them."""
FONT = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.5"
QUIET = "opacity:.75"
_LINE = "rgba(128,128,128,.35)"
_WORD = 12
_CELL = f"text-align:left;padding:2px 12px 2px 0;border-bottom:1px solid {_LINE};vertical-align:top"


def render(sheet: Sheet) -> str:
    sign = f"{_SIGN[sheet.tone]} " if _SIGN[sheet.tone] else ""
    parts = [
        f'<div {PLAIN} style="{FONT}"><div style="font-weight:600;color:{_COLOUR[sheet.tone]}">'
        f"{sign}{escape(sheet.title)}</div>",
        facts(sheet.facts),
    ]
    if sheet.columns:
        head = "".join(f'<th scope="col" style="{_CELL};{QUIET}">{escape(c)}</th>' for c in sheet.columns)
        body = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in sheet.rows)
        parts.append(
            f'<table style="border-collapse:collapse;margin:6px 0;color:inherit"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )
    parts += [f'<div style="{QUIET}">{escape(note)}</div>' for note in sheet.notes]
    return "".join(parts) + "</div>"


def _cell(text: str) -> str:
    """A short word stays whole; anything longer may be broken, so that a narrow page has no bar to push."""
    wrap = "white-space:nowrap" if len(text) <= _WORD else "overflow-wrap:anywhere"
    return f'<td style="{_CELL};{wrap}">{escape(text)}</td>'


def facts(pairs: tuple[tuple[str, str], ...]) -> str:
    """Label and value, side by side, wrapping on a narrow page."""
    cells = "".join(
        f'<span style="margin-right:18px"><span style="{QUIET}">{escape(label)}</span> '
        f'<span style="font-weight:500;overflow-wrap:anywhere">{escape(value)}</span></span>'
        for label, value in pairs
    )
    return f"<div>{cells}</div>" if cells else ""


def job_tone(state: str) -> str:
    return {"done": "good", "failed": "bad", "cancelled": "busy", "cancelling": "busy"}.get(state, "plain")


def job_head(s: Snapshot, now: float) -> str:
    """The line above the bar. `role=status` tells a screen reader of changes of state."""
    tone = job_tone(s.state)
    step = "" if s.final else f" · {escape(s.step)}"
    said = ""
    if s.error is not None:
        lines = [escape(s.error.message)] + ([f"hint: {escape(s.error.hint)}"] if s.error.hint else [])
        said = f'<div style="color:{_COLOUR[tone]}">' + "<br>".join(lines) + "</div>"
    return (
        f'<div {PLAIN} style="{FONT}">'
        f'<span role="status" aria-live="polite"><b>{escape(s.name)}</b> {escape(s.verb)} '
        f'<span style="color:{_COLOUR[tone]};font-weight:600">{_SIGN[tone]} {escape(s.state)}</span></span>'
        f'<span style="{QUIET}"> {s.fraction:.0%} · {age(s.elapsed_s(now))}{step}</span>'
        f"{facts(s.facts)}{said}</div>"
    )


def job(s: Snapshot, now: float) -> str:
    """A job that has ended, or one in a page that can't be live: the head and a log that folds away."""
    log = escape("\n".join(log_lines(s)))
    return (
        f'{job_head(s, now)}<details {PLAIN} style="{FONT}"><summary>{len(s.log)} log lines</summary>'
        f'<pre style="white-space:pre-wrap;margin:0">{log}</pre></details>'
    )


def log_lines(s: Snapshot, last: int = 100) -> list[str]:
    return [f"{time.strftime('%H:%M:%S', time.localtime(e.at))} {e.text}" for e in s.log[-last:]]
