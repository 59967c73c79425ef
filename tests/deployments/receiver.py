"""A receiver of webhooks over loopback, as strict as a person's own: it checks every signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """answers: status codes for the next requests, with what else to send; 200 after them. Status 0 hangs up."""

    def __init__(self) -> None:
        self.key = "k"
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.got: list[dict[str, Any]] = []
        self.asked = 0
        self.wrong: list[str] = []
        self.url = ""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        self.asked += 1
        stamp, told = headers.get("tuna-timestamp", ""), headers.get("tuna-signature", "")
        wanted = "v1=" + hmac.new(self.key.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(told, wanted):
            self.wrong.append(f"{path}: {told}")
            return 403, {}
        if headers.get("content-type") != "application/json":
            return 415, {}
        status, more = self.answers.pop(0) if self.answers else (200, {})
        if status == 200:
            self.got.append(json.loads(body))
        return status, more


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Listens at a free port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more = receiver.take(self.path, headers, body)
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/services/T0/B0/very-secret"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
