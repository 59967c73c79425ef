"""Load tests as DataFrames: a row a figure, a load, a difference, a run or a request."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tuna_nb.benchmarks.compare import Comparison, Difference
from tuna_nb.benchmarks.kept import KeptRun
from tuna_nb.benchmarks.order import LEVELS, Distribution
from tuna_nb.benchmarks.report import LoadReport, Step
from tuna_nb.benchmarks.rows import SCHEMA
from tuna_nb.benchmarks.run_list import RowList, RunList

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("ttft_ms", "tpot_ms", "chunk_gap_ms", "latency_ms", "user_tokens_per_s")
_TOTALS = (
    "requests", "whole", "failed", "stopped", "seconds", "offered_per_s", "sent_per_s", "achieved_per_s",
    "tokens_per_s", "input_tokens", "output_tokens", "retried",
)  # fmt: skip


def frame(result: LoadReport | Comparison | RunList | RowList) -> pd.DataFrame:
    """Numbers as numbers, None where a figure is not known."""
    import pandas as pd

    if isinstance(result, LoadReport):
        if result.sweep is not None:
            return pd.DataFrame([_step(result.sweep, step) for step in result.steps])
        table = pd.DataFrame(
            [_figure(name, getattr(result.figures, name)) for name in FIGURES], columns=_figure_columns()
        )
        table.attrs |= {name: getattr(result.figures, name) for name in _TOTALS} | {"name": result.name}
        return table.set_index("figure")
    if isinstance(result, Comparison):
        columns = [f.name for f in fields(Difference)]
        rows = [{name: getattr(d, name) for name in columns} | {"seen": d.seen} for d in result.differences]
        return pd.DataFrame(rows, columns=[*columns, "seen"]).set_index("figure")
    if isinstance(result, RunList):
        columns = [f.name for f in fields(KeptRun)]
        table = pd.DataFrame([[getattr(run, c) for c in columns] for run in result.runs], columns=columns)
        return table.assign(began_at=pd.to_datetime(table["began_at"], unit="s", utc=True))
    made: list[dict[str, Any]] = [
        {"level": level} | {name: getattr(row, name) for name in SCHEMA}
        | {"ttft_s": row.ttft_s, "tpot_s": row.tpot_s, "latency_s": row.latency_s}
        for level, row in result.rows
    ]  # fmt: skip
    table = pd.DataFrame(made, columns=["level", *SCHEMA, "ttft_s", "tpot_s", "latency_s"])
    return table.drop(columns="level") if all(level is None for level, _ in result.rows) else table


def _figure_columns() -> list[str]:
    ends = [f"p{100 * level:g}{end}" for level in LEVELS for end in ("", "_low", "_high")]
    return ["figure", "count", "mean", "least", "most", *ends]


def _figure(name: str, found: Distribution) -> dict[str, Any]:
    made: dict[str, Any] = {"figure": name, "count": found.count, "mean": found.mean, "least": found.least,
                            "most": found.most}  # fmt: skip
    for q in found.quantiles:
        made |= {q.name: q.value, f"{q.name}_low": q.low, f"{q.name}_high": q.high}
    return made


def _step(sweep: str, step: Step) -> dict[str, Any]:
    f = step.figures
    made: dict[str, Any] = {sweep: step.level} | {name: getattr(f, name) for name in _TOTALS}
    for name in FIGURES:
        made |= {f"{name}_{q.name}": q.value for q in getattr(f, name).quantiles}
    return made | {"goodput_share": None if f.goodput is None else f.goodput.share}
