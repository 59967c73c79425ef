"""The chart of `benchmark cold-start`: the phases of each start, end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from tuna_nb.benchmarks.cold_start import ColdStartReport, Cycle, ProviderStarts
from tuna_nb.views import figures, svg
from tuna_nb.views.charts import Chart
from tuna_nb.views.cold_start_sheet import cold_start_sheet, seconds
from tuna_nb.views.svg import Style

TITLE: Final = "From asking to the first token"
_HATCHES: Final = ("", "/", "x", "\\", ".", "-", "+", "|")
_LINE, _HEAD, _LEFT, _RIGHT = 24, 4, 190, 80


def chart_of(report: ColdStartReport) -> tuple[Chart, ...]:
    """One, or none where no start was measured."""
    starts = [(one, c) for one in report.providers for c in one.cycles]
    if not starts:
        return ()
    sheet = cold_start_sheet(report, report.at)
    look = figures.styles(report.phase_names)
    return (
        Chart(
            TITLE,
            sheet,
            _legend(look) + _drawing(starts, look),
            "seconds; a phase that the provider does not show is one with its neighbour",
            lambda: _spec(starts, look),
        ),
    )


def _legend(look: Mapping[str, Style]) -> str:
    """Squares and names, in as many lines as they need."""
    parts, x, y = [], 10.0, 0
    for name, style in look.items():
        width = 30 + 6.6 * len(name)
        if x + width > svg.WIDTH and x > 10:
            x, y = 10.0, y + 18
        parts.append(
            f'<rect x="{x:.0f}" y="{y + 4}" width="10" height="10" fill="{style.colour}"/>'
            f'<text x="{x + 15:.0f}" y="{y + 13}" fill="currentColor" font-size="12">{escape(name)}</text>'
        )
        x += width
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {svg.WIDTH} {y + 20}" aria-hidden="true" '
        f'style="display:block;width:100%;max-width:{svg.WIDTH}px;height:auto">{"".join(parts)}</svg>'
    )


def _label(one: ProviderStarts, c: Cycle) -> str:
    return f"{one.provider} {c.kind} {c.number + 1}"


def _drawing(starts: Sequence[tuple[ProviderStarts, Cycle]], look: Mapping[str, Style]) -> str:
    """Inline SVG: a bar a start, a piece a phase. Pieces are told apart by their place, colour and an edge."""
    most = max(c.total_ms for _, c in starts) or 1
    scale = (svg.WIDTH - _LEFT - _RIGHT) / most
    parts = []
    for number, (one, c) in enumerate(starts):
        y, x = _HEAD + number * _LINE, float(_LEFT)
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 13}" text-anchor="end" fill="currentColor" font-size="12">'
            f"{escape(_label(one, c))}</text>"
        )
        for p in c.phases:
            width = p.ms * scale
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.5):.1f}" height="18" fill="{look[p.name].colour}" '
                f'stroke="currentColor" stroke-opacity=".5" stroke-width=".7">'
                f"<title>{escape(p.name)}: {p.ms / 1000:.2f} s</title></rect>"
            )
            x += width
        parts.append(
            f'<text x="{x + 6:.1f}" y="{y + 13}" fill="currentColor" font-size="12">{seconds(c.ttft_s)}</text>'
        )
    spoken = f"{TITLE}: " + "; ".join(f"{_label(one, c)} {seconds(c.ttft_s)}" for one, c in starts)
    height = 2 * _HEAD + len(starts) * _LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {svg.WIDTH} {height}" role="img" '
        f'aria-label="{escape(spoken)}" style="display:block;width:100%;max-width:{svg.WIDTH}px;height:auto">'
        f"{''.join(parts)}</svg>"
    )


def _spec(starts: Sequence[tuple[ProviderStarts, Cycle]], look: Mapping[str, Style]) -> dict[str, Any]:
    """plotly's JSON: stacked horizontal bars, the first start at the top."""
    labels = [_label(one, c) for one, c in starts]
    traces = []
    for number, (name, style) in enumerate(look.items()):
        lengths = [next((p.ms / 1000 for p in c.phases if p.name == name), None) for _, c in starts]
        traces.append(
            {
                "type": "bar", "orientation": "h", "name": escape(name, quote=False), "y": labels, "x": lengths,
                "marker": {
                    "color": style.colour,
                    "pattern": {"shape": _HATCHES[number % len(_HATCHES)], "solidity": 0.25},
                },
                "hovertemplate": "%{y}<br>" + escape(name, quote=False) + ": %{x:.2f} s<extra></extra>",
            }
        )  # fmt: skip
    grid = {"gridcolor": "rgba(128,128,128,.3)", "linecolor": "rgba(128,128,128,.3)", "zeroline": False}
    layout = {
        "title": {"text": f"<b>{TITLE}</b>", "x": 0, "xanchor": "left", "xref": "container", "font": {"size": 15}},
        "font": {"color": figures.TEXT, "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "barmode": "stack",
        "legend": {"orientation": "h", "traceorder": "normal"},
        "showlegend": True,
        "height": 190 + 28 * max(3, len(labels)),
        "margin": {"l": 60, "r": 40, "t": 60, "b": 80},
        "xaxis": grid | {"title": {"text": "seconds"}, "rangemode": "tozero", "automargin": True},
        "yaxis": grid | {"autorange": "reversed", "automargin": True, "showgrid": False},
    }
    return {"data": traces, "layout": layout, "config": {"displaylogo": False, "responsive": True}}
