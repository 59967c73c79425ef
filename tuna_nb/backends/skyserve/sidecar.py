"""Tells when this machine is about to be taken away: a program of its own, sent to every replica as text.

It asks the cloud's metadata service each second, and answers `GET /notice` (with the replica's key): 204 while all
is well, `{"seconds": n}` once there is a notice. SkyServe itself listens to no notice. Only the standard library is
used, of any Python from 3.8 on, for nothing else is known to be there.

Sources: AWS "Spot Instance interruption notices" (instance-action, two minutes; rebalance recommendations are no
notice and are not looked at), Google "Preemption process" (30 s) and "Maintenance events", Azure "Scheduled Events"
(30 s and more).
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import email.utils
import hmac
import http.server
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

AWS, GCP, AZURE = "aws", "gcp", "azure"
BASES = {AWS: "http://169.254.169.254", GCP: "http://169.254.169.254", AZURE: "http://169.254.169.254"}
ANSWER_S = 2.0
POLL_S = 1.0
GCP_PREEMPTED_S = 30.0
GCP_MAINTENANCE_S = 60.0
AZURE_SOON_S = 30.0
AZURE_ENDS = ("Preempt", "Terminate", "Redeploy", "Reboot")

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> str | None:
    """The body as text; None where the service answers 404: there is no such thing. Raises OSError, ValueError."""
    asked = urllib.request.Request(url, headers=headers or {}, method=method)  # noqa: S310 - our own constants
    try:
        with _direct.open(asked, timeout=ANSWER_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise


def aws(base: str, memory: dict[str, Any]) -> float | None:
    """When an EC2 spot instance is stopped or terminated, as Unix seconds; None while it is not to be."""
    token = memory.get("token")
    if token is None or time.monotonic() > memory["until"]:
        head = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        token = ask(base + "/latest/api/token", head, "PUT")
        memory["token"], memory["until"] = token, time.monotonic() + 18000
    try:
        told = ask(base + "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    except urllib.error.HTTPError as error:
        if error.code == 401:
            memory.clear()  # the token is no longer taken
        raise
    if told is None:
        return None
    return float(calendar.timegm(time.strptime(json.loads(told)["time"], "%Y-%m-%dT%H:%M:%SZ")))


def gcp(base: str, memory: dict[str, Any]) -> float | None:
    """When a Compute Engine VM ends: preempted, or terminated for maintenance of its host."""
    head = {"Metadata-Flavor": "Google"}
    instance = base + "/computeMetadata/v1/instance/"
    if (ask(instance + "preempted", head) or "").strip() == "TRUE":
        lasts = GCP_PREEMPTED_S
    elif (ask(instance + "maintenance-event", head) or "").strip() == "TERMINATE_ON_HOST_MAINTENANCE":
        lasts = GCP_MAINTENANCE_S
    else:
        memory.clear()
        return None
    return float(memory.setdefault("ends", time.time() + lasts))


def azure(base: str, memory: dict[str, Any]) -> float | None:
    """When an Azure VM is evicted, stopped or moved; what is planned for another VM does not count."""
    head = {"Metadata": "true"}
    if "name" not in memory:
        named = base + "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        memory["name"] = ask(named, head) or ""
    events = json.loads(ask(base + "/metadata/scheduledevents?api-version=2020-07-01", head) or "{}").get("Events")
    ends = []
    for event in events or []:
        resources = event.get("Resources") or []
        if event.get("EventType") not in AZURE_ENDS or (resources and memory["name"] not in resources):
            continue
        parsed = email.utils.parsedate_tz(event.get("NotBefore") or "")
        # One that has begun has no date any more.
        soon = memory.setdefault(event.get("EventId"), time.time() + AZURE_SOON_S)
        ends.append(float(email.utils.mktime_tz(parsed)) if parsed else soon)
    return min(ends) if ends else None


CLOUDS: dict[str, Callable[[str, dict[str, Any]], float | None]] = {AWS: aws, GCP: gcp, AZURE: azure}


class Watch(threading.Thread):
    """Looks every second. ends: Unix seconds at which the machine goes, None while nothing is known."""

    def __init__(self, cloud: str, base: str) -> None:
        super().__init__(daemon=True)
        self.look, self.base = CLOUDS[cloud], base
        self.memory: dict[str, Any] = {}
        self.ends: float | None = None

    def run(self) -> None:
        while True:
            # Where it can't be asked, what was known last stays known.
            with contextlib.suppress(OSError, ValueError, KeyError):
                self.ends = self.look(self.base, self.memory)
            time.sleep(POLL_S)


def handler(watch: Watch, key: str) -> type[http.server.BaseHTTPRequestHandler]:
    """The class that answers."""

    class Notice(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = (self.headers.get("Authorization") or "").encode()
            if not hmac.compare_digest(told, ("Bearer " + key).encode()):
                self.reply(401, b"")
            elif self.path.partition("?")[0] != "/notice":
                self.reply(404, b"")
            elif watch.ends is None:
                self.reply(204, b"")
            else:
                self.reply(200, json.dumps({"seconds": max(0.0, round(watch.ends - time.time(), 1))}).encode())

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Notice


def main() -> None:
    words = argparse.ArgumentParser(description="Tells of a spot machine's end.")
    words.add_argument("--cloud", choices=sorted(CLOUDS), required=True)
    words.add_argument("--host", default="0.0.0.0")
    words.add_argument("--port", type=int, required=True)
    asked = words.parse_args()
    base = os.environ.get("TUNA_METADATA_" + asked.cloud.upper()) or BASES[asked.cloud]
    watch = Watch(asked.cloud, base.rstrip("/"))
    watch.start()
    server = http.server.ThreadingHTTPServer((asked.host, asked.port), handler(watch, os.environ["VLLM_API_KEY"]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    engine = os.getppid()
    while os.getppid() == engine:  # it ends with the engine
        time.sleep(1)


if __name__ == "__main__":
    main()
