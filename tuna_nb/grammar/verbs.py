"""The verbs, and the tree that is built of them.

Pure and light: nothing here runs a verb. A verb names its command as text, so that building the tree imports
no command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuna_nb.grammar import flags
from tuna_nb.grammar.parser import HelpShown, Parser


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: `handler` is "module:function" of its command; `arguments` adds its flags to a parser.

    cell: whether `%%tuna` may give it a cell body.
    """

    name: str
    help: str
    handler: str
    arguments: Callable[[Parser], None]
    cell: bool = False


_IN = "tuna_nb.commands."
VERBS = (
    Verb("deploy", "deploy a model across serverless and spot", _IN + "deploy:deploy", flags.deploy, cell=True),
    Verb("destroy", "take a deployment down, verified", _IN + "destroy:destroy", flags.destroy),
    Verb("status", "what is really there", _IN + "inspect:status", flags.status),
    Verb("scale", "change how a deployment scales, in place", _IN + "scale:scale", flags.scale, cell=True),
    Verb("wake", "start what has scaled to zero", _IN + "scale:wake", flags.wake),
    Verb("list", "all deployments", _IN + "inspect:list_", flags.list_),
    Verb("cost", "what a deployment has cost, and costs now", _IN + "cost:cost", flags.cost),
    Verb("budget", "what may be spent, and what happens then", _IN + "budget:budget", flags.budget),
    Verb("show-gpus", "what GPUs cost, everywhere, all in", _IN + "prices:show_gpus", flags.show_gpus),
    Verb("benchmark", "load tests of real traffic, and cold starts", _IN + "benchmark:benchmark", flags.benchmark),
    Verb("check", "what a provider still needs", _IN + "check:check", flags.check),
    Verb("fit", "which GPUs hold a model, and what they cost", _IN + "fit:fit", flags.fit),
    Verb("logs", "what engines and router say", _IN + "inspect:logs", flags.logs),
    Verb("router", "its status, logs, upgrade, restart, move", _IN + "router:router", flags.router),
    Verb("connect", "a client for a deployment's endpoint", _IN + "connect:connect", flags.connect),
    Verb("jobs", "long work under way, in any process", _IN + "jobs:jobs", flags.jobs),
    Verb("cancel", "stop a job and undo what it made", _IN + "jobs:cancel", flags.cancel),
    Verb("local", "this machine's own cloud: preempt, bill", _IN + "local:local", flags.local),
    Verb("demo", "the whole story on this machine, no account needed", _IN + "demo:demo", flags.demo),
)
BY_NAME = {v.name: v for v in VERBS}

SHORT_HELP = """\
Deploy an open model behind one endpoint: spot prices, serverless answers.

  {0} deploy --model Qwen/Qwen3-0.6B --gpu L4 --service-name my-first
  {0} status --service-name my-first       what is really there
  {0} cost --service-name my-first         what it has cost, and costs now
  {0} list                                 everything that may cost money
  {0} show-gpus --spot                     what GPUs cost, everywhere
  {0} destroy --service-name my-first      take it down, verified

{0} --help lists every verb; {0} deploy --help every flag."""


def build(prog: str = "tuna") -> Parser:
    """The tree. prog: how the user starts it: `tuna` or `%tuna`."""
    from tuna_nb import __version__

    parser = Parser(prog=prog, description="Open models behind one endpoint: spot prices, serverless answers.")
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.set_defaults(version_text=f"tuna {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for verb in VERBS:
        sub = verbs.add_parser(verb.name, help=verb.help, description=verb.help[0].upper() + verb.help[1:] + ".")
        verb.arguments(sub)
        if not sub.subcommands():
            flags.everywhere(sub)
    return parser


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Raises UsageError, or HelpShown for `--help`, `--version` and no words at all."""
    if not words:
        raise HelpShown(SHORT_HELP.format(parser.prog))
    if "--version" in words[:1]:
        raise HelpShown(str(parser.get_default("version_text")))
    options = parser.parse_args(list(words))
    if options.verb is None:
        raise HelpShown(SHORT_HELP.format(parser.prog))
    return options


def suggestions(
    parser: Parser, words: Sequence[str], values: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """(text, kind) of what may follow the finished words; kind is verb, flag or value.

    values: what is known of an option's values, by its name (`gpu`, `service_name`), beyond its fixed choices.
    """
    used: set[str] = set()
    pending: argparse.Action | None = None
    places = 0
    for word in words:
        if pending is not None:
            pending = None
        elif word.startswith("-"):
            used.add(word)
            action = parser._option_string_actions.get(word)
            pending = action if action is not None and action.nargs != 0 else None
        elif word in parser.subcommands():
            parser = parser.subcommands()[word]
        else:
            places += 1
    if pending is not None:
        yield from ((str(c), "value") for c in pending.choices or values.get(pending.dest, ()))
        return
    yield from ((name, "verb") for name in parser.subcommands())
    positionals = [a for a in parser._actions if not a.option_strings and a.dest in (*values, "as_")]
    if places < len(positionals):
        place = positionals[places]
        yield from ((str(c), "value") for c in place.choices or values.get(place.dest, ()))
    yield from ((flag, "flag") for flag in parser.option_strings() if flag not in used)
