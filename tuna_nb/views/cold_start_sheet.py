"""The table of `benchmark cold-start`: each start and its phases, and what they come to."""

from __future__ import annotations

from typing import Any

from tuna_nb.benchmarks.cold_start import WARM, ColdStartReport, Cycle, Phase, ProviderStarts, Summary
from tuna_nb.views.sheets import Sheet, age, usd


def cold_start_sheet(r: ColdStartReport, _now: float) -> Sheet:
    """A row a start, and below those of a provider what they come to; what went wrong in the notes."""
    names = r.phase_names
    rows: list[tuple[str, ...]] = []
    for one in r.providers:
        rows += [_cycle(one, c, names) for c in one.cycles]
        rows += [_summary(one, s, names) for s in one.summaries if s.n > 1]
    costs = [one.usd for one in r.providers]
    spent = None if any(c is None for c in costs) else sum(c or 0 for c in costs)
    facts = [("model", r.model), ("gpu", r.gpu), ("took", age(r.took_s))]
    facts.append(("cost", f"{usd(spent)}, reckoned {usd(r.expected_usd)}"))
    if r.budget_usd is not None:
        facts.append(("budget", usd(r.budget_usd, 2)))
    columns = ("provider", "start", "in all", *names, "at zero before")
    wrong = any(one.error or one.left for one in r.providers)
    return Sheet(
        _title(r), tuple(facts), columns if rows else (), tuple(rows), _notes(r), "bad" if wrong else "good"
    )


def cold_start_rows(r: ColdStartReport) -> list[dict[str, Any]]:
    """A row a phase, for a DataFrame; seconds."""
    return [
        {
            "provider": one.provider,
            "kind": c.kind,
            "number": c.number + 1,
            "phase": p.name,
            "seconds": p.ms / 1000,
            "error_s": p.error_ms / 1000,
            "total_s": c.ttft_s,
        }
        for one in r.providers
        for c in one.cycles
        for p in c.phases
    ]


def seconds(s: float) -> str:
    return f"{s:.2f} s" if s < 100 else f"{s:.0f} s"


def _title(r: ColdStartReport) -> str:
    kind = WARM if any(s.kind == WARM for one in r.providers for s in one.summaries) else None
    found = [(s.median_s, one.provider, s) for one in r.providers for s in one.summaries if kind in (None, s.kind)]
    if not found:
        return "no start was measured"
    median, provider, best = min(found, key=lambda f: f[:2])
    where = "from zero" if best.kind == WARM else "from nothing"
    shown = f"{provider}: first token {where} in {seconds(median)}"
    what = f"median of {best.n}" if best.n > 1 else "one start"
    return f"{shown} ({what})" + (", the soonest" if len(r.providers) > 1 else "")


def _cycle(one: ProviderStarts, c: Cycle, names: tuple[str, ...]) -> tuple[str, ...]:
    known = {p.name: _phase(p) for p in c.phases}
    zero = "-" if c.zero is None else f"{c.zero.said}, after {seconds(c.zero.waited_s)}"
    cells = [known.get(name, "-") for name in names]
    return (one.provider, f"{c.kind} {c.number + 1}", seconds(c.ttft_s), *cells, zero)


def _phase(p: Phase) -> str:
    return f"{p.ms / 1000:.2f}" + (f" ± {p.error_ms / 1000:.2f}" if p.error_ms else "")


def _summary(one: ProviderStarts, s: Summary, names: tuple[str, ...]) -> tuple[str, ...]:
    spread = f"{seconds(s.median_s)} ({s.least_s:.2f}–{s.most_s:.2f})"
    return (one.provider, f"{s.kind}: median (least–most) of {s.n}", spread, *("" for _ in names), "")


def _notes(r: ColdStartReport) -> tuple[str, ...]:
    notes: list[str] = []
    for one in r.providers:
        if one.left is not None:
            again = f"`tuna destroy --service-name {one.service_name}`"
            notes.append(f"STILL THERE: {one.service_name}: {one.left}; {again} tries again")
        elif one.kept:
            end = f"`tuna destroy --service-name {one.service_name}` ends it"
            notes.append(f"{one.service_name} was left there, as asked for; {end}")
        if one.error is not None and one.error != one.left:
            notes.append(f"{one.provider}: {one.error}")
        inexact = max((p.error_ms for c in one.cycles for p in c.phases), default=0)
        if inexact:
            looked = f"{one.provider} was looked at every {one.poll_s:g} s"
            notes.append(f"{looked}: its phases may be off by up to {inexact / 1000:.2f} s, never their sum")
        notes += [f"{one.provider}, {c.kind} {c.number + 1}: {text}" for c in one.cycles for text in c.notes]
        again_asked = [c for c in one.cycles if c.asked > 1]
        if again_asked:
            most = max(c.asked for c in again_asked)
            notes.append(f"{one.provider} answered with errors while it started: it was asked up to {most} times")
    if any(" + " in name for name in r.phase_names):
        notes.append("'a + b': the provider does not show where a ends")
    if r.name:
        notes.append(f"kept; `tuna benchmark show {r.name}` shows it again")
    return (*dict.fromkeys(notes), *r.notes)
