"""How long a month of ledger takes to answer: `python -m tests.bench.ledger [INTERVALS]` (a million by default).

Serverless containers of a few minutes and one spot machine, as a busy month leaves them, with a router's traffic of
every minute. Prints seconds of processor and of wall time for each question.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator

from tuna_nb.costs import account, traffic
from tuna_nb.costs.amounts import quarters
from tuna_nb.records import IntervalRecord
from tuna_nb.settings import Settings
from tuna_nb.store import Store

MONTH_S = 30 * 86400
BEGUN = 1_790_000_000.0


def containers(count: int) -> Iterator[IntervalRecord]:
    dice = random.Random(7)
    for number in range(count):
        start = BEGUN + dice.random() * MONTH_S
        end = start + dice.expovariate(1 / 120) + 1
        yield IntervalRecord(1, f"c{number}", start, start + 20, end, end, ((start, 0.8),))


def fill(store: Store, count: int) -> None:
    rows = [
        {"role": role, "provider": "p", "name": role, "price_per_hour_usd": 0.8} for role in ("serverless", "spot")
    ]
    store.add_deployment("a", {"gpu": "L4", "gpu_count": 1}, {}, rows, "id1")
    for resource in (1, 2):
        store.update_resource(resource, state="created")
    batch: list[IntervalRecord] = []
    for one in containers(count):
        batch.append(one)
        if len(batch) == 50_000:
            store.books.add_many(batch, (q for i in batch for q in quarters(i)))
            batch.clear()
    store.books.add_many(batch, (q for i in batch for q in quarters(i)))
    spot = IntervalRecord(2, "s", BEGUN, BEGUN + 300, None, BEGUN + MONTH_S, ((BEGUN, 0.22),))
    store.books.add_many([spot], [])
    used = {"requests": 3, "request_s": 20.0, "busy_s": 18.0, "prompt_tokens": 900, "completion_tokens": 600}
    for day in range(30):
        begins = int(BEGUN // 60 * 60) + day * 86400
        minutes = [
            {
                "at": begins + 60 * n, "in_flight": 1, "arrivals": [[1, 3]], "ends": [[9, 3]], "whole": True,
                "backends": {"serverless": used, "spot": used}, "models": {"m": used}, "keys": {"k": used},
            }
            for n in range(1440)
        ]  # fmt: skip
        traffic.keep(store.books, "id1", {"minutes": minutes, "lives": [[BEGUN, begins + 86400]]})


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Settings.load({"TUNA_DATA_DIR": folder}))
        begun = time.perf_counter()
        fill(store, count)
        print(f"{count:,} intervals and 43,200 minutes written in {time.perf_counter() - begun:.0f} s")
        records = [store.deployment("a")]
        now = BEGUN + MONTH_S
        for since, by in ((0.0, "backend"), (0.0, "day"), (0.0, "key"), (BEGUN + MONTH_S / 2 + 77, "backend")):
            wall, cpu = time.perf_counter(), time.process_time()
            bill = account.bill(store, records, "a", since, now, by=by)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"since {since:.0f} by {by}: ${bill.usd:,.2f} in {wall:.2f} s wall, {cpu:.2f} s of processor")
        store.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
