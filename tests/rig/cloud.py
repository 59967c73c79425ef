"""moto's AWS as a process of its own, and the faults that a real one has: no capacity, and keys that have expired.

`python -m tests.rig.cloud ADDRESS PORT` serves. What is wrong with the cloud is told to it by PUT /rig/faults.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

CAPACITY = "InsufficientInstanceCapacity"
EXPIRED = "RequestExpired"
OWNER = "the-clouds-own"
"""The access key of whoever runs the cloud, for whom nothing is ever wrong with it."""
ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>
<RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"""

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Faults:
    """Before moto: turns away what the cloud has no room for, or does not trust.

    no_capacity: the regions in which no spot instance can be had. expired: whether no key is good.
    """

    def __init__(self, cloud: Wsgi) -> None:
        self._cloud = cloud
        self.no_capacity: frozenset[str] = frozenset()
        self.expired = False
        self.refused: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        if environ["PATH_INFO"] == "/rig/faults":
            return self._told(environ, body, start)
        signed = re.search(r"Credential=([^/]+)/\d+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if signed is None or signed[1] == OWNER:
            return self._cloud(environ, start)
        region = signed[2]
        if self.expired:
            return _refusal(start, "400 Bad Request", EXPIRED, "Request has expired.")
        if b"Action=RunInstances" in body and b"MarketType=spot" in body and region in self.no_capacity:
            self.refused.append(region)
            message = "We currently do not have sufficient capacity in the Availability Zone you requested."
            return _refusal(start, "500 Internal Server Error", CAPACITY, message)
        return self._cloud(environ, start)

    def _told(self, environ: dict[str, Any], body: bytes, start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            told = json.loads(body)
            self.no_capacity = frozenset(told.get("no_capacity", ()))
            self.expired = bool(told.get("expired"))
            self.refused.clear()
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"refused": self.refused}).encode()]


def _refusal(start: Callable[..., Any], status: str, code: str, message: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/xml")])
    return [ERROR.format(code=code, message=message).encode()]


def serve(address: str, port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    application = Faults(DomainDispatcherApplication(create_backend_app))
    make_server(address, port, application, threaded=True, request_handler=MotoRequestHandler).serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
