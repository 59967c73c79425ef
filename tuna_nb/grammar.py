"""The one grammar: magic, terminal, completion and help are all read off this argparse tree.

Pure and light: nothing here runs a verb. A verb names its command as text, so that building the tree imports
no command.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tuna_nb.errors import UsageError, did_you_mean, nearest

ROUTER_HOSTS = ("process", "vm", "controller")
OFFER_KINDS = ("serverless", "spot", "on-demand", "interruptible", "dedicated")
BUDGET_SPANS = ("total", "day", "month")
BUDGET_ACTIONS = ("notify", "stop-overflow", "scale-down", "destroy")
BILL_GROUPS = ("backend", "deployment", "day", "gpu", "model", "key")
SORTS = ("price", "all-in", "gpu", "vram", "provider", "kind", "region", "age", "saving")
CHARTS = ("prices", "memory", "regions", "history")
NOTEBOOK_ONLY = ("explore",)
"""Flags that show what a terminal can't."""


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


def _service_name(p: Parser, required: bool = True) -> None:
    p.add_argument("--service-name", required=required, metavar="NAME", help="which deployment")


def _deploy(p: Parser) -> None:
    p.add_argument("--model", required=True, help="Hugging Face model id, e.g. Qwen/Qwen3-0.6B")
    p.add_argument("--gpu", required=True, help="GPU type, e.g. L4, L40S, A100, H100")
    p.add_argument("--gpu-count", type=int, default=1, metavar="N", help="GPUs per replica (default 1)")
    p.add_argument("--serverless-provider", metavar="NAME", help="default: the cheapest that sells the GPU")
    p.add_argument(
        "--spots-cloud",
        metavar="NAME",
        help="of the spot GPUs: aws, gcp, azure or local (default: aws where it is set up)",
    )
    p.add_argument("--region", help="of the spot GPUs, or several with commas: us-east-1,us-east-2")
    p.add_argument("--tp-size", type=int, default=1, metavar="N", help="tensor parallel degree (default 1)")
    p.add_argument(
        "--max-model-len", type=int, default=4096, metavar="TOKENS", help="context window (default 4096)"
    )
    p.add_argument("--concurrency", type=int, metavar="N", help="requests at once per serverless container")
    p.add_argument("--workers-max", type=int, metavar="N", help="most serverless containers")
    p.add_argument(
        "--cold-start-mode",
        choices=["fast_boot", "no_fast_boot"],
        default="fast_boot",
        help="fast_boot starts sooner at lower throughput (default)",
    )
    p.add_argument("--no-scale-to-zero", action="store_true", help="keep at least one spot replica")
    p.add_argument("--scaling-policy", metavar="FILE", help="YAML with the sections spot: and serverless:")
    p.add_argument("--service-name", metavar="NAME", help="default: a new name like tuna-a3f8c21b")
    p.add_argument("--serverless-only", action="store_true", help="no spot, no router")
    p.add_argument("--public", action="store_true", help="no key needed: anyone who reaches it may use it")
    p.add_argument("--use-different-vm-for-lb", action="store_true", help="run the router on a VM of its own")
    p.add_argument("--router-host", choices=ROUTER_HOSTS, help="where the router runs (default: what suits)")
    p.add_argument("--router-url", metavar="URL", help="a router that runs already; TUNA_ROUTER_ADMIN_KEY opens it")
    p.add_argument("--port", type=int, metavar="N", help="port of the router (default: a free one)")
    p.add_argument(
        "--engine-cmd",
        metavar="COMMAND",
        help="serve with this command instead, e.g. 'vllm serve {model} --port {port}'",
    )
    p.add_argument("--image", metavar="IMAGE", help="container image with the engine (default: the pinned vLLM)")
    p.add_argument(
        "--engine-args", default="", metavar="ARGS", help="more arguments for the engine, e.g. '--max-num-seqs 64'"
    )
    p.add_argument(
        "--health-path", default="/health", metavar="PATH", help="answers 200 when the engine serves (/health)"
    )
    p.add_argument("--quantization", metavar="METHOD", help="as vLLM calls it, e.g. awq, fp8")
    _provider_settings(p)
    p.add_argument("--budget", type=float, metavar="USD", help="what it may cost; `budget set` changes it later")
    p.add_argument("--budget-per", choices=BUDGET_SPANS, help="default: total, all that it ever costs")
    p.add_argument("--budget-warn", metavar="PER_CENT", help="when to tell (default 50,80)")
    p.add_argument("--budget-action", choices=BUDGET_ACTIONS, help="what happens at 100 %% (default notify)")
    p.add_argument("--budget-webhook", metavar="VARIABLE", help="who is told: a variable that holds the address")
    p.add_argument(
        "--quiet-minutes", type=float, metavar="N", help="billing without serving for so long is told (default 15)"
    )
    p.add_argument("--stop-unserving", action="store_true", help="and what bills without serving is stopped then")
    p.add_argument(
        "--dry-run", action="store_true", help="show what would be created and its price; create nothing"
    )
    p.add_argument("--wait", action="store_true", help="return when the first spot replica is ready")


