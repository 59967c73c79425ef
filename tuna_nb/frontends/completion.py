"""Tab in `%tuna ...`: verbs, flags and values, read off the grammar. Touches no file and no network."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tuna_nb import grammar

_LINE = re.compile(r"^\s*(?:[\w.]+\s*=\s*)?%%?tuna\s+(?P<rest>.*)$", re.S)


def install(shell: Any, service_names: Callable[[], list[str]]) -> Callable[[], None]:
    """Add the matcher to a shell; returns what takes it out again. service_names: from memory only."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    from tuna_nb.catalog.gpus import GPUS

    gpus = [g.name for g in GPUS]
    parser = grammar.build("%tuna")

    @context_matcher()
    def tuna_matcher(context: Any) -> dict[str, Any]:
        line = context.line_with_cursor[: context.cursor_position]
        found = _LINE.match(line)
        if found is None:
            return {"completions": []}
        *words, last = found["rest"].split(" ")
        names = service_names()
        known = {"gpu": gpus, "service_name": names, "name": names}
        completions = [
            SimpleCompletion(text=text, type=kind)
            for text, kind in grammar.suggestions(parser, [w for w in words if w], known)
            if text.startswith(last)
        ]
        return {"completions": completions, "matched_fragment": last, "suppress": True, "ordered": True}

    tuna_matcher.matcher_priority = 1000
    shell.Completer.custom_matchers.append(tuna_matcher)

    def uninstall() -> None:
        shell.Completer.custom_matchers.remove(tuna_matcher)

    return uninstall
