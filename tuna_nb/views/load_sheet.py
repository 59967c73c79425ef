"""The tables of load tests: one run, two side by side, all that are kept, and a run's rows."""

from __future__ import annotations

from typing import Final

from tuna_nb.benchmarks.compare import Comparison, Difference
from tuna_nb.benchmarks.measures import Figures, Goodput
from tuna_nb.benchmarks.order import LEVELS
from tuna_nb.benchmarks.report import LoadReport, Step
from tuna_nb.benchmarks.rows import Row
from tuna_nb.benchmarks.run_list import RowList, RunList
from tuna_nb.views.load_words import digits, load, ms, prompts, quantile, rate, row, slo
from tuna_nb.views.sheets import Sheet, age, usd

_MOST_MARKS: Final = 8
_MOST_ERRORS: Final = 6
_MOST_ROWS: Final = 40
_COLUMNS: Final = ("", "n", "mean", *(f"p{100 * level:g}" for level in LEVELS))


def report_sheet(r: LoadReport, now: float) -> Sheet:
    """A row a figure, with 95 % intervals; of a sweep a row a load."""
    sweep = r.sweep is not None and len(r.steps) != 1
    f = r.figures if r.steps else None
    if f is None or not any(step.figures.requests for step in r.steps):
        return Sheet(f"{r.name}: no request was sent", (("target", r.target),), notes=r.notes, tone="bad")
    columns, rows = _sweep(r) if sweep else (_COLUMNS, _rows(f))
    failed = sum(step.figures.failed for step in r.steps)
    return Sheet(
        _title(r, failed),
        tuple(_facts(r, f, sweep)),
        columns if rows else (),
        rows,
        (*_errors(r), *_notes(r, f, sweep)),
        "bad" if failed else "busy" if r.interrupted else "good",
    )


def comparison_sheet(c: Comparison, _now: float) -> Sheet:
    rows = tuple(
        (d.figure, _value(d, d.a), _value(d, d.b), _change(d), _interval(d), _verdict(d)) for d in c.differences
    )
    seen = sum(d.worse is not None for d in c.differences)
    worse = sum(d.worse is True for d in c.differences)
    title = f"{c.b} against {c.a}: " + (
        f"worse in {worse}, better in {seen - worse} of {len(rows)} figures" if seen else "no difference seen"
    )
    warned = tuple(f"NOT ALIKE: {warning}" for warning in c.warnings)
    said = tuple(d.said for d in c.differences if d.seen)
    told = sum(d.low is not None for d in c.differences)
    chance = f"of {told} such intervals one in twenty misses by chance" if told else ""
    notes = (*warned, *said, c.method, *((chance,) if chance else ()))
    columns = ("", f"A: {c.a}", f"B: {c.b}", "B against A", "95 % CI", "verdict")
    return Sheet(title, (), columns, rows, notes, "busy" if warned else "bad" if worse else "plain")


def list_sheet(found: RunList, now: float) -> Sheet:
    rows = tuple(
        (
            run.name,
            run.kind,
            run.state,
            run.target,
            ", ".join(run.models),
            f"{age(now - run.began_at)} ago",
            "-" if run.requests is None else f"{run.requests:,}",
            "-" if run.failed is None else f"{run.failed:,}",
            ms(run.ttft_p50_ms),
            rate(run.tokens_per_s),
        )
        for run in found.runs
    )
    columns = ("name", "kind", "state", "target", "model", "begun", "requests", "failed", "TTFT p50", "tokens/s")
    title = f"{len(rows)} run{'s' * (len(rows) != 1)}" if rows else "no runs yet"
    notes = () if rows else ("`tuna benchmark load-test --service-name NAME --rate 1` makes one",)
    return Sheet(title, (), columns if rows else (), rows, notes)


def rows_sheet(found: RowList, _now: float) -> Sheet:
    swept = any(level is not None for level, _ in found.rows)
    rows = tuple(
        (*((f"{level:g}",) if swept and level is not None else ()), *_row(r))
        for level, r in found.rows[:_MOST_ROWS]
    )
    columns = ("number", "scheduled s", "TTFT", "TPOT", "latency", "tokens", "backend", "error")
    left = len(found.rows) - len(rows)
    notes = (f"{left} more; `-o json`, or in a notebook a DataFrame, has all of them",) if left else ()
    return Sheet(f"{found.name}: {len(found.rows):,} requests", (), (("load",) * swept) + columns, rows, notes)


