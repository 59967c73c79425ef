"""argparse that answers a wrong word with the right one, and never prints or exits."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from tuna_nb.errors import UsageError, did_you_mean, nearest


class HelpShown(Exception):
    """`--help` was asked for; `text` is the help."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Parser(argparse.ArgumentParser):
    """argparse that never prints and never exits: errors are UsageError with the nearest right word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"allow_abbrev": False})
        self._words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        hint = f"`{self.prog} --help` shows what it takes"
        choice = re.search(r"argument (\S+): invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        # A misspelt required flag is both unknown and missing; the first tells the user more.
        flags = self.option_strings()
        misspelt = [w for w in self._words if w.startswith("--") and w.partition("=")[0] not in flags]
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if choice:
            what = choice[1].lower() if choice[1].isupper() else f"value for {choice[1]}:"
            message = f"unknown {what} {choice[2]!r}"
            hint = did_you_mean(choice[2], [w.strip(" '") for w in choice[3].split(",")])
        elif unknown or (misspelt and "required" in message):
            word = misspelt[0] if misspelt else unknown[1] if unknown else ""
            message = f"unknown argument {word!r}"
            if close := nearest(word.partition("=")[0], flags):
                hint = f"did you mean {close}?"
        verb = self.prog.partition(" ")[2]
        raise UsageError(f"{verb}: {message}" if verb else message, hint)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise UsageError(message or f"{self.prog} ended with {status}")

    def print_help(self, file: Any = None) -> NoReturn:
        raise HelpShown(self.format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = args or ()
        known, extra = super().parse_known_args(args, namespace)
        if extra:
            # Here and not at the root, so that the error names the verb and knows its flags.
            self.error("unrecognized arguments: " + " ".join(extra))
        return known, extra

    def option_strings(self) -> list[str]:
        return [o for a in self._actions for o in a.option_strings if o.startswith("--")]

    def subcommands(self) -> dict[str, Parser]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}
