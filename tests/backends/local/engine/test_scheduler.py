"""Continuous batching, with no time passing."""

from __future__ import annotations

import pytest

from tuna_nb.backends.local.engine.scheduler import Limits, QueueFullError, Scheduler, Slot, Speed


def run(scheduler: Scheduler, wanted: dict[Slot, int]) -> dict[Slot, tuple[float, float]]:
    """Run until all slots have their tokens; when each got its first and its last one."""
    now, first, last = 0.0, {}, {}
    while scheduler.unfinished:
        scheduler.admit()
        step = scheduler.next_step()
        assert step is not None
        now += step.duration_s
        for slot in scheduler.complete(step):
            first.setdefault(slot, now)
            last[slot] = now
            if slot.generated == wanted[slot]:
                scheduler.remove(slot)
    return {slot: (first[slot], last[slot]) for slot in wanted}


def test_one_stream_runs_at_the_set_rates() -> None:
    scheduler = Scheduler(Limits(), Speed(prefill_tokens_per_s=1000, decode_tokens_per_s=50))
    slot = Slot(prompt_tokens=100)
    scheduler.add(slot)
    first, last = run(scheduler, {slot: 51})[slot]
    assert first == pytest.approx(0.1 + 0.02)
    assert last - first == pytest.approx(1.0)


def test_streams_in_a_batch_are_slower_each_and_faster_together() -> None:
    scheduler = Scheduler(Limits(), Speed(prefill_tokens_per_s=0, decode_tokens_per_s=100, batch_cost=0.1))
    slots = {Slot(prompt_tokens=1): 100 for _ in range(11)}
    for slot in slots:
        scheduler.add(slot)
    ends = [last for _, last in run(scheduler, slots).values()]
    assert ends == pytest.approx([2.0] * 11)


def test_more_than_max_num_seqs_wait_their_turn() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=2), Speed(0, 10, 0))
    slots = {Slot(prompt_tokens=1): 10 for _ in range(3)}
    for slot in slots:
        scheduler.add(slot)
    scheduler.admit()
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1)
    starts = [first for first, _ in run(scheduler, slots).values()]
    assert starts == pytest.approx([0.1, 0.1, 1.1])


def test_a_long_prompt_is_read_in_several_steps_while_others_go_on() -> None:
    scheduler = Scheduler(Limits(max_num_batched_tokens=100), Speed(1000, 100, 0))
    early, late = Slot(prompt_tokens=1), Slot(prompt_tokens=250)
    scheduler.add(early)
    scheduler.admit()
    step = scheduler.next_step()
    assert step is not None
    scheduler.complete(step)
    scheduler.add(late)
    scheduler.admit()
    yields = []
    for _ in range(3):
        step = scheduler.next_step()
        assert step is not None
        yields.append(scheduler.complete(step))
    assert yields == [[early], [early], [early, late]]


def test_a_full_queue_refuses_counting_running_and_waiting() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=1, max_num_queued_reqs=2), Speed())
    scheduler.add(Slot(1))
    scheduler.admit()
    scheduler.check_admission(1)
    scheduler.add(Slot(1))
    with pytest.raises(QueueFullError):
        scheduler.check_admission(1)


def test_an_answer_aborted_during_a_step_gets_no_token_from_it() -> None:
    scheduler = Scheduler(Limits(), Speed())
    gone, stays = Slot(1), Slot(1)
    scheduler.add(gone)
    scheduler.add(stays)
    scheduler.admit()
    step = scheduler.next_step()
    assert step is not None
    assert scheduler.remove(gone)
    assert scheduler.complete(step) == [stays]
    assert not scheduler.remove(gone)


def test_a_stalled_answer_keeps_its_place_and_gets_no_steps() -> None:
    scheduler = Scheduler(Limits(), Speed())
    slot = Slot(1)
    scheduler.add(slot)
    scheduler.admit()
    slot.stalled = True
    assert scheduler.next_step() is None
    assert scheduler.running == [slot]


def test_no_time_passes_at_a_rate_of_zero() -> None:
    assert Speed(0, 0).step_s(5000, 100) == 0
