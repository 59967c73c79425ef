"""Recorded traffic: when each request came, and how many tokens went in and out.

CSV with a header, or JSONL; `.gz` too. A format is known by its columns' names:

- the Azure LLM inference traces, as published: TIMESTAMP (a date with seven digits of a second), ContextTokens,
  GeneratedTokens (Azure/AzurePublicDataset; Patel et al., ISCA 2024);
- BurstGPT, as published: Timestamp (seconds), Model, Request tokens, Response tokens, Total tokens, Log Type
  (HPMLL/BurstGPT; Wang et al., 2024);
- Mooncake's JSONL: timestamp (milliseconds, known by its `hash_ids`), input_length, output_length;
- anything with a time (`timestamp`, `time`, `t_s`: seconds or a date; `t_ms`, `timestamp_ms`: milliseconds) and two
  token counts under the names below.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

from tuna_nb.errors import RequestError

_SECONDS: Final = ("timestamp", "time", "t_s", "timestamp_s", "arrival_time", "arrived_at")
_MILLISECONDS: Final = ("t_ms", "timestamp_ms", "time_ms")
_INPUT: Final = ("contexttokens", "requesttokens", "inputtokens", "inputlength", "prompttokens", "numprefilltokens")
_OUTPUT: Final = (
    "generatedtokens", "responsetokens", "outputtokens", "outputlength", "completiontokens", "numdecodetokens"
)  # fmt: skip
_MOST_ROWS: Final = 5_000_000
_MOST_TOKENS: Final = 10_000_000
_HINT: Final = "a trace is CSV with a header or JSONL, with `timestamp`, `input_tokens` and `output_tokens`"


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. at_s: seconds from the first one's time. Tokens are at least 1: a recorded failure has none."""

    at_s: float
    input_tokens: int
    output_tokens: int


def load(path: str) -> list[TraceRow]:
    """All of it, in order of time. Raises RequestError, with the line where one is bad."""
    found: list[tuple[float, int, int]] = []
    dated: bool | None = None
    with _opened(path) as text:
        for line, record in _records(path, text):
            at, is_date = _time_of(path, line, record)
            if dated is not None and is_date is not dated:
                raise _bad(path, line, "its time is written in another way than those before")
            dated = is_date
            found.append((at, _tokens_of(path, line, record, _INPUT), _tokens_of(path, line, record, _OUTPUT)))
            if len(found) > _MOST_ROWS:
                raise RequestError(f"{path} has more than {_MOST_ROWS:,} rows", "cut a part out of it")
    if not found:
        raise RequestError(f"{path} has no rows", _HINT)
    found.sort(key=lambda row: row[0])
    first = found[0][0]
    return [TraceRow(at - first, read, written) for at, read, written in found]


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    """The file as text. Raises RequestError where it can't be read."""
    file = Path(path).expanduser()
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}", "give the path of a trace, CSV or JSONL") from None
    except (OSError, EOFError) as error:
        raise RequestError(f"{path} can't be read: {error}", "give the path of a trace, CSV or JSONL") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not text", _HINT) from None


def _records(path: str, text: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each row by its columns' names, lower case and without spaces and underscores, with its line's number."""
    first = text.readline()
    if first.lstrip().startswith("{"):
        yield from _json_records(path, itertools.chain([first], text))
        return
    names = [name.strip() for name in next(csv.reader([first]), [])]
    if not names:
        raise RequestError(f"{path} is empty", _HINT)
    rows = csv.reader(text)
    try:
        for cells in rows:
            line = rows.line_num + 1
            if not cells:
                continue
            if len(cells) != len(names):
                raise _bad(path, line, f"it has {len(cells)} columns, and the header {len(names)}")
            yield line, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise _bad(path, rows.line_num + 1, str(error)) from None


def _json_records(path: str, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            raise _bad(path, number, "it is no JSON") from None
        if not isinstance(record, dict):
            raise _bad(path, number, "it is no JSON object")
        yield number, record


def _time_of(path: str, line: int, record: Mapping[str, Any]) -> tuple[float, bool]:
    """Seconds, and whether they come from a date."""
    by_name = {name.strip().lower(): value for name, value in record.items()}
    for name in _MILLISECONDS:
        if name in by_name:
            return _number(path, line, name, by_name[name]) / 1000, False
    for name in _SECONDS:
        value = by_name.get(name)
        if value is None:
            continue
        if isinstance(value, str) and (":" in value or value.strip().count("-") == 2):
            return _date(path, line, value), True
        seconds = _number(path, line, name, value)
        return (seconds / 1000 if "hash_ids" in by_name else seconds), False
    raise _bad(path, line, "it has no time")


def _date(path: str, line: int, text: str) -> float:
    try:
        date = datetime.fromisoformat(text.strip())  # of seven digits of a second it takes six
    except ValueError:
        raise _bad(path, line, f"{text!r} is no date") from None
    if date.tzinfo is None:
        return (date - datetime(1970, 1, 1)).total_seconds()
    return date.timestamp()


def _tokens_of(path: str, line: int, record: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name, value in record.items():
        if name.strip().lower().replace(" ", "").replace("_", "") in names:
            tokens = _number(path, line, name, value)
            if not 0 <= tokens <= _MOST_TOKENS:
                raise _bad(path, line, f"{name} is {tokens:g}")
            return max(1, int(tokens))
    what = "input" if names is _INPUT else "output"
    raise _bad(path, line, f"it has no {what} tokens")


def _number(path: str, line: int, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise _bad(path, line, f"{name} is {value!r}, which is no number")
    return number


def _bad(path: str, line: int, why: str) -> RequestError:
    return RequestError(f"{path}, line {line}: {why}", _HINT)
