"""AWS's metadata service at its own address, for every machine of the rig: it tells one that it will be taken away.

Source: "Instance Metadata Service" and "Spot Instance interruption notices", AWS EC2 user guide.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable

from tests.rig.network import METADATA

TOKEN = "the-rigs-token"


class Metadata:
    """whose: a machine's address to its id."""

    def __init__(self, whose: Callable[[str], str | None]) -> None:
        self._whose = whose
        self._leaving: dict[str, float] = {}
        self.asked: set[str] = set()
        self._server: http.server.ThreadingHTTPServer | None = None

    def give_notice(self, instance_id: str, seconds: float = 120.0) -> None:
        """From now on the machine is told that it goes in so many seconds."""
        self._leaving[instance_id] = time.time() + seconds

    def answer(self, address: str, path: str) -> str | None:
        """What the machine at the address reads at the path, or None for a 404."""
        instance_id = self._whose(address)
        if instance_id is None:
            return None
        self.asked.add(instance_id)
        if path == "/latest/meta-data/instance-id":
            return instance_id
        if path == "/latest/meta-data/spot/instance-action" and instance_id in self._leaving:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._leaving[instance_id]))
            return json.dumps({"action": "terminate", "time": at})
        return None

    def start(self) -> None:
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._say(200 if self.path == "/latest/api/token" else 404, TOKEN)

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
                    self._say(401, "")
                    return
                text = service.answer(self.client_address[0], self.path)
                self._say(404 if text is None else 200, text or "")

            def _say(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((METADATA, 80), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
