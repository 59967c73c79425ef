"""What goes between a run and its generator's process: one line of JSON each.

In: the load. Out: `{"begun": unix_s}`, `{"rows": [...]}`, and at the end `{"lag": {...}, "took_s": s}`; or
`{"refused": [message, hint]}` for a load that can't be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from tuna_nb.benchmarks.load.spec import Arrivals, Lag, Lengths, LoadSpec, Prompts, Target
from tuna_nb.benchmarks.rows import Row

_ROW = tuple(field.name for field in fields(Row))
_GAPS = _ROW.index("gaps_ms")


def spec_line(spec: LoadSpec) -> bytes:
    """The load as one line; with its keys, so for a pipe only."""
    told = asdict(spec)
    told["target"]["headers"] = dict(spec.target.headers)
    return json.dumps(told).encode() + b"\n"


def spec_of(line: bytes) -> LoadSpec:
    """The load of that line."""
    told = json.loads(line)
    target, prompts = told.pop("target"), told.pop("prompts")
    for name in ("input_tokens", "output_tokens"):
        prompts[name] = Lengths(**prompts[name])
    return LoadSpec(
        target=Target(**{**target, "models": tuple(target["models"])}),
        arrivals=Arrivals(**told.pop("arrivals")),
        prompts=Prompts(**prompts),
        **told,
    )


def packed(row: Row) -> list[Any]:
    """A row as JSON has it; gaps are whole microseconds, which are quicker to write."""
    values = [getattr(row, name) for name in _ROW]
    values[_GAPS] = [round(gap * 1000) for gap in row.gaps_ms]
    return values


def unpacked(values: Sequence[Any]) -> Row:
    """The row that was packed."""
    by_name = dict(zip(_ROW, values, strict=True))
    by_name["gaps_ms"] = tuple([gap / 1000 for gap in by_name["gaps_ms"]])
    return Row(**by_name)


def lag_of(told: dict[str, Any]) -> Lag:
    """The lag of a last line."""
    return Lag(**told)
