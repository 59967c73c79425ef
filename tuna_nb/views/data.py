"""Results as plain data: JSON for programs, DataFrames for notebooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from tuna_nb.catalog.listing import Priced, PriceList, Seen

if TYPE_CHECKING:
    import pandas as pd

    from tuna_nb.costs.bill import Bill

_DERIVED = {
    "DeploymentStatus": ("rate_usd_per_hour",),
    "Bill": ("tokens", "usd_per_1000_requests", "usd_per_million_tokens"),
    "ProviderChecks": ("passed",),
    "RouterReport": ("is_current",),
    "ColdStartReport": ("phase_names",),
    "ProviderStarts": ("summaries",),
    "LoadReport": ("resumed",),
    "Figures": ("error_share",),
    "Goodput": ("share",),
    "Difference": ("seen", "worse", "said"),
    "MemoryNeed": ("bytes", "least_bytes"),
}
"""By the name of the class, whose import would cost more than most verbs do."""


_NO_COLUMNS = ("components", "routing", "step")
"""Of a deployment's status."""


def plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists; what is hidden from `repr` (keys) stays hidden."""
    if is_dataclass(value) and not isinstance(value, type):
        out = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
        return out | {name: plain(getattr(value, name)) for name in _DERIVED.get(type(value).__name__, ())}
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

    from tuna_nb.deployments.status import DeploymentStatus, Fleet

    if isinstance(result, Fleet):
        rows: list[Any] = [
            {k: v for k, v in plain(s).items() if k not in _NO_COLUMNS}
            | {"unserving": ", ".join(f"{one.role}: {one.kind}" for one in s.unserving)}
            for s in result.deployments
        ]
        columns = [f.name for f in fields(DeploymentStatus) if f.name not in _NO_COLUMNS]
        return _dated(pd.DataFrame(rows, columns=[*columns, "rate_usd_per_hour"]))
    if isinstance(result, PriceList):
        return _prices(result)
    if type(result).__name__ == "BudgetList":
        from tuna_nb.costs.budget_list import BudgetRow

        columns = [f.name for f in fields(BudgetRow)]
        return _dated(pd.DataFrame([plain(row) for row in result.rows], columns=columns))
    if type(result).__name__ == "FitList":
        from tuna_nb.views.fit_rows import fit_rows

        return pd.DataFrame(fit_rows(result))
    if type(result).__name__ == "ColdStartReport":
        from tuna_nb.views.cold_start_sheet import cold_start_rows

        return pd.DataFrame(cold_start_rows(result))
    if type(result).__name__ in ("LoadReport", "Comparison", "RunList", "RowList"):
        from tuna_nb.views import load_data

        return load_data.frame(result)
    if type(result).__name__ == "Bill":
        return None if result.by == "backend" else _groups(result)
    if isinstance(result, list):
        return _dated(pd.DataFrame([plain(r) for r in result]))
    return None


def beside(result: Any) -> list[str]:
    """What a frame can't say: which sources of its prices did not answer, and why."""
    if isinstance(result, PriceList):
        from tuna_nb.views.price_sheet import troubles

        return troubles(result)
    return []


def _groups(bill: Bill) -> pd.DataFrame:
    """A row a day, GPU, model, key or deployment, and what it cost."""
    import pandas as pd

    rows = [(g.name, g.usd, g.requests, g.tokens) for g in bill.groups]
    return pd.DataFrame(rows, columns=[bill.by, "usd", "requests", "tokens"])


def _prices(listed: PriceList) -> pd.DataFrame:
    """A row an offer; of a history a row a price that was seen."""
    import pandas as pd

    if listed.history is not None:
        columns = [f.name for f in fields(Seen)]
        table = pd.DataFrame([plain(seen) for seen in listed.history], columns=columns)
        return table.assign(at=pd.to_datetime(table["at"], unit="s", utc=True))
    return _dated(pd.DataFrame([_row(row) for row in listed.rows], columns=list(_PRICE_COLUMNS)))


_PRICE_COLUMNS = (
    "gpu", "vram_gb", "provider", "kind", "gpu_count", "price_per_hour_usd", "all_in_usd_per_hour", "all_in_lacks",
    "saves_on_demand", "saves_serverless", "region", "zone", "machine", "vcpus", "memory_gib", "stock",
    "confidence", "observed_at", "stale", "snapshot", "source", "note",
)  # fmt: skip


def _row(row: Priced) -> dict[str, Any]:
    o, sums = row.offer, row.all_in
    return {
        **{name: getattr(o, name, None) for name in _PRICE_COLUMNS},
        "kind": o.kind.value,
        "vram_gb": row.vram_gb,
        "all_in_usd_per_hour": None if sums is None else sums.usd_per_hour,
        "all_in_lacks": "" if sums is None else ", ".join(sums.lacks),
        "saves_on_demand": row.saves_on_demand,
        "saves_serverless": row.saves_serverless,
        "stale": row.stale,
    }


def _dated(table: pd.DataFrame) -> pd.DataFrame:
    """Unix seconds in the columns named `..._at` as UTC times."""
    import pandas as pd

    for column in table.columns:
        if str(column).endswith("_at"):
            table[column] = pd.to_datetime(table[column], unit="s", utc=True)
    return table
