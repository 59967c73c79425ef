"""CPU of `tuna show-gpus` beyond start-up, offline and warm, and of choosing among ten thousand offers.

`python -m tests.bench.prices`
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.bench.__main__ import cpu_s, median
from tests.catalog.sources import test_skypilot
from tuna_nb.catalog import kept, snapshot
from tuna_nb.catalog.kept import Kept
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.catalog.query import Wanted, select
from tuna_nb.grammar import flags

OFFERS = 10_000
START = "from tuna_nb.frontends.terminal import main; main(['--help'])"
FIT = "from tuna_nb.frontends.terminal import main; main(['fit', '--model', 'Qwen/Qwen3-32B'])"
SHOW = "from tuna_nb.frontends.terminal import main; main(['show-gpus'])"


def many() -> list[Offer]:
    """Ten thousand different offers, as a market of that size has them."""
    dice = random.Random(1)
    known = snapshot.offers()
    return [
        replace(
            dice.choice(known), price_per_hour_usd=dice.uniform(0.1, 9), region=f"r{i % 50}", zone=f"z{i}",
            snapshot=False,
        )
        for i in range(OFFERS)
    ]  # fmt: skip


def best_ms(offers: list[Offer], wanted: Wanted) -> float:
    taken = []
    for _ in range(7):
        begun = time.perf_counter()
        select(offers, wanted, begun)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1000


def main() -> None:
    offers = many()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNA_DATA_DIR"] = folder
        start = median(lambda: cpu_s("-c", START))
        show = median(lambda: cpu_s("-c", SHOW))
        kept.save(Path(folder) / "prices" / "runpod.json", Kept(tuple(offers), time.time()))
        full = median(lambda: cpu_s("-c", SHOW))
    print(f"fit beyond start-up: {median(lambda: cpu_s('-c', FIT)) - start:.2f} CPU-s")
    print(
        f"show-gpus beyond start-up: {show - start:.2f} CPU-s; with {OFFERS} offers kept: {full - start:.2f} CPU-s"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNA_DATA_DIR"] = f"{folder}/data"
        count = test_skypilot.large(Path(folder))
        source = test_skypilot.files(Path(folder))
        for how in ("first", "by the next process", "again"):
            if how != "again":
                source._kept.clear()
            begun = time.process_time()
            asyncio.run(source.fetch())
            print(f"SkyPilot's file of AWS ({count} offers) read {how}: {time.process_time() - begun:.3f} CPU-s")
    for sort in flags.SORTS:
        print(
            f"{OFFERS} offers by {sort:9}: {best_ms(offers, Wanted(cheapest=False, sort=sort, limit=100)):5.1f} ms"
        )
    spot = Wanted(kinds=frozenset({OfferKind.SPOT}), min_vram_gb=40, region="r1", cheapest=False, sort="price")
    print(f"{OFFERS} offers filtered     : {best_ms(offers, spot):5.1f} ms")
    print(f"{OFFERS} offers, cheapest    : {best_ms(offers, Wanted()):5.1f} ms")


if __name__ == "__main__":
    main()
