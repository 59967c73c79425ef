"""Running averages of one backend."""

from __future__ import annotations

import json

import pytest

from tuna_router.fleet.learned import FEW, Learned


def test_the_first_sample_is_the_average_and_later_ones_move_it() -> None:
    learned = Learned()
    learned.first_byte(1.0, 1)
    learned.first_byte(2.0, 1)
    assert learned.ttft_s == pytest.approx(1.2)
    assert learned.usual_ttft_s == pytest.approx(1.05)
    learned.cold_start(40)
    learned.served(3.15)
    assert (learned.cold_ttft_s, learned.service_s) == (40, pytest.approx(3))


def test_first_tokens_are_late_when_they_take_more_than_twice_the_usual_time() -> None:
    learned = Learned()
    assert learned.excess_ttft_s == 0
    learned.first_byte(1.0, FEW)
    assert learned.excess_ttft_s == 0
    for _ in range(50):
        learned.first_byte(5.0, FEW + 1)
    assert learned.usual_ttft_s == 1, "what comes under load is not usual"
    assert learned.excess_ttft_s == pytest.approx(3, abs=0.01)


def test_what_a_request_waited_in_a_queue_is_no_part_of_its_service() -> None:
    learned = Learned(ttft_s=4, usual_ttft_s=1)
    learned.served(10)
    assert learned.service_s == 7


def test_errors_are_forgotten_with_time_and_with_every_success() -> None:
    learned = Learned()
    assert learned.errors(0) == 0
    for _ in range(50):
        learned.failed(100.0)
    assert learned.errors(100) == pytest.approx(1, abs=0.01)
    assert learned.errors(130) == pytest.approx(0.5, abs=0.01)
    learned.served(1)
    assert learned.errors(130) == pytest.approx(0.45, abs=0.01)


def test_what_was_learned_survives_as_json_and_nonsense_is_passed_over() -> None:
    learned = Learned()
    assert learned.to_json() == {}
    learned.first_byte(0.25, 1)
    learned.served(4)
    kept = json.loads(json.dumps(learned.to_json()))
    assert kept == {"ttft_s": 0.25, "usual_ttft_s": 0.25, "service_s": 4}
    new = Learned()
    new.recall({**kept, "cold_ttft_s": "x", "service_s": -1, "ttft_s": True, "what": 3})
    assert (new.usual_ttft_s, new.ttft_s, new.service_s, new.cold_ttft_s) == (0.25, None, None, None)
