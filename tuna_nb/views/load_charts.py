"""Charts of a load test: latency over time, how it is spread, who answered, and latency against throughput.

What happened meanwhile is marked where it happened. Lines over time are of the requests scheduled in a span,
whenever they were answered; a p95 is drawn only where a span holds 20 requests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tuna_nb.benchmarks.measures import NOBODY, Bucket
from tuna_nb.benchmarks.order import LEAST, LEVELS, Distribution, value
from tuna_nb.benchmarks.report import LoadReport, Step
from tuna_nb.views import figures, lines
from tuna_nb.views.board_face import kind_of
from tuna_nb.views.charts import Chart
from tuna_nb.views.lines import Flag, Line, Plot
from tuna_nb.views.load_words import ms, rate
from tuna_nb.views.sheets import Sheet
from tuna_nb.views.svg import Style

_TTFT: Final = Style("#a562c0", "circle")
_LATENCY: Final = Style("#cc7a1f", "square")
_TPOT: Final = Style("#2e9467", "triangle-up")
_CDF_POINTS: Final = 160
_MOST_FLAGS: Final = 40


def charts_of(report: LoadReport) -> tuple[Chart, ...]:
    """Those that there is something to draw for."""
    if report.sweep is not None and len(report.steps) > 1:
        return tuple(made for made in (throughput(report),) if made is not None)
    step = report.step
    drawn = (over_time(step, _flags(report)), spread(step), shares(step, _flags(report)))
    return tuple(made for made in drawn if made is not None)


def over_time(step: Step, flags: tuple[Flag, ...] = ()) -> Chart | None:
    """Percentiles of TTFT, or of latency where nothing was streamed, by when requests were to leave."""
    buckets = step.figures.buckets
    if len(buckets) < 2:
        return None
    streamed = step.figures.ttft_ms.count > 0
    name, style = ("TTFT", _TTFT) if streamed else ("latency", _LATENCY)
    p50 = [(_middle(b), b.ttft_p50_ms if streamed else b.latency_p50_ms) for b in buckets]
    p95 = [(_middle(b), b.ttft_p95_ms if streamed else b.latency_p95_ms) for b in buckets]
    title = f"{name} over time"
    plot = Plot(
        title, "seconds since the first request", "ms",
        [Line(f"{name} p50", style, p50), Line(f"{name} p95", style, p95, "dash")],
        flags, gap=2.5 * buckets[0].width_s,
    )  # fmt: skip
    columns = ("from", "sent", "whole", "failed", f"{name} p50", f"{name} p95", "latency p50", "tokens/s")
    rows = tuple(
        (f"{b.at_s:g} s", f"{b.sent:,}", f"{b.whole:,}", f"{b.failed:,}", ms(a), ms(c), ms(b.latency_p50_ms),
         rate(b.tokens_per_s))
        for b, (_, a), (_, c) in zip(buckets, p50, p95, strict=True)
    )  # fmt: skip
    said = f"spans of {buckets[0].width_s:g} s, of the requests that came whole"
    return _chart(plot, Sheet(title, (), columns, rows, tuple(f"{f.x:.1f} s: {f.said}" for f in flags)), said)


def spread(step: Step) -> Chart | None:
    """The share of requests below each time: TTFT, TPOT and latency."""
    f = step.figures
    known = [
        (name, style, found, dash)
        for name, style, found, dash in (
            ("TTFT", _TTFT, f.ttft_ms, "solid"),
            ("TPOT", _TPOT, f.tpot_ms, "dot"),
            ("latency", _LATENCY, f.latency_ms, "dash"),
        )
        if found.count > 1 and (found.least or 0) > 0
    ]
    if not known:
        return None
    title = "How latencies are spread"
    plot = Plot(
        title, "ms, logarithmic", "share of the requests below",
        [Line(name, style, _cdf(found), dash) for name, style, found, dash in known], log_x=True, share=True,
    )  # fmt: skip
    rows = tuple(
        (name, f"{found.count:,}", ms(found.least), *(_known(found, level) for level in LEVELS), ms(found.most))
        for name, _, found, _ in known
    )
    columns = ("figure", "requests", "least", *(f"p{100 * level:g}" for level in LEVELS), "most")
    return _chart(plot, Sheet(title, (), columns, rows), "of the requests that came whole")


def shares(step: Step, flags: tuple[Flag, ...] = ()) -> Chart | None:
    """Who answered, over time; None where nobody says."""
    f = step.figures
    if not f.backends or len(f.buckets) < 2:
        return None
    names = [name for name, _ in f.backends]
    counts = {name: [(_middle(b), dict(b.backends).get(name, 0), sum(n for _, n in b.backends)) for b in f.buckets]
              for name in names}  # fmt: skip
    kinds = [name if name == NOBODY else kind_of(name) for name in names]
    look = figures.distinct(names, kinds)
    title = "Who answered"
    plot = Plot(
        title, "seconds since the first request", "share of the requests",
        [Line(name, look[name], [(x, n / of if of else None) for x, n, of in counts[name]]) for name in names],
        flags, stacked=True, share=True, gap=2.5 * f.buckets[0].width_s,
    )  # fmt: skip
    total = sum(n for _, n in f.backends)
    rows = tuple((name, f"{n:,}", f"{n / total:.1%}") for name, n in f.backends)
    return _chart(plot, Sheet(title, (), ("backend", "requests", "share"), rows), "by when requests were to leave")


def throughput(report: LoadReport) -> Chart | None:
    """Latency against throughput, a point a load."""
    told = all(step.figures.tokens_per_s is not None for step in report.steps)
    streamed = any(step.figures.ttft_ms.count for step in report.steps)
    name, style = ("TTFT", _TTFT) if streamed else ("latency", _LATENCY)
    points = [(_sweep_x(step, told), step.figures.ttft_ms if streamed else step.figures.latency_ms, step)
              for step in report.steps]  # fmt: skip
    known = [(x, found, step) for x, found, step in points if x is not None]
    if len(known) < 2:
        return None
    title = "Latency against throughput"
    labels = [f"{step.level:g}" for _, _, step in known]
    plot = Plot(
        title, "output tokens per second" if told else "requests per second that came whole", "ms",
        [
            Line(f"{name} p50", style, [(x, d.at(0.5)) for x, d, _ in known], "solid", True, labels),
            Line(f"{name} p95", style, [(x, d.at(0.95)) for x, d, _ in known], "dash", True),
        ],
    )  # fmt: skip
    columns = (report.sweep or "", "requests", "whole/s", "tokens/s", f"{name} p50", f"{name} p95", "failed")
    rows = tuple(
        (f"{step.level:g}", f"{step.figures.requests:,}", rate(step.figures.achieved_per_s),
         rate(step.figures.tokens_per_s), _known(d, 0.5), _known(d, 0.95), f"{step.figures.failed:,}")
        for _, d, step in points
    )  # fmt: skip
    return _chart(plot, Sheet(title, (), columns, rows), f"a point a load; the numbers are the {report.sweep}")


def _chart(plot: Plot, sheet: Sheet, caption: str) -> Chart:
    plot = replace(plot, lines=[line for line in plot.lines if any(y is not None for _, y in line.points)])
    if not plot.drawn:
        return Chart(plot.title, Sheet(f"{plot.title}: too few requests", notes=sheet.notes, tone="busy"))
    spoken = f"{plot.title}: {', '.join(line.name for line in plot.lines)}; the numbers are in the table"
    return Chart(plot.title, sheet, lines.drawing(plot, spoken), caption, lambda: lines.spec(plot, caption))


def _flags(report: LoadReport) -> tuple[Flag, ...]:
    taken = [Flag(mark.at_s, mark.said) for mark in report.marks if mark.kind == "preemption"]
    return tuple(taken[:_MOST_FLAGS])


def _sweep_x(step: Step, told: bool) -> float | None:
    return step.figures.tokens_per_s if told else step.figures.achieved_per_s


def _middle(b: Bucket) -> float:
    return b.at_s + b.width_s / 2


def _cdf(found: Distribution) -> list[tuple[float, float | None]]:
    """At most so many points, denser towards the end, where it matters."""
    count = found.count
    points: list[tuple[float, float | None]]
    if count <= _CDF_POINTS:
        return [(x, (i + 1) / count) for i, x in enumerate(found.ordered)]
    shares = [i / 100 for i in range(1, 90)] + [0.9 + i / 1000 for i in range(100)]
    picked = [s for s in shares if s * count >= 1]
    points = [(value(found.ordered, s), s) for s in picked]
    return [*points, (found.ordered[-1], 1.0)]


def _known(found: Distribution, level: float) -> str:
    shown = found.at(level)
    return ms(shown) if shown is not None else "n too small" if found.count < LEAST[level] else "unsure"
