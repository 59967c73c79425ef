"""Popular models whose config.json ships with Tuna, so that they need no network.

`families.json` has for each model what matters of its config.json, where that was read, and how many parameters
transformers 5.19 counts in its own code of it; or the model that it is `like`, with what differs. Checked on
2026-11-21.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_FILE: Final = Path(__file__).with_name("families.json")


@dataclass(frozen=True, slots=True)
class Family:
    """model: its id on Hugging Face. parameters: counted by others than us. source: of the config."""

    model: str
    parameters: int
    source: str
    config: Mapping[str, Any]


def find(model: str) -> Family | None:
    """The known model of that id; case does not matter. None for any other, however similar."""
    name = _by_key().get(model.casefold())
    if name is None:
        return None
    entry = _table()[name]
    if "like" not in entry:
        return Family(name, entry["parameters"], entry["source"], entry["config"])
    base = _table()[entry["like"]]
    return Family(name, base["parameters"], f"as {entry['like']}", {**base["config"], **entry.get("config", {})})


def names() -> list[str]:
    return list(_table())


@functools.cache
def _table() -> dict[str, Any]:
    return dict(json.loads(_FILE.read_text()))


@functools.cache
def _by_key() -> dict[str, str]:
    return {name.casefold(): name for name in _table()}
