"""What `fit` found as plain rows, one for each GPU and number of them: memory in GiB, prices in USD per hour."""

from __future__ import annotations

from typing import Any

from tuna_nb.catalog.fit import FitList
from tuna_nb.catalog.models.memory import GIB
from tuna_nb.catalog.offers import OfferKind


def fit_rows(fits: FitList) -> list[dict[str, Any]]:
    """Of the cache, `requests` is how many requests of `--max-model-len` it holds, and `longest` how many tokens
    each of `--concurrency` requests may have."""
    rows = []
    for fit in fits.fits:
        need = fit.need
        row: dict[str, Any] = {
            "gpu": fit.gpu,
            "tp_size": fit.tp_size,
            "vram_gb": fit.vram_gb,
            "holds": str(fit.holds),
            "why": fit.why,
            "need_gib": round(need.bytes / GIB, 2),
            "usable_gib": round(need.budget_bytes / GIB, 2),
            "weights_gib": round(need.lines[0].bytes / GIB, 2),
            "cache_gib": round(max(need.pool_bytes, 0) / GIB, 2),
            "requests": round(need.requests, 1),
            "longest": need.longest,
        }
        for kind in OfferKind:
            price = fit.price(kind)
            row[f"{kind.name.lower()}_usd_per_hour"] = None if price is None else price.usd_per_hour
        rows.append(row)
    return rows