def _provider_settings(p: Parser) -> None:
    p.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="a provider's own setting; repeatable"
    )
    for flag, text in (
        ("--gcp-project", "Google Cloud project"),
        ("--gcp-region", "Google Cloud region, e.g. us-central1"),
        ("--azure-subscription", "Azure subscription"),
        ("--azure-resource-group", "Azure resource group"),
        ("--azure-region", "Azure region, e.g. eastus"),
        ("--azure-environment", "Container Apps environment to reuse"),
    ):
        p.add_argument(flag, metavar="ID", help=text)


def _destroy(p: Parser) -> None:
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--service-name", metavar="NAME", help="which deployment")
    which.add_argument("--all", action="store_true", help="every deployment of this store")
    which.add_argument(
        "--orphans",
        action="store_true",
        help="everything with Tuna's mark that no deployment of this store owns, another store's included",
    )
    p.add_argument(
        "--shared",
        action="store_true",
        help="also what is kept between deployments and used by none: SkyServe's controller, environments",
    )
    p.add_argument(
        "--azure-cleanup-env",
        action="store_true",
        help="remove Tuna's empty Azure environments too",
    )
    p.add_argument("--wait", action="store_true", help="return when all is gone")


def _status(p: Parser) -> None:
    _service_name(p)
    _live(p)


def _live(p: Parser) -> None:
    p.add_argument("--live", action="store_true", help="go on showing it: traffic, latencies, replicas, money")


def _scale(p: Parser) -> None:
    _service_name(p)
    for flag, kind, text in (
        ("--concurrency", int, "serverless: requests at once per container"),
        ("--scaledown-window", float, "serverless: idle seconds before a container stops"),
        ("--workers-min", int, "serverless: containers kept"),
        ("--workers-max", int, "serverless: most containers"),
        ("--min-replicas", int, "spot: replicas kept"),
        ("--max-replicas", int, "spot: most replicas"),
        ("--target-qps", float, "spot: requests per second per replica"),
    ):
        p.add_argument(flag, type=kind, metavar="N", help=text)
    p.add_argument("--scaling-policy", metavar="FILE", help="YAML with the sections spot: and serverless:")


def _wake(p: Parser) -> None:
    _service_name(p)
    p.add_argument("--role", choices=["serverless", "spot"], help="default: both")


def _list(p: Parser) -> None:
    p.add_argument(
        "--status", choices=["active", "destroyed", "failed"], help="default: active, all that may still cost money"
    )


def _cost(p: Parser) -> None:
    p.add_argument("--service-name", metavar="NAME", help="one deployment (default: all)")
    p.add_argument(
        "--since", metavar="WHEN", help="90m, 24h, 7d, today, month, or a date like 2026-11-01 (default: all of it)"
    )
    p.add_argument("--by", choices=BILL_GROUPS, default="backend", help="what it is told by (default backend)")
    _live(p)


