"""The access log: complete, without a secret, and never in a stream's way."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tuna_router.errors import SettingsError
from tuna_router.told.access_log import AccessLog, Entry, json_line, text_line
from tuna_router.told.log_lines import JsonLines

ENTRY = Entry(
    unix_s=1_700_000_000.25,
    request_id=b"abc",
    method=b"POST",
    target=b"/v1/chat/completions?api_key=secret",
    status=200,
    backend="spot",
    attempts=2,
    resumes=1,
    ttft_s=0.0123,
    total_s=1.5,
    prompt_tokens=7,
    completion_tokens=9,
    sent_bytes=1234,
    key="alice",
    outcome="finished",
)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_line_has_all_of_it_but_the_query() -> None:
    assert json.loads(json_line(ENTRY)) == {
        "time": "2023-11-14T22:13:20.250Z",
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "backend": "spot",
        "attempts": 2,
        "resumes": 1,
        "ttft_ms": 12.3,
        "total_ms": 1500.0,
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "bytes": 1234,
        "key": "alice",
        "outcome": "finished",
    }
    for line in (json_line(ENTRY), text_line(ENTRY)):
        assert "secret" not in line
        assert "\n" not in line
    assert "tokens=7+9 bytes=1234 key=alice id=abc" in text_line(ENTRY)
    assert "ttft=-" in text_line(ENTRY._replace(ttft_s=None, backend=None, key=None))


def test_lines_come_in_their_order_and_its_owner_alone_may_read_them(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path), as_json=True)
    for number in range(3000):
        log.add(ENTRY._replace(attempts=number))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["attempts"] for line in lines] == list(range(3000))
    assert log.dropped == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_disk_that_takes_nothing_stalls_nobody_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path), as_json=True, most_waiting=100)
    sent = 0
    while log.dropped < 5000:
        log.add(ENTRY._replace(attempts=sent))
        sent += 1
    closing = threading.Thread(target=log.close, args=(10,))
    closing.start()
    text = b""
    while True:
        alive = closing.is_alive()
        try:
            text += os.read(reader, 1 << 16)
        except BlockingIOError:
            if not alive:
                break
            time.sleep(0.01)
    lines = [json.loads(line) for line in text.splitlines()]
    written = len([line for line in lines if "attempts" in line])
    assert written + log.dropped == sent
    assert sum(line.get("dropped", 0) for line in lines) == log.dropped
    os.close(reader)


def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.log", tmp_path / "b.log"
    log = AccessLog(str(path), as_json=False)
    log.add(ENTRY)
    wait_until(lambda: path.read_text() != "")
    path.rename(moved)
    log.reopen()
    wait_until(path.exists)
    log.add(ENTRY)
    log.close()
    assert len(path.read_text().splitlines()) == len(moved.read_text().splitlines()) == 1


def test_a_place_where_nothing_can_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        AccessLog(str(tmp_path / "no" / "a.log"), as_json=True)


def test_the_routers_own_log_is_json_too_where_asked() -> None:
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        record = logging.LogRecord("tuna_router.x", logging.ERROR, "f", 1, "it %s", ("failed",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    shown = json.loads(line)
    assert (shown["level"], shown["logger"], shown["message"]) == ("error", "tuna_router.x", "it failed")
    assert "ValueError" in shown["error"]
