"""An engine's last words: the cause, not the noise after it."""

from __future__ import annotations

import pytest

from tuna_nb.backends.local.logbook import LastWords


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ""),
        (["loading", "  giving up  ", ""], "giving up"),
        (
            [
                "(EngineCore pid=7) RuntimeError: Unsupported CPU attention",
                "RuntimeError: see above",
                "leaked semaphore",
            ],
            "RuntimeError: Unsupported CPU attention",
        ),
        (["error: bad flag --x"], "error: bad flag --x"),
    ],
)
def test_the_first_error_is_the_reason_and_else_the_last_line(lines: list[str], said: str) -> None:
    words = LastWords()
    for line in lines:
        words.add(line)
    assert str(words) == said


def test_a_very_long_line_is_cut() -> None:
    words = LastWords()
    words.add("ValueError: " + "x" * 10_000)
    assert len(str(words)) == 300
