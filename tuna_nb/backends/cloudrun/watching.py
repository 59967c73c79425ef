"""What Google's other services tell of a service: how many instances Cloud Monitoring counts, and its log."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from tuna_nb.backends.base import LogLine
from tuna_nb.backends.cloudrun.calls import Calls

LAG_S: Final = 240.0
"""Cloud Monitoring counts instances once a minute, and shows the count up to three minutes later."""
_WINDOW_S: Final = 300.0
_PAGE: Final = 1000


async def count(calls: Calls, name: str) -> int:
    """How many instances there were at the last count. Raises BackendError where it can't be read."""
    _, project, _, region, _, short = name.split("/")
    now = time.time()
    params: dict[str, str | int] = {
        "filter": 'metric.type="run.googleapis.com/container/instance_count"'
        f' AND resource.labels.service_name="{short}" AND resource.labels.location="{region}"',
        "interval.startTime": _rfc3339(now - _WINDOW_S),
        "interval.endTime": _rfc3339(now),
        "view": "FULL",
    }
    running = 0
    while True:
        path = f"/v3/projects/{project}/timeSeries"
        page = await calls.rest("monitoring", "GET", path, f"instances of {short}", params=params)
        for series in page.get("timeSeries") or ():
            newest = max(series["points"], key=lambda point: str(point["interval"]["endTime"]))
            running += int(newest["value"]["int64Value"])
        if not page.get("nextPageToken"):
            return running
        params["pageToken"] = page["nextPageToken"]


async def entries(calls: Calls, name: str, after: float) -> AsyncIterator[tuple[str, LogLine]]:
    """Every line from Cloud Logging, with its id."""
    _, project, _, region, _, short = name.split("/")
    body: dict[str, Any] = {
        "resourceNames": [f"projects/{project}"],
        "filter": f'resource.type="cloud_run_revision" AND resource.labels.service_name="{short}"'
        f' AND resource.labels.location="{region}" AND timestamp>="{_rfc3339(after)}"',
        "orderBy": "timestamp asc",
        "pageSize": _PAGE,
    }
    while True:
        page = await calls.rest("logging", "POST", "/v2/entries:list", f"log of {short}", body=body)
        for entry in page.get("entries") or ():
            if text := _text(entry):
                at = datetime.fromisoformat(entry["timestamp"]).timestamp()
                instance = (entry.get("labels") or {}).get("instanceId", "")
                revision = (entry.get("resource", {}).get("labels") or {}).get("revision_name", short)
                yield entry["insertId"], LogLine(at, instance[-12:] or revision, text)
        if not page.get("nextPageToken"):
            return
        body["pageToken"] = page["nextPageToken"]


def _text(entry: Mapping[str, Any]) -> str:
    """What an entry says; nothing for the record of a request."""
    if "textPayload" in entry:
        return str(entry["textPayload"]).rstrip()
    payload = entry.get("jsonPayload")
    if payload is not None:
        return str(payload.get("message") or json.dumps(payload))
    message = ((entry.get("protoPayload") or {}).get("status") or {}).get("message")
    return str(message or "")


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
