"""A person at a terminal: `tuna` as a real process, in a data folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MODEL = "Qwen/Qwen3-0.6B"
QUICK = ("--option", "cold_start_s=0", "--option", "boot_s=0")


def deploy_words(name: str, *more: str, boot_s: float = 0) -> list[str]:
    """A deploy of the stand-in that is up in about a second."""
    words = ["deploy", "--model", MODEL, "--gpu", "L4", "--service-name", name]
    return [*words, "--option", "cold_start_s=0", "--option", f"boot_s={boot_s}", *more]


def chat(max_tokens: int = 4) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def refusal(self) -> tuple[str, str]:
        """Message and hint: the last two lines of stderr."""
        message, hint = self.err.splitlines()[-2:]
        return message, hint


class Terminal:
    """`tuna` in one data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = ""
        """Everything that any command has printed here."""

    @property
    def environ(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("TUNA_NB_MODE", "TUNA_DATABASE_URL", "COLUMNS")}
        return clean | {"TUNA_DATA_DIR": str(self.folder)}

    def __call__(self, *words: str, code: int | None = 0, timeout_s: float = 60) -> Done:
        """Run to the end. code: what it must return; None for anything."""
        process = self.start(*words)
        try:
            return self.finish(process, code, timeout_s)
        finally:
            if process.poll() is None:
                process.kill()

    def start(self, *words: str, buffered: bool = True) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tuna_nb", *words],
            env=self.environ | ({} if buffered else {"PYTHONUNBUFFERED": "1"}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str], code: int | None = 0, timeout_s: float = 60) -> Done:
        out, err = process.communicate(timeout=timeout_s)
        self.said += out + err
        assert code is None or process.returncode == code, (process.returncode, out, err)
        return Done(process.returncode, out, err)


def until(condition: Callable[[], T], within_s: float = 30) -> T:
    """Poll until the condition holds; fails the test at the deadline."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)
    return found
