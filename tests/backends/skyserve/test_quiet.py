"""What SkyPilot's SDK does to the process does not outlast the call."""

from __future__ import annotations

import sys
import threading

import pytest

from tuna_nb.backends.skyserve.quiet import quiet


def test_later_errors_keep_their_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "tracebacklimit", raising=False)

    def refused() -> None:
        sys.tracebacklimit = 0  # as SkyPilot does before it raises
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"), quiet():
        refused()
    assert not hasattr(sys, "tracebacklimit")


def test_a_limit_of_the_user_s_own_stays() -> None:
    sys.tracebacklimit = 7
    try:
        with quiet():
            sys.tracebacklimit = 0
        assert sys.tracebacklimit == 7
    finally:
        del sys.tracebacklimit


def test_calls_that_overlap_leave_nothing_either() -> None:
    inside, over = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            sys.tracebacklimit = 0
            inside.set()
            over.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(5)
    with quiet():
        pass
    over.set()
    thread.join()
    assert not hasattr(sys, "tracebacklimit")