def _budget(p: Parser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    for action, text in (
        ("set", "so much may be spent, and what happens then"),
        ("list", "what is spent, what is left, what has fired"),
        ("remove", "no such budget any more"),
    ):
        one = sub.add_parser(action, help=text)
        one.add_argument("--service-name", metavar="NAME", help="one deployment (default: all of them together)")
        if action == "set":
            one.add_argument("--limit", type=float, required=True, metavar="USD", help="US dollars")
            one.add_argument("--warn", metavar="PER_CENT", help="when to tell (default 50,80)")
            one.add_argument(
                "--action",
                dest="action_at_limit",
                choices=BUDGET_ACTIONS,
                default="notify",
                help="what happens at 100 %% (default notify)",
            )
            one.add_argument(
                "--webhook", metavar="VARIABLE", help="who is told, as Slack is: a variable that holds the address"
            )
        if action != "list":
            default, which = ("total", "default total") if action == "set" else (None, "default: every one")
            one.add_argument("--per", choices=BUDGET_SPANS, default=default, help=which)
        _everywhere(one)


def _show_gpus(p: Parser) -> None:
    p.add_argument("--gpu", metavar="GPU", help="one GPU, every offer of it")
    p.add_argument("--provider", metavar="NAME", help="one seller, e.g. modal, aws, vast")
    p.add_argument("--kind", action="append", default=[], choices=OFFER_KINDS, help="how it is sold; repeatable")
    p.add_argument("--spot", action="store_true", help="spot prices beside serverless ones")
    p.add_argument("--spots-cloud", choices=["aws", "gcp", "azure"], help="whose spot prices (default aws)")
    p.add_argument("--region", metavar="TEXT", help="a part of the region's name, every offer there")
    p.add_argument("--min-vram", type=float, metavar="GB", help="memory of one GPU at least")
    p.add_argument("--max-price", type=float, metavar="USD", help="per GPU-hour; all in with --all-in")
    p.add_argument("--gpu-count", type=int, metavar="N", help="GPUs of a machine")
    p.add_argument("--all-in", action="store_true", help="compare by all that is billed, vCPUs and memory too")
    p.add_argument(
        "--cpus", type=float, metavar="N", help="vCPUs to price in (default: the machine's, else 8 a GPU)"
    )
    p.add_argument("--memory", type=float, metavar="GIB", help="memory to price in (default: 32 a GPU)")
    p.add_argument("--disk", type=float, default=0, metavar="GB", help="disk to price in (default 0)")
    p.add_argument("--sort", choices=SORTS, help="default: by memory, or by price for one GPU")
    p.add_argument("--every", action="store_true", help="every offer, not only the cheapest of each seller")
    p.add_argument("--limit", type=int, metavar="N", help="so many rows at most")
    p.add_argument("--offset", type=int, default=0, metavar="N", help="after the first N rows")
    p.add_argument("--live", action="store_true", help="ask the sources now; else what was asked before")
    p.add_argument("--timeout", type=float, default=5, metavar="SECONDS", help="wait so long for them (default 5)")
    p.add_argument("--history", action="store_true", help="what was seen in the last 90 days")
    seen = p.add_mutually_exclusive_group()
    seen.add_argument("--chart", choices=CHARTS, help="draw it: every kind of sale, unless --kind says which")
    seen.add_argument("--explore", action="store_true", help="notebook: every offer, to filter and sort by hand")


def _check(p: Parser) -> None:
    p.add_argument("--provider", metavar="NAME", help="or a cloud, as aws; default: every one that is installed")
    p.add_argument("--gpu", metavar="GPU", help="also check that each provider offers this GPU")
    p.add_argument("--model", help="also check that this model is there and may be had")
    p.add_argument("--engine-cmd", metavar="COMMAND", help="also check that this engine's program is here")
    _provider_settings(p)


def _fit(p: Parser) -> None:
    p.add_argument("--model", required=True, help="Hugging Face model id, or a folder with its config.json")
    p.add_argument("--quantization", metavar="METHOD", help="awq, gptq, fp8, int8 (default: as its checkpoint is)")
    p.add_argument(
        "--max-model-len", type=int, default=4096, metavar="TOKENS", help="context window (default 4096)"
    )
    p.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="requests of that length at once (default 32)"
    )
    p.add_argument(
        "--kv-cache-dtype", choices=["auto", "fp8"], default="auto", help="default: auto, the model's own"
    )
    p.add_argument("--gpu", help="only this GPU, with every number of them (default: those that are sold)")
    p.add_argument(
        "--tp-size", type=int, metavar="N", help="tensor parallel degree (default: the least that holds)"
    )
    p.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.92,
        metavar="SHARE",
        help="of its memory the engine may use (default 0.92, as vLLM's)",
    )


def _logs(p: Parser) -> None:
    _service_name(p)
    p.add_argument("--role", choices=["serverless", "spot", "router"], help="default: all three")
    p.add_argument("--since", type=float, metavar="SECONDS", help="only lines of the last SECONDS")
    p.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")


def _demo(p: Parser) -> None:
    p.add_argument("--requests", type=int, default=240, metavar="N", help="streamed requests to send (default 240)")
    p.add_argument("--keep", action="store_true", help="leave the deployment running at the end")


