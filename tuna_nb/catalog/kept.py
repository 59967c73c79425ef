"""Offers on disk: what each source said when it was last asked, a file a source.

A file that can't be read, or was written by another version, counts as none: it is only a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Final

from tuna_nb.catalog.offers import Billing, Lines, Offer, OfferKind

_VERSION: Final = 1
_FIELDS: Final = tuple(f.name for f in fields(Offer))
_LINES, _BILLING, _KIND = _FIELDS.index("lines"), _FIELDS.index("billing"), _FIELDS.index("kind")


@dataclass(frozen=True, slots=True)
class Kept:
    """A source's last good answer, and what has gone wrong since. Times are Unix seconds, None for never."""

    offers: tuple[Offer, ...] = ()
    observed_at: float | None = None
    failed_at: float | None = None
    failures: int = 0
    why: str = ""
    fix: str | None = None


def load(file: Path) -> Kept:
    try:
        told = json.loads(file.read_text("utf-8"))
        if told["version"] != _VERSION or tuple(told["fields"]) != _FIELDS:
            return Kept()
        lines = [Lines(*one) for one in told["lines"]]
        billing = [Billing(*one) for one in told["billing"]]
        return Kept(
            tuple(_offer(row, lines, billing) for row in told["offers"]),
            told["observed_at"],
            told["failed_at"],
            told["failures"],
            told["why"],
            told["fix"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return Kept()


def save(file: Path, kept: Kept) -> None:
    """Whole or not at all. Raises OSError."""
    # Most offers of a source are billed alike: each way is written once.
    lines: dict[Lines, int] = {}
    billing: dict[Billing, int] = {}
    rows = []
    for offer in kept.offers:
        row: list[Any] = [getattr(offer, name) for name in _FIELDS]
        row[_LINES] = lines.setdefault(offer.lines, len(lines))
        row[_BILLING] = billing.setdefault(offer.billing, len(billing))
        rows.append(row)
    told = {
        "version": _VERSION,
        "fields": _FIELDS,
        "lines": [astuple(one) for one in lines],
        "billing": [astuple(one) for one in billing],
        "observed_at": kept.observed_at,
        "failed_at": kept.failed_at,
        "failures": kept.failures,
        "why": kept.why,
        "fix": kept.fix,
        "offers": rows,
    }
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    number, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as out:
            json.dump(told, out, separators=(",", ":"))
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _offer(row: list[Any], lines: list[Lines], billing: list[Billing]) -> Offer:
    row[_LINES], row[_BILLING], row[_KIND] = lines[row[_LINES]], billing[row[_BILLING]], OfferKind(row[_KIND])
    return Offer(*row)
