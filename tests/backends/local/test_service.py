"""A resource at work, without a daemon around it: what is told to end ends, whatever happens at the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.backends.local.clouds import spot
from tuna_nb.backends.local import spec as specs
from tuna_nb.backends.local.fleet import Fleet
from tuna_nb.backends.local.journal import Journal, ResourceRecord


@pytest.mark.parametrize("turns", range(8))
async def test_a_change_in_the_same_moment_does_not_make_it_deaf_to_its_end(turns: int, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, create=True)
    assert journal is not None
    spec = specs.from_request(spot("deaf", min_replicas=0))
    fleet = Fleet(ResourceRecord("u", spec, spec.scaling, 0, "lk-x", 0.0), tmp_path, journal)
    fleet.start()
    await asyncio.sleep(0)
    fleet.poke()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await fleet.close()
    fleet.log.close()
    journal.close()