def _jobs(p: Parser) -> None:
    p.add_argument("name", nargs="?", help="one job; in a notebook `job = %%tuna jobs NAME` can be awaited")
    p.add_argument("--all", action="store_true", help="ended ones too")


def _cancel(p: Parser) -> None:
    p.add_argument("name", help="the job's name, as `jobs` shows it")


def _connect(p: Parser) -> None:
    p.add_argument("name", help="which deployment")
    p.add_argument("as_", nargs="?", choices=["as"], metavar="as", help="then the variable to bind, in a notebook")
    p.add_argument("variable", nargs="?", metavar="VARIABLE", help="gets an openai.OpenAI for the endpoint")
    p.add_argument("--env", action="store_true", help="terminal: print export lines with the key, for eval")


def _local(p: Parser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    preempt = sub.add_parser("preempt", help="take a spot replica away")
    _service_name(preempt)
    preempt.add_argument(
        "--notice", type=float, metavar="SECONDS", help="default: the deployment's own; 0 for none"
    )
    preempt.add_argument("--replica", metavar="ID", help="default: the oldest that serves")
    bill = sub.add_parser("bill", help="the local cloud's own bill")
    bill.add_argument("--service-name", metavar="NAME", help="default: everything")
    for verb in (preempt, bill):
        _everywhere(verb)


def _router(p: Parser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    for action, text in (
        ("status", "where it runs, and which version"),
        ("logs", "what it says"),
        ("upgrade", "put the tuna-router that is installed here in its place"),
        ("restart", "put another process in its place"),
        ("move", "to another host, at another address"),
    ):
        one = sub.add_parser(action, help=text)
        _service_name(one)
        if action == "logs":
            one.add_argument("--since", type=float, metavar="SECONDS", help="only lines of the last SECONDS")
            one.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")
        if action == "move":
            one.add_argument("--to", required=True, choices=ROUTER_HOSTS, help="where it shall run")
            one.add_argument("--yes", action="store_true", help="its clients will be told the new address")
        _everywhere(one)


def _everywhere(p: Parser) -> None:
    p.add_argument("-o", "--output", choices=["table", "json"], default="table", help="terminal: how to print")
    p.add_argument("--out", metavar="VARIABLE", help="notebook: store the result under this name")
    p.add_argument("-v", "--verbose", action="store_true", help="details, and the traceback of an error")


_COMMANDS = "tuna_nb.commands."
VERBS = (
    Verb("deploy", "deploy a model across serverless and spot", _COMMANDS + "deploy:deploy", _deploy, cell=True),
    Verb("destroy", "take a deployment down, verified", _COMMANDS + "destroy:destroy", _destroy),
    Verb("status", "what is really there", _COMMANDS + "inspect:status", _status),
    Verb("scale", "change how a deployment scales, in place", _COMMANDS + "scale:scale", _scale, cell=True),
    Verb("wake", "start what has scaled to zero", _COMMANDS + "scale:wake", _wake),
    Verb("list", "all deployments", _COMMANDS + "inspect:list_", _list),
    Verb("cost", "what a deployment has cost, and costs now", _COMMANDS + "cost:cost", _cost),
    Verb("budget", "what may be spent, and what happens then", _COMMANDS + "budget:budget", _budget),
    Verb("show-gpus", "what GPUs cost, everywhere, all in", _COMMANDS + "prices:show_gpus", _show_gpus),
    Verb("check", "what a provider still needs", _COMMANDS + "check:check", _check),
    Verb("fit", "which GPUs hold a model, and what they cost", _COMMANDS + "fit:fit", _fit),
    Verb("logs", "what engines and router say", _COMMANDS + "inspect:logs", _logs),
    Verb("router", "its status, logs, upgrade, restart, move", _COMMANDS + "router:router", _router),
    Verb("connect", "a client for a deployment's endpoint", _COMMANDS + "connect:connect", _connect),
    Verb("jobs", "long work under way, in any process", _COMMANDS + "jobs:jobs", _jobs),
    Verb("cancel", "stop a job and undo what it made", _COMMANDS + "jobs:cancel", _cancel),
    Verb("local", "this machine's own cloud: preempt, bill", _COMMANDS + "local:local", _local),
    Verb("demo", "the whole story on this machine, no account needed", _COMMANDS + "demo:demo", _demo),
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
            _everywhere(sub)
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
