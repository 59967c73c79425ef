"""The scaling policy: defaults, then the YAML file or cell, then flags.

An unknown key is an error, because a misspelt `max_replica` would otherwise cost money in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import yaml

SECTIONS: dict[str, type[ServerlessScaling] | type[SpotScaling]] = {
    "spot": SpotScaling,
    "serverless": ServerlessScaling,
}


def parse(text: str, where: str, first_line: int = 1) -> dict[str, dict[str, float | int]]:
    """The policy's sections as given; keys not given are not in the result.

    where: named in errors ("cell", or the file's name). first_line: the number of the text's first line as its
    reader sees it. Raises UsageError with line and column.
    """
    import yaml

    def at(mark: Any) -> str:
        return f"{where} line {mark.line + first_line}, column {mark.column + 1}"

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = at(mark) if mark else where
        raise UsageError(
            f"{place}: not valid YAML: {getattr(e, 'problem', None) or e}",
            "a policy has the sections spot: and serverless:, with indented keys",
        ) from e
    if root is None:
        return {}
    policy: dict[str, dict[str, float | int]] = {}
    for section, body in _pairs(root, f"{at(root.start_mark)}: the policy", SECTIONS, at):
        known = {f.name: f.type for f in fields(SECTIONS[section])}
        policy[section] = {
            key: _number(value, f"{at(value.start_mark)}: {section}.{key}", whole=known[key] == "int")
            for key, value in _pairs(body, f"{at(body.start_mark)}: {section}", known, at)
        }
    return policy


def merge(
    policy: Mapping[str, Mapping[str, float | int]],
    *,
    serverless: ServerlessScaling | None = None,
    spot: SpotScaling | None = None,
    flags: Mapping[str, float | int | None] | None = None,
    no_scale_to_zero: bool = False,
) -> tuple[ServerlessScaling, SpotScaling]:
    """What there is (by default the defaults), the policy over it, flags over both.

    flags: fields of either side by name; None for one that was not given. `no_scale_to_zero` keeps at least one
    spot replica and sets the serverless idle window to 300 s.
    """
    given: dict[str, Any] = {name: value for name, value in (flags or {}).items() if value is not None}
    sections: Mapping[str, Mapping[str, Any]] = policy

    def over(name: str, kind: type[ServerlessScaling] | type[SpotScaling]) -> dict[str, Any]:
        return {**sections.get(name, {}), **{f.name: given[f.name] for f in fields(kind) if f.name in given}}

    serverless = replace(serverless or ServerlessScaling(), **over("serverless", ServerlessScaling))
    spot = replace(spot or SpotScaling(), **over("spot", SpotScaling))
    if no_scale_to_zero:
        spot = replace(spot, min_replicas=max(1, spot.min_replicas))
        serverless = replace(serverless, scaledown_window=300)
    return serverless, spot


def _pairs(node: yaml.Node, what: str, known: Mapping[str, Any], at: Any) -> list[tuple[str, yaml.Node]]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise UsageError(
            f"{what} must be a mapping", "write `key: value` lines, indented under spot: or serverless:"
        )
    pairs: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = str(key.value)
        if name not in known:
            raise UsageError(f"{at(key.start_mark)}: unknown key {name!r}", did_you_mean(name, known))
        if name in pairs:
            raise UsageError(f"{at(key.start_mark)}: {name!r} is given twice", "keep one of the two")
        pairs[name] = value
    return list(pairs.items())


def _number(node: yaml.Node, what: str, *, whole: bool) -> float | int:
    import yaml

    value: Any = yaml.SafeLoader("").construct_object(node)
    good = isinstance(value, int) if whole else isinstance(value, int | float)
    if not good or isinstance(value, bool):
        shown = getattr(node, "value", value)
        raise UsageError(f"{what} is {shown!r}", f"it must be a {'whole ' if whole else ''}number")
    number: float | int = value
    return number
