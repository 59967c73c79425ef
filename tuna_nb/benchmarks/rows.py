"""One row a request: what a load test keeps, and what every figure of it is computed from.

Times are seconds since the run's begin, by a clock that never jumps.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuna_nb.errors import UsageError

SCHEMA: Final = {
    "number": "order in the schedule, from 0",
    "model": "the model that was asked for",
    "warmup": "sent before the measured part; in no figure",
    "scheduled_s": "when the schedule wanted it to leave (closed loop: when its place was free)",
    "sent_s": "when its first byte was handed to the kernel; null: it never left",
    "first_token_s": "when the first event with text came; unstreamed: the answer's first byte; null: none",
    "ended_s": "when its last byte came, or it failed",
    "status": "HTTP status; null: no answer",
    "error": "null when the answer came whole, else one of ERRORS",
    "detail": "the error in words; no key, no address",
    "input_tokens": "as the engine told (usage.prompt_tokens); null: it did not",
    "output_tokens": "as the engine told (usage.completion_tokens); null: it did not",
    "chunks": "events with text; an engine may put several tokens into one",
    "gaps_ms": "milliseconds between one event with text and the next",
    "finish_reason": "as the engine told; null: none",
    "backend": "x-tuna-backend: who answered; null: it says nothing",
    "attempts": "x-tuna-attempts: how many backends were tried; null: it says nothing",
}

ERRORS: Final = (
    "refused",  # no connection, its TLS failed, or its name is unknown
    "status",  # another status than 200
    "cut",  # the stream or body ended before its end, or the connection was lost
    "error event",  # the stream told an error
    "not a stream",  # asked for a stream and got something else
    "malformed",  # no HTTP, no JSON, or no OpenAI answer
    "timeout",  # not over in the time that a request has
    "stopped",  # the run ended before it
)

FORMATS: Final = (".jsonl", ".parquet")

_COLUMNS: Final = {
    "number": "int", "model": "str", "warmup": "bool", "scheduled_s": "float", "sent_s": "float",
    "first_token_s": "float", "ended_s": "float", "status": "int", "error": "str", "detail": "str",
    "input_tokens": "int", "output_tokens": "int", "chunks": "int", "gaps_ms": "list", "finish_reason": "str",
    "backend": "str", "attempts": "int",
}  # fmt: skip
_NEEDED: Final = ("number", "model", "warmup", "scheduled_s", "sent_s", "first_token_s", "ended_s")
_MAY_MISS: Final = {
    "sent_s", "first_token_s", "status", "error", "input_tokens", "output_tokens", "finish_reason", "backend",
    "attempts",
}  # fmt: skip
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "list": (list,),
}  # fmt: skip
_KINDS: Final = {
    name: (*_TYPES[kind], type(None)) if name in _MAY_MISS else _TYPES[kind] for name, kind in _COLUMNS.items()
}


@dataclass(frozen=True, slots=True)
class Row:
    """One request, as `SCHEMA` says."""

    number: int
    model: str
    warmup: bool
    scheduled_s: float
    sent_s: float | None
    first_token_s: float | None
    ended_s: float
    status: int | None = None
    error: str | None = None
    detail: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    chunks: int = 0
    gaps_ms: tuple[float, ...] = ()
    finish_reason: str | None = None
    backend: str | None = None
    attempts: int | None = None

    @property
    def ttft_s(self) -> float | None:
        """From the scheduled time: a server that stalls can't hide behind requests that were never sent."""
        return None if self.first_token_s is None else self.first_token_s - self.scheduled_s

    @property
    def latency_s(self) -> float:
        """From the scheduled time to the last byte."""
        return self.ended_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: a mean within the request. None below two tokens."""
        if self.first_token_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.ended_s - self.first_token_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of a file. notes: what was skipped in it, for the reader."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def line(row: Row) -> str:
    """One line of JSON, without its end."""
    return json.dumps({name: getattr(row, name) for name in SCHEMA}, separators=(",", ":"), allow_nan=False)


def parse(text: str) -> Row:
    """What `line` wrote; fields that are not known are left out. Raises ValueError for anything else."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("no JSON object")
    return _row(data)


def check_format(path: Path) -> None:
    """Raises UsageError where rows can't be written under this name: another ending, no folder, no pyarrow."""
    if path.suffix not in FORMATS:
        raise UsageError(f"{path} is no file of rows", f"its name ends in {' or '.join(FORMATS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{path} can't be written", "name a file in a folder that exists")
    if path.suffix == ".parquet":
        _pyarrow()


def write(path: Path, rows: Iterable[Row]) -> None:
    """All or nothing: another file of this name stays until the new one is whole. JSONL or Parquet by its ending.

    Raises UsageError as `check_format` does, OSError where the disk refuses.
    """
    check_format(path)
    if path.suffix == ".parquet":
        table = _table(rows)
        replace(path, lambda temporary: _pyarrow().write_table(table, temporary, compression="zstd"))
    else:
        text = "".join(line(row) + "\n" for row in rows)
        replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read(path: Path) -> Kept:
    """Raises UsageError for what holds no rows; names the line."""
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        return _read_lines(path)
    except OSError as e:
        raise UsageError(f"{path} can't be read: {e.strerror or e}", "name a file that a load test kept") from e


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in its place."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _row(data: dict[str, Any]) -> Row:
    missing = [name for name in _NEEDED if name not in data]
    if missing:
        raise ValueError(f"no {missing[0]}")
    known = {name: data[name] for name in SCHEMA if name in data}
    for name, value in known.items():
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and bool not in _KINDS[name]):
            raise ValueError(f"{name} is {value!r}")
    if any(isinstance(gap, bool) or not isinstance(gap, int | float) for gap in known.get("gaps_ms", ())):
        raise ValueError("gaps_ms has what is no number")
    return Row(**known | {"gaps_ms": tuple(known.get("gaps_ms", ()))})


def _read_lines(path: Path) -> Kept:
    rows = []
    *whole, rest = path.read_bytes().split(b"\n")
    for number, text in enumerate(whole, 1):
        try:
            rows.append(parse(text.decode()))
        except ValueError as e:
            raise UsageError(
                f"{path}, line {number} is no row: {e}", "a file of rows has one JSON object a line, as SCHEMA says"
            ) from e
    if not rest:
        return Kept(tuple(rows))
    try:
        return Kept((*rows, parse(rest.decode())))
    except ValueError:
        return Kept(tuple(rows), (f"the last line of {path.name} was cut off and is left out",))


def _read_parquet(path: Path) -> Kept:
    pq = _pyarrow()
    import pyarrow as pa

    try:
        found = pq.read_table(path).to_pylist()
        return Kept(tuple(_row(data) for data in found))
    except (pa.ArrowInvalid, ValueError) as e:
        raise UsageError(f"{path} holds no rows: {str(e)[:200]}", "name a file that a load test kept") from e


def _table(rows: Iterable[Row]) -> Any:
    import pyarrow as pa

    kinds = {
        "int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_(),
        "list": pa.list_(pa.float64()),
    }  # fmt: skip
    made = list(rows)
    columns = {name: pa.array([getattr(row, name) for row in made], kinds[_COLUMNS[name]]) for name in SCHEMA}
    # The schema travels with the file, so that it can be read without this package.
    schema = pa.schema(
        [pa.field(name, column.type, metadata={"meaning": SCHEMA[name]}) for name, column in columns.items()]
    )
    return pa.table(list(columns.values()), schema=schema)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise UsageError("Parquet needs pyarrow", "pip install 'tuna-nb[bench]', or write .jsonl") from e
    return pyarrow.parquet
