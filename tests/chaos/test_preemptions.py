"""A minute of preemptions without notice: no stream fails, none is cut, none says anything else, nothing grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.preemptions import check, preempt

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


async def test_two_hundred_streams_go_on_through_a_kill_each_second(tmp_path: Path) -> None:
    run = await preempt(tmp_path, seconds=60)
    print(run)
    check(run)
    # Less would say that the machine was too slow to show anything.
    assert run.kills >= 40
    assert run.streams > 400
    assert set(run.resumes) <= {"exact", "closed"}
    assert run.resumes["exact"] > 400
