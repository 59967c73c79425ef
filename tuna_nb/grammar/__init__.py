"""The one grammar: magic, terminal, completion and help are all read off this argparse tree."""

from tuna_nb.grammar.flags import NOTEBOOK_ONLY
from tuna_nb.grammar.parser import HelpShown, Parser
from tuna_nb.grammar.verbs import BY_NAME, SHORT_HELP, VERBS, Verb, build, parse, suggestions

__all__ = [
    "BY_NAME",
    "NOTEBOOK_ONLY",
    "SHORT_HELP",
    "VERBS",
    "HelpShown",
    "Parser",
    "Verb",
    "build",
    "parse",
    "suggestions",
]
