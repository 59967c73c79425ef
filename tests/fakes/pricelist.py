"""What pretended sources of prices have in common: whatever they are asked, they can be made to answer something else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.cloud import FakeCloud


@dataclass(frozen=True)
class Said:
    """An answer in the place of the right one."""

    status: int = 200
    body: bytes = b""
    kind: str = "text/plain"


HTML = Said(200, b"<!doctype html><html><body>Log in to the hotel's wifi</body></html>", "text/html")
GATEWAY = Said(502, b"<html><body>502 Bad Gateway</body></html>", "text/html")
TOO_OFTEN = Said(429, b"API requests too frequent: endpoint threshold=1.0")
REFUSED = Said(403, b'{"success": false, "error": "forbidden", "msg": "no such key"}', "application/json")


@dataclass
class Asked:
    """One question: its headers in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str] = field(default_factory=dict)


class FakePrices(FakeCloud):
    """instead: said to every question. drips: a byte now and then, without end. asked: every question."""

    def __init__(self) -> None:
        super().__init__()
        self.instead: Said | None = None
        self.drips = False
        self.asked: list[Asked] = []

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append(Asked(scope["method"], scope["path"], scope["query_string"].decode(), headers))
        if self.drips:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (await _no_more(receive)) is None:
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
        elif self.instead is not None:
            said = self.instead
            kind = [(b"content-type", said.kind.encode())]
            await send({"type": "http.response.start", "status": said.status, "headers": kind})
            await send({"type": "http.response.body", "body": said.body})
        else:
            await super()._http(scope, receive, send)


async def _no_more(receive: Any) -> Any:
    """None while the other side listens, after a short while."""
    try:
        async with asyncio.timeout(0.02):
            while (message := await receive())["type"] != "http.disconnect":
                pass
            return message
    except TimeoutError:
        return None
