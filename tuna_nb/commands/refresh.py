"""`python -m tuna_nb.commands.refresh`: the prices that ship with Tuna beside what the live sources say today.

Shows the difference; with `--write` puts the new prices, with their day and source, into the table. What no source
tells stays as it is, for a person to look up. Sources that need an account are asked where there is one.
"""

from __future__ import annotations

import asyncio
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tuna_nb.catalog import snapshot
from tuna_nb.catalog.listing import Answer
from tuna_nb.catalog.market import Market
from tuna_nb.catalog.offers import Offer
from tuna_nb.deployments import prices
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.settings import Settings

_PATIENCE_S: Final = 120.0
Change = tuple[Offer, Offer]
"""As it ships, and as it is now."""


def compare(table: Sequence[Offer], fresh: Sequence[Offer]) -> list[Change]:
    """The rows that a source tells today, each with what it says. Zones of a region count as one: sources name them
    differently."""
    cheapest: dict[tuple[object, ...], Offer] = {}
    for offer in fresh:
        if offer.price_per_hour_usd is None:
            continue
        other = cheapest.get(_key(offer))
        if other is None or offer.price_per_hour_usd < (other.price_per_hour_usd or 0.0):
            cheapest[_key(offer)] = offer
    return [(offer, cheapest[_key(offer)]) for offer in table if _key(offer) in cheapest]


def differs(change: Change) -> bool:
    """Whether it costs something else; else its price has only been seen again."""
    old, new = change
    return (old.price_per_hour_usd, old.lines) != (new.price_per_hour_usd, new.lines)


def renewed(table: Sequence[Offer], told: Sequence[Change]) -> list[Offer]:
    """The table with the new prices in it, and the day of those that were seen again."""
    now = dict(told)
    return [
        offer
        if offer not in now
        else replace(
            offer,
            price_per_hour_usd=(new := now[offer]).price_per_hour_usd,
            lines=new.lines,
            observed_at=new.observed_at,
            source=new.source,
            note=new.note,
        )
        for offer in table
    ]


def _key(offer: Offer) -> tuple[object, ...]:
    return offer.provider, offer.kind, offer.gpu, offer.gpu_count, offer.machine, offer.region


def main(words: Sequence[str], file: Path | None = None) -> int:
    """Returns 1 where a source that was asked did not answer. file: the table to write, else the shipped one."""
    if unknown := [word for word in words if word != "--write"]:
        sys.stderr.write(f"refresh: unknown argument {unknown[0]!r}\nhint: it takes --write, or nothing\n")
        return 2
    workspace = Workspace(Settings.load())
    asked = prices.sources(workspace, live=True)
    answers = asyncio.run(Market(None).ask(asked, live=True, patience_s=_PATIENCE_S))
    table = snapshot.offers()
    told = compare(table, answers.fresh)
    changed = [change for change in told if differs(change)]
    say = sys.stdout.write
    for old, new in changed:
        place = f"{old.provider} {old.kind} {old.gpu_count}x {old.gpu} {old.region or ''}".rstrip()
        before, after = (o.price_per_hour_usd for o in (old, new))
        share = f" ({after / before - 1:+.1%})" if before and after else ""
        say(f"{place}: {before} -> {after}{share}; {new.source}\n")
    day = time.strftime("%Y-%m-%d", time.gmtime())
    say(f"on {day} {len(changed)} of {len(table)} prices differ, {len(table) - len(told)} are told by no source\n")
    failed = [r for r in answers.reports if r.answer in (Answer.FAILED, Answer.SLOW)]
    for report in answers.reports:
        if report.why:
            say(f"{report.name}: {report.why}{f': {report.fix}' if report.fix else ''}\n")
    if "--write" in words:
        target = file or Path(snapshot.__file__).with_name(snapshot.FILE)
        with target.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows(snapshot.write(renewed(table, told)))
        say(f"written to {target.name}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