def _row(r: Row) -> tuple[str, ...]:
    tokens = "-" if r.output_tokens is None else f"{r.output_tokens:,}"
    times = (_ms_of(seconds) for seconds in (r.ttft_s, r.tpot_s, r.latency_s))
    why = r.error or ("warm-up" if r.warmup else "")
    return (str(r.number), f"{r.scheduled_s:.3f}", *times, tokens, r.backend or "-", why)


def _title(r: LoadReport, failed: int) -> str:
    requests = sum(step.figures.requests for step in r.steps)
    state = " (interrupted)" if r.interrupted else ""
    f = r.figures
    main = f.ttft_ms if f.ttft_ms.count else f.latency_ms
    name, median = ("TTFT" if f.ttft_ms.count else "latency"), main.at(0.5)
    said = f", {name} p50 {ms(median)}" if median is not None and len(r.steps) == 1 else ""
    return f"{r.name}{state}: failed = {failed:,} of {requests:,} requests{said}"


def _facts(r: LoadReport, f: Figures, sweep: bool) -> list[tuple[str, str]]:
    facts = [("target", f"{r.target}, {', '.join(r.spec.target.models)}")]
    if sweep:
        facts.append(
            ("at a time" if r.sweep == "concurrency" else "rates", ", ".join(f"{step.level:g}" for step in r.steps))
        )
    else:
        facts.append(("load", load(r.spec)))
    facts.append(("prompts", prompts(r.spec)))
    if not sweep:
        facts += _rates(f, r.spec.arrivals.kind == "closed")
        facts += _served(r, f)
    facts.append(("cost of the run", _cost(r)))
    return facts


def _rates(f: Figures, closed: bool) -> list[tuple[str, str]]:
    sent = f"{rate(f.sent_per_s)} sent, {rate(f.achieved_per_s)} came whole"
    facts = [("requests per second", sent if closed else f"{rate(f.offered_per_s)} offered, {sent}")]
    if f.tokens_per_s is not None:
        facts.append(("output tokens per second", f"{rate(f.tokens_per_s)} in all"))
    if f.goodput is not None:
        facts.append(("goodput", _goodput(f.goodput)))
    return facts


def _goodput(g: Goodput) -> str:
    if g.share is None:
        return f"can't be told ({slo(g.slo)})"
    left = f"; of {g.unjudged:,} it can't be told" if g.unjudged else ""
    return f"{g.share:.1%} of {g.judged:,} kept {slo(g.slo)}: {rate(g.per_s)} a second{left}"


def _served(r: LoadReport, f: Figures) -> list[tuple[str, str]]:
    facts = []
    if f.backends:
        total = sum(n for _, n in f.backends)
        facts.append(("answered by", ", ".join(f"{name} {n / total:.0%}" for name, n in f.backends)))
    if f.told_attempts:
        facts.append(("tried more than once", f"{f.retried:,} of {f.told_attempts:,}"))
    if r.resumed is not None:
        facts.append(("streams continued elsewhere", f"{r.resumed:,}"))
    return facts


def _cost(r: LoadReport) -> str:
    c = r.cost
    if c.usd is None:
        return f"unknown: {c.note}" if c.note else "unknown"
    each = "" if c.per_1000_requests_usd is None else f"; {usd(c.per_1000_requests_usd)} per 1,000 requests"
    tokens = "" if c.per_million_tokens_usd is None else f", {usd(c.per_million_tokens_usd, 2)} per million tokens"
    return f"{usd(c.usd)}{each}{tokens} ({c.note})"


def _rows(f: Figures) -> tuple[tuple[str, ...], ...]:
    made = [
        row("TTFT, ms", f.ttft_ms),
        row("TPOT, ms per token", f.tpot_ms),
        row("gap between chunks, ms", f.chunk_gap_ms),
        row("latency, ms", f.latency_ms),
        row("tokens/s per user", f.user_tokens_per_s),
    ]
    return tuple(cells for cells in made if cells[1] != "0")


def _sweep(r: LoadReport) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    columns = (r.sweep or "load", "requests", "failed", "whole/s", "tokens/s", "TTFT p50, ms", "TTFT p95, ms",
               "TPOT p50, ms", "latency p95, ms", "goodput")  # fmt: skip
    return columns, tuple(_sweep_row(step) for step in r.steps)


