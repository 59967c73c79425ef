"""How `fit`'s answer is read: what the model is, one GPU's memory line by line, and every GPU that holds it."""

from __future__ import annotations

from tuna_nb.catalog.fit import About, Fit, FitList, Holds, Price
from tuna_nb.catalog.models.architecture import LayerKind
from tuna_nb.catalog.models.memory import GIB, billions
from tuna_nb.catalog.offers import OfferKind
from tuna_nb.views.sheets import Sheet, age

_SHOWN = 24
_KINDS = (
    (OfferKind.SERVERLESS, "serverless $/h"),
    (OfferKind.SPOT, "spot $/h"),
    (OfferKind.ON_DEMAND, "on-demand $/h"),
    (OfferKind.INTERRUPTIBLE, "interruptible $/h"),
    (OfferKind.DEDICATED, "dedicated $/h"),
)


def fit_sheet(fits: FitList, now: float) -> Sheet:
    wanted, rows = fits.wanted, fits.fits
    held = [row for row in rows if row.holds in (Holds.YES, Holds.TIGHT)]
    asked = f"{wanted.concurrency:,} requests of {wanted.max_model_len:,} tokens at once"
    facts = [*_about(fits.model), ("to hold", asked)]
    shown = held[0] if held else rows[0] if rows else None
    if shown is not None:
        facts += _lines(shown)
    kinds = [(kind, head) for kind, head in _KINDS if any(row.price(kind) for row in rows)]
    notes = list(fits.notes)
    if rows and not kinds:
        notes.append("no prices are known here")
    observed = [price.observed_at for row in rows for price in row.prices]
    if observed:
        oldest = age(max(0.0, now - min(observed)))
        notes.append(f"prices are all in, for all its GPUs; the oldest was seen {oldest} ago")
    if len(rows) > _SHOWN:
        notes.append(f"and {len(rows) - _SHOWN} more that hold it (-o json has all)")
    notes += _passed_over(fits)
    columns = ("GPU", "holds it", "needs GiB", "usable GiB", "at once", "longest", *(head for _, head in kinds))
    return Sheet(
        _title(fits, held),
        tuple(facts),
        columns if rows else (),
        tuple(_row(row, [kind for kind, _ in kinds]) for row in rows[:_SHOWN]),
        tuple(notes),
        "good" if held else "bad",
    )


def _title(fits: FitList, held: list[Fit]) -> str:
    name = fits.model.name
    if held:
        best = held[0]
        return f"{name} fits {best.tp_size}x {best.gpu}" + (
            f", and {len(held) - 1} others" if len(held) > 1 else ""
        )
    if any(row.holds is Holds.FEWER for row in fits.fits):
        return f"{name} fits, with fewer requests at once than asked for"
    return f"{name} does not fit" + (f" {fits.fits[0].gpu}" if fits.asked and fits.fits else "")


def _about(model: About) -> list[tuple[str, str]]:
    layers = ", ".join(f"{count} {kind}" for kind, count in model.layers.items())
    windowed = LayerKind.SLIDING in model.layers
    per_token = f"{model.cache_bytes_per_token / 1024:,.4g} KiB on a single GPU"
    return [
        ("model", f"{billions(model.parameters)} billion parameters; layers: {layers}"),
        ("told by", model.source),
        ("cache per token", per_token + (", until a window is full" if windowed else "")),
    ]


def _lines(row: Fit) -> list[tuple[str, str]]:
    need = row.need
    facts = [
        (f"{line.name}, {row.gpu}" if number == 0 else line.name, f"{line.bytes / GIB:,.2f} GiB ({line.how})")
        for number, line in enumerate(need.lines)
    ]
    each = "on each GPU" if row.tp_size > 1 else "in all"
    facts.append(("needed", f"{need.bytes / GIB:,.1f} of {need.budget_bytes / GIB:,.1f} GiB {each}"))
    if need.most_request_bytes > need.request_bytes:
        facts.append(
            (
                "one request",
                f"{need.request_bytes / 2**20:,.0f} MiB of cache; {need.most_request_bytes / 2**20:,.0f} MiB if no"
                " layer forgot anything, as without the engine's hybrid memory manager",
            )
        )
    return facts


def _row(row: Fit, kinds: list[OfferKind]) -> tuple[str, ...]:
    need = row.need
    return (
        f"{row.tp_size}x {row.gpu}",
        str(row.holds),
        f"{need.bytes / GIB:,.1f}",
        f"{need.budget_bytes / GIB:,.1f}",
        f"{int(need.requests):,}",
        f"{need.longest:,}" if need.longest else "-",
        *(_usd(row.price(kind)) for kind in kinds),
    )


def _usd(price: Price | None) -> str:
    if price is None:
        return "-"
    return f"{'' if price.whole else 'from '}{price.usd_per_hour:,.2f} {price.provider}"


def _passed_over(fits: FitList) -> list[str]:
    """Those that are too small, smallest first, in one line each reason."""
    by_reason: dict[str, list[str]] = {}
    for gpu, why in fits.passed_over:
        small = why.partition(": ")[2].startswith("needs")
        by_reason.setdefault("too small even with 8 of them" if small else why, []).append(gpu)
    return [f"{why}: {', '.join(names)}" for why, names in by_reason.items()]
