"""A client sends what opens the endpoint, whatever the provider calls it, and no output shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tuna_nb.deployments.connection import Connection


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An address, and the headers of every request there."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = json.dumps({"object": "list", "data": []}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1", seen
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sk-1"},
        {"Authorization": "Api-Key bt-1"},
        {"Modal-Key": "wk-1", "Modal-Secret": "ws-1"},
        {"Authorization": "Bearer sk-1", "x-more": "more-of-it"},
        {},
    ],
    ids=["bearer", "another scheme", "two headers", "bearer and more", "none"],
)
def test_the_openai_client_sends_the_whole_set(
    server: tuple[str, list[dict[str, str]]], headers: dict[str, str]
) -> None:
    url, seen = server
    link = Connection("n", "m", url, headers)
    link.client().models.list()
    for name, value in headers.items():
        assert seen[0][name.lower()] == value
        assert value not in repr(link)
    assert link.needs_headers == (headers not in ({}, {"Authorization": "Bearer sk-1"}))
