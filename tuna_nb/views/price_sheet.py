"""The table of `show-gpus`."""

from __future__ import annotations

import time
from typing import Final

from tuna_nb.catalog.listing import Answer, Priced, PriceList, Seen
from tuna_nb.views.sheets import Sheet, age, usd

_TROUBLE: Final = (Answer.FAILED, Answer.SLOW)
_MOST_NOTES: Final = 12


def price_sheet(p: PriceList, now: float) -> Sheet:
    """A row an offer, unknown prices as such, stale ones marked; below it how the sources answered."""
    if p.history is not None:
        return _history(p, p.history)
    several = any(row.offer.gpu_count > 1 for row in p.rows)
    spot = any(row.saves_on_demand is not None or row.saves_serverless is not None for row in p.rows)
    places = any(row.offer.region for row in p.rows)
    columns = ["gpu", "GB", "provider", "kind"]
    columns += ["GPUs"] * several + ["$/GPU-h", "all in $/h"] + ["saves"] * spot + ["region"] * places
    columns += ["seen", "source"]
    rows = []
    for row in p.rows:
        o = row.offer
        cells = [o.gpu, str(row.vram_gb), o.provider, o.kind.value]
        if several:
            cells.append(str(o.gpu_count))
        cells += [usd(o.price_per_hour_usd, 3) if o.price_per_hour_usd is not None else "no quote", all_in(row)]
        if spot:
            cells.append(savings(row))
        if places:
            cells.append(o.zone or o.region or "-")
        cells += [seen(row, now), o.source]
        rows.append(tuple(cells))
    shown = f"{len(rows)} of {p.total}" if len(rows) < p.total else str(p.total)
    title = f"{shown} price{'s' * (p.total != 1)}" if p.rows else "no offer matches"
    return Sheet(title, _facts(p), tuple(columns) if rows else (), tuple(rows), _notes(p))


def _history(p: PriceList, history: tuple[Seen, ...]) -> Sheet:
    rows = tuple(
        (
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(h.at)),
            h.gpu,
            h.provider,
            h.kind,
            usd(h.price_per_hour_usd, 3),
            h.region or "-",
        )
        for h in history
    )
    title = f"{len(rows)} price{'s' * (len(rows) != 1)} seen in 90 days" if rows else "no prices seen yet"
    notes = () if rows else ("`show-gpus --live` asks the providers, and what they say is kept",)
    columns = ("seen (UTC)", "gpu", "provider", "kind", "$/GPU-h", "region") if rows else ()
    return Sheet(title, (), columns, rows, (*notes, *troubles(p)))


def all_in(row: Priced) -> str:
    """What an hour of the whole machine comes to; `from` where a line is billed whose price is not known."""
    if row.all_in is None:
        return "unknown"
    amount = usd(row.all_in.usd_per_hour, 3)
    return amount if row.all_in.whole else f"from {amount}"


def savings(row: Priced) -> str:
    """Against on demand and against serverless, like with like."""
    parts = [
        f"{share:.0%} {than}" if share >= 0 else f"{-share:.0%} dearer {than}"
        for share, than in ((row.saves_on_demand, "on-demand"), (row.saves_serverless, "serverless"))
        if share is not None
    ]
    return ", ".join(parts) or "-"


def seen(row: Priced, now: float) -> str:
    """Its age in one unit, and whether it is too old to be believed."""
    return f"{age(row.offer.age_s(now)).partition(' ')[0]} ago{' STALE' * row.stale}"


def remarks(p: PriceList) -> list[str]:
    """What is to be said of prices, each once, with the GPUs that it is said of."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in p.rows:
        if row.offer.note:
            of = said.setdefault((row.offer.provider, row.offer.note), [])
            if row.offer.gpu not in of:
                of.append(row.offer.gpu)
    return [f"{provider} {', '.join(of)}: {note}" for (provider, note), of in said.items()]


def _facts(p: PriceList) -> tuple[tuple[str, str], ...]:
    if p.shape is None:
        return ()
    s = p.shape
    wanted = f"{s.gpus} GPU{'s' * (s.gpus != 1)}, {s.vcpus:g} vCPUs, {s.memory_gib:g} GiB"
    return (("all in", wanted + (f", {s.disk_gb:g} GB of disk" if s.disk_gb else "")),)


def _notes(p: PriceList) -> tuple[str, ...]:
    notes = []
    for lacking in sorted({row.all_in.lacks for row in p.rows if row.all_in is not None and row.all_in.lacks}):
        notes.append(f"from: {' and '.join(lacking)} are billed too, at a price that is not known")
    notes += remarks(p)
    if len(notes) > _MOST_NOTES:
        notes = [*notes[:_MOST_NOTES], f"and {len(notes) - _MOST_NOTES} notes more: -o json has them"]
    notes += troubles(p)
    if p.rows and all(row.offer.snapshot for row in p.rows):
        notes.append("all from the table that ships with Tuna; --live asks the providers")
    elif any(row.stale for row in p.rows):
        notes.append("STALE: older than such prices may be believed; --live asks again")
    return tuple(notes)


def troubles(p: PriceList) -> list[str]:
    """A line for each that did not answer, or was not asked."""
    notes = []
    for source in p.sources:
        kept = ""
        if source.observed_at is not None and source.answer in _TROUBLE:
            kept = f"; shown as of {age(p.at - source.observed_at)} ago"
        if source.answer in _TROUBLE:
            fix = "--timeout waits longer" if source.answer is Answer.SLOW else source.fix
            step = f" ({fix})" if fix else ""
            notes.append(f"{source.name}: {source.why}{step}{kept}")
        elif source.fix is not None:
            notes.append(f"{source.name}: not asked, {source.why}: {source.fix}")
        elif source.why:
            notes.append(f"{source.name}: not asked: {source.why}")
    return notes
