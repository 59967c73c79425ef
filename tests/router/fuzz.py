"""Mutated requests against the parser, offline, compared with h11: run it for as many as you like.

    python -m tests.router.fuzz [ROUNDS] [SEED]        a million by default, some ten seconds

The suite does the same with few rounds (`dataplane/test_request_head.py`).
"""

from __future__ import annotations

import random
import sys
import time

from .dataplane.test_request_head import compare, mutated


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
    dice, begun, accepted = random.Random(seed), time.monotonic(), 0
    for number in range(1, rounds + 1):
        accepted += compare(mutated(dice))
        if number % 100_000 == 0:
            print(f"{number} requests, {accepted} accepted, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"seed {seed}: {rounds} requests, {accepted} accepted, none that h11 refuses or reads differently")


if __name__ == "__main__":
    main()
