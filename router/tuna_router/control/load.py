"""`/router/load`: the load minute by minute, for bills and for what other policies would have cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from tuna_router.control.models import LoadOut
from tuna_router.load_file import Told, in_memory

if TYPE_CHECKING:
    from tuna_router.app import Router

_MOST_SINCE = 1e12


def add_load(app: FastAPI, router: Router) -> None:
    """The endpoint."""
    core = router.core

    @app.get("/router/load", response_model=LoadOut)
    async def get_load(
        since: Annotated[float, Query(ge=0, le=_MOST_SINCE, description="minutes that end after this")] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1500,
    ) -> Response:
        """Requests and what they used in each minute in which one began, ran or ended; oldest first."""
        file, load, unix_s = core.load_file, core.meter.load, core.meter.wall()
        mine = load.told()

        def answer() -> bytes:
            told = (
                in_memory(load, mine, unix_s, since, limit)
                if file is None
                else file.read(mine, unix_s, since, limit)
            )
            return b"".join(_pieces(told, unix_s))

        # In a thread, and in pieces: a month of it is many megabytes, and streams must flow.
        return Response(await asyncio.to_thread(answer), media_type="application/json")


def _pieces(told: Told, unix_s: float) -> Iterator[bytes]:
    lives = [[round(begun, 3), round(until, 3)] for begun, until in told.lives]
    head = {"now": round(unix_s, 3), "lives": lives, "more": told.more}
    yield json.dumps(head)[:-1].encode() + b', "minutes": ['
    for number, (minute, whole) in enumerate(told.minutes):
        yield (b"," if number else b"") + json.dumps(minute.to_json(whole=whole), separators=(",", ":")).encode()
    yield b"]}"
