"""Phases of a cold start: they sum to the whole, and what a provider does not show is not invented."""

from __future__ import annotations

import random

from tuna_nb.backends.base import LogLine
from tuna_nb.benchmarks.cold_start import (
    CREATED,
    ENGINE,
    FRESH,
    PLACED,
    READY,
    WARM,
    WEIGHTS,
    Cycle,
    Mark,
    ProviderStarts,
    engine_marks,
    phases,
    summary,
)

ALL = (Mark(CREATED, 100), Mark(PLACED, 400), Mark(ENGINE, 900), Mark(WEIGHTS, 5000), Mark(READY, 9000))


def names(marks: tuple[Mark, ...], total: int = 9500, fresh: bool = True) -> list[tuple[str, int]]:
    return [(p.name, p.ms) for p in phases(marks, total, fresh)[0]]


def test_each_phase_lies_between_two_marks() -> None:
    assert names(ALL) == [
        ("create", 100),
        ("queue", 300),
        ("image", 500),
        ("weights", 4100),
        ("engine", 4000),
        ("first token", 500),
    ]


def test_phases_around_a_missing_mark_are_one() -> None:
    assert names((Mark(PLACED, 400), Mark(READY, 9000)), fresh=False) == [
        ("queue", 400),
        ("image + weights + engine", 8600),
        ("first token", 500),
    ]
    assert names((Mark(READY, 9000),), fresh=False) == [
        ("queue + image + weights + engine", 9000),
        ("first token", 500),
    ]


def test_a_provider_that_shows_nothing_has_one_undivided_phase() -> None:
    assert names((), 1234) == [("undivided", 1234)]


def test_phases_sum_to_the_whole_whatever_a_provider_tells() -> None:
    rng = random.Random(8)
    for _ in range(500):
        _sum_to_the_whole(rng)


def _sum_to_the_whole(rng: random.Random) -> None:
    total = rng.randrange(0, 5000)
    told = [Mark(m.name, rng.randrange(-2000, 7000), rng.choice((0, 0, 250))) for m in ALL if rng.random() < 0.8]
    made, _ = phases(told, total, fresh=rng.random() < 0.5)
    assert sum(p.ms for p in made) == total
    assert all(p.ms >= 0 for p in made)


def test_a_time_of_another_clock_is_left_out_and_said() -> None:
    made, notes = phases((Mark(PLACED, -60_000), Mark(READY, 900)), 1000, fresh=False)
    assert [p.name for p in made] == ["queue + image + weights + engine", "first token"]
    assert "'placed' is told to be at -60.0 s" in notes[0]


def test_a_call_that_returns_when_all_is_ready_divides_nothing() -> None:
    assert names((Mark(CREATED, 8000), Mark(PLACED, 3000), Mark(READY, 7900)), 8100) == [
        ("create + queue", 3000),
        ("image + weights + engine", 4900),
        ("first token", 200),
    ]


def test_the_less_exact_of_two_marks_in_the_wrong_order_is_left_out() -> None:
    assert [n for n, _ in names((Mark(PLACED, 900, 500), Mark(ENGINE, 700), Mark(READY, 950)), 1000, False)] == [
        "queue + image",
        "weights + engine",
        "first token",
    ]


def test_a_phase_is_as_uncertain_as_its_ends() -> None:
    made, _ = phases((Mark(PLACED, 400, 250), Mark(READY, 900)), 1000, fresh=False)
    assert [p.error_ms for p in made] == [250, 250, 0]


def test_an_engines_log_tells_of_its_first_word_and_its_weights() -> None:
    lines = [
        LogLine(99.0, "r1", "of another start"),
        LogLine(100.5, "cloud", "r1 is starting"),
        LogLine(102.0, "r1", "INFO vLLM API server version 0.32.0"),
        LogLine(110.0, "r1", "INFO [default_loader.py:308] Loading weights took 6.20 seconds"),
        LogLine(110.5, "r1", "INFO [gpu_model_runner.py:1] Model loading took 1.1 GiB and 7.0 seconds"),
    ]
    assert engine_marks(lines, 100.0, 120.0, frozenset({"r1"})) == (
        Mark(ENGINE, 2000, 0, "log"),
        Mark(WEIGHTS, 10500, 0, "log"),
    )


def test_a_container_that_has_another_name_in_the_log_is_known_by_vllms_words() -> None:
    lines = [
        LogLine(101.0, "ta-1", "Pulling image"),
        LogLine(102.0, "ta-1", "(APIServer pid=1) INFO 11-22 [api_server.py:1937] vLLM API server version 0.32.0"),
    ]
    assert engine_marks(lines, 100.0, 120.0, frozenset({"fn/1"})) == (Mark(ENGINE, 2000, 0, "log"),)


def test_few_samples_have_a_median_and_no_percentile() -> None:
    cycles = tuple(Cycle(WARM, n, 0.0, ms, ()) for n, ms in enumerate((3000, 1000, 8000)))
    fresh = Cycle(FRESH, 0, 0.0, 60_000, ())
    warm = ProviderStarts("p", "n", None, (fresh, *cycles), 5.0).summaries[1]
    assert (warm.kind, warm.n, warm.median_s, warm.least_s, warm.most_s) == (WARM, 3, 3.0, 1.0, 8.0)
    assert summary(WARM, []) is None
