"""Results as plain data: JSON for programs, DataFrames for notebooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from tuna_nb.costs.bill import Bill
from tuna_nb.deployments.checks import ProviderChecks
from tuna_nb.deployments.routers import RouterReport
from tuna_nb.deployments.status import DeploymentStatus, Fleet

if TYPE_CHECKING:
    import pandas as pd

_DERIVED = {
    DeploymentStatus: ("rate_usd_per_hour",),
    Bill: ("usd_per_1000_requests", "usd_per_million_tokens"),
    ProviderChecks: ("passed",),
    RouterReport: ("is_current",),
}


def plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists; what is hidden from `repr` (keys) stays hidden."""
    if is_dataclass(value) and not isinstance(value, type):
        out = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
        for kind, names in _DERIVED.items():
            if isinstance(value, kind):
                out |= {name: plain(getattr(value, name)) for name in names}
        return out
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def as_json(result: Any) -> str:
    if isinstance(result, str):
        result = {"message": result}
    return json.dumps(plain(result), indent=2, default=str)


def frame(result: Any) -> pd.DataFrame | None:
    """A plain DataFrame of a result that is a table, numbers as numbers; None where it is none."""
    import pandas as pd

    if isinstance(result, Fleet):
        rows: list[Any] = [
            {k: v for k, v in plain(s).items() if k not in ("components", "routing", "step")}
            for s in result.deployments
        ]
        columns = [f.name for f in fields(DeploymentStatus) if f.name not in ("components", "routing", "step")]
        return _dated(pd.DataFrame(rows, columns=[*columns, "rate_usd_per_hour"]))
    if isinstance(result, list):
        return _dated(pd.DataFrame([plain(r) for r in result]))
    return None


def _dated(table: pd.DataFrame) -> pd.DataFrame:
    """Unix seconds in the columns named `..._at` as UTC times."""
    import pandas as pd

    for column in table.columns:
        if str(column).endswith("_at"):
            table[column] = pd.to_datetime(table[column], unit="s", utc=True)
    return table