def _sweep_row(step: Step) -> tuple[str, ...]:
    f = step.figures
    kept = "-" if f.goodput is None or f.goodput.share is None else f"{f.goodput.share:.1%}"

    def at(name: str, level: float) -> str:
        found = getattr(f, name)
        return quantile(next(q for q in found.quantiles if q.level == level), found.count)

    level = "-" if step.level is None else f"{step.level:g}"
    counts = (level, f"{f.requests:,}", f"{f.failed:,}", rate(f.achieved_per_s), rate(f.tokens_per_s))
    return (*counts, at("ttft_ms", 0.5), at("ttft_ms", 0.95), at("tpot_ms", 0.5), at("latency_ms", 0.95), kept)


def _level(r: LoadReport, step: Step) -> str:
    return "" if step.level is None else f"{r.sweep} {step.level:g}: "


def _errors(r: LoadReport) -> list[str]:
    made = []
    for step in r.steps:
        level = _level(r, step)
        kinds = step.figures.errors
        made += [
            f"{level}{e.count:,} × {e.kind}" + (f", e.g. {e.example}" if e.example else "")
            for e in kinds[:_MOST_ERRORS]
        ]
    return made


def _notes(r: LoadReport, f: Figures, sweep: bool) -> list[str]:
    notes = [f"{_level(r, step)}{note}" for step in r.steps for note in step.notes]
    notes += r.notes
    notes += [one.said for one in r.beside]
    notes += [f"{mark.at_s:.1f} s: {mark.said}" for mark in r.marks[:_MOST_MARKS]]
    if len(r.marks) > _MOST_MARKS:
        notes.append(f"and {len(r.marks) - _MOST_MARKS} more such events")
    if f.failed or f.stopped:
        stopped = f", {f.stopped:,} had not ended" if f.stopped else ""
        notes.append(f"latencies are of the {f.whole:,} that came whole; {f.failed:,} failed{stopped}: not in them")
    if f.untold_tokens and not sweep:
        notes.append(f"of {f.untold_tokens:,} answers the engine told no tokens: TPOT and tokens/s leave them out")
    if r.passed:
        notes += _definitions(r, f)
    if not sweep and r.step.lag is not None:
        late, loop = (ms(1000 * p99) for p99 in (r.step.lag.late_p99, r.step.lag.loop_p99))
        notes.append(f"the generator's own delay: p99 {late} before sending, p99 {loop} in its loop")
    if r.folder is not None:
        notes.append(f"kept in {r.folder}; `tuna benchmark show {r.name}` shows it again")
    return notes


def _definitions(r: LoadReport, f: Figures) -> list[str]:
    if not r.spec.target.stream:
        return ["not streamed: there is no TTFT and nothing between tokens; latency is from the scheduled time"]
    chunks = f.tokens_per_chunk
    one = "" if chunks is None else f", here {chunks:.2f} tokens a chunk"
    when = "when its place was free" if r.spec.arrivals.kind == "closed" else "the scheduled time, not the sending"
    return [
        f"TTFT and latency count from {when}",
        "TPOT is per token, within a request: from its first token to its end (other tools: TPOT, or ITL); a gap is"
        f" between two chunks with text, of all requests (other tools: ITL){one}",
        "[ ]: 95 % confidence, by order statistics; of gaps, alike within a request, by Woodruff's method",
        *_alike(f),
    ]


def _alike(f: Figures) -> list[str]:
    """Where requests were worth fewer than they are, it is told: such a run changed while it ran."""
    shown = (d for d in (f.ttft_ms, f.latency_ms) for q in d.quantiles if 0 < q.worth < d.count / 2)
    if next(shown, None) is None:
        return []
    return ["requests near each other were alike, as in one queue: the intervals are of fewer, and so wider"]


def _value(d: Difference, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if d.unit == "share" else f"{digits(value)} {d.unit}"


def _change(d: Difference) -> str:
    if d.change is None:
        return "-"
    return f"{100 * d.change:+.2f} points" if d.unit == "share" else f"{d.change:+.1%}"


def _interval(d: Difference) -> str:
    if d.low is None or d.high is None:
        return "-"
    unit = " points" if d.unit == "share" else " %"
    return f"{100 * d.low:+.1f} to {100 * d.high:+.1f}{unit}"


def _verdict(d: Difference) -> str:
    if d.low is None:
        return d.why
    return "no difference seen" if d.worse is None else "worse" if d.worse else "better"


def _ms_of(seconds: float | None) -> str:
    return "-" if seconds is None else ms(1000 * seconds)
