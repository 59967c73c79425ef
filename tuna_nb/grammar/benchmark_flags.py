"""What `benchmark` takes: a function an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tuna_nb.grammar.cold_start_flags import cold_start
from tuna_nb.grammar.parser import Parser

ENGINES: Final = ("native", "aiperf")
ARRIVALS: Final = ("constant", "poisson", "gamma", "day", "spike", "gaps", "trace")


def load_test(p: Parser) -> None:
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--service-name", metavar="NAME", help="which deployment")
    where.add_argument("--url", metavar="URL", help="any OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1")
    p.add_argument(
        "--model", action="append", default=[], help="asked for; repeatable, taken in turn (default: its own)"
    )
    p.add_argument("--key-variable", metavar="VARIABLE", help="with --url: the variable that holds its key")
    _arrivals(p)
    _length(p)
    _prompts(p)
    p.add_argument("--api", choices=["chat", "completions"], default="chat", help="default chat")
    p.add_argument("--no-stream", action="store_true", help="ask for answers in one piece")
    p.add_argument(
        "--timeout", default="10m", metavar="SPAN", help="a request not over by then failed (default 10m)"
    )
    p.add_argument(
        "--slo", metavar="LIMITS", help="count what kept them: ttft=200ms,tpot=50ms,latency=5s, or some of these"
    )
    p.add_argument(
        "--sweep",
        metavar="LEVELS",
        help="one after another, e.g. 1,2,4,8: rates, or with --concurrency requests at once",
    )
    p.add_argument(
        "--engine",
        choices=ENGINES,
        default="native",
        help="aiperf: once more by NVIDIA's aiperf, its figures beside ours (default native)",
    )
    p.add_argument(
        "--yes", action="store_true", help="let --engine aiperf install it: 840 MB, in Tuna's own folder"
    )
    p.add_argument(
        "--preempt-at", metavar="SPAN", help="local cloud: a spot replica is taken away then, without notice"
    )
    p.add_argument("--name", help="to keep it under (default: a new one)")
    p.add_argument("--rows", metavar="FILE", help="also write a row a request: .jsonl or .parquet")
    p.add_argument("--report", metavar="FILE", help="also write the report: .html")


def _arrivals(p: Parser) -> None:
    p.add_argument("--rate", type=float, metavar="N", help="requests per second; the highest, where it varies")
    p.add_argument("--concurrency", type=int, metavar="N", help="instead: N at a time, the next as one ends")
    p.add_argument("--arrivals", choices=ARRIVALS, help="how they come (default poisson)")
    for flag, name, text in (
        ("--burstiness", "CV", "gamma: variation of the gaps; 1 is poisson, 3 is bursty"),
        ("--low-rate", "N", "day, spike: requests per second at the quietest (default 0)"),
        ("--speed", "N", "trace: so many times as fast (default 1)"),
    ):
        p.add_argument(flag, type=float, metavar=name, help=text)
    for flag, text in (
        ("--period", "day: how long one is (default: the whole duration)"),
        ("--spike-at", "spike: when it begins"),
        ("--spike-for", "spike: how long it lasts"),
        ("--on", "gaps: how long there is traffic"),
        ("--off", "gaps: how long there is none"),
    ):
        p.add_argument(flag, metavar="SPAN", help=text)
    p.add_argument("--trace", metavar="FILE", help="replay it: CSV or JSONL with time, input and output tokens")


def _length(p: Parser) -> None:
    p.add_argument("--duration", metavar="SPAN", help="e.g. 90s, 5m, 1h (default 1m; a trace: all of it)")
    p.add_argument("--requests", type=int, metavar="N", help="or so many")
    p.add_argument("--warmup", type=int, default=0, metavar="N", help="requests before, in no figure (default 0)")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="same seed, same schedule and prompts (default 0)"
    )


def _prompts(p: Parser) -> None:
    p.add_argument(
        "--input-tokens", default="256", metavar="N[~CV]", help="mean, and variation, e.g. 256~0.5 (default 256)"
    )
    p.add_argument("--output-tokens", default="128", metavar="N[~CV]", help="at most so many (default 128)")
    files = p.add_mutually_exclusive_group()
    files.add_argument("--prompts", metavar="FILE", help="one a line: text, or JSON with prompt or messages")
    files.add_argument("--sharegpt", metavar="FILE", help="conversations as ShareGPT has them")
    p.add_argument("--shared-prefix", type=int, default=0, metavar="TOKENS", help="that all begin with (default 0)")
    p.add_argument("--prefixes", type=int, default=1, metavar="N", help="so many different ones (default 1)")
    p.add_argument("--ignore-eos", action="store_true", help="vLLM: answer in just so many tokens")


def compare(p: Parser) -> None:
    p.add_argument("a", metavar="A", help="a kept run")
    p.add_argument("b", metavar="B", help="another, told against it")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default 0)")


def list_(_p: Parser) -> None:
    """Nothing."""


def show(p: Parser) -> None:
    p.add_argument("name", metavar="NAME", help="a kept run")
    p.add_argument("--rows", dest="show_rows", action="store_true", help="its requests, one a row")
    p.add_argument("--report", metavar="FILE", help="also write the report: .html")


ACTIONS: Final[Mapping[str, tuple[str, Callable[[Parser], None]]]] = {
    "load-test": ("real traffic to an endpoint: what it does under it", load_test),
    "cold-start": ("how long the first token takes, from nothing and from zero", cold_start),
    "compare": ("two runs: what differs, and how sure that is", compare),
    "list": ("the runs that are kept", list_),
    "show": ("a kept run again", show),
}
"""By its name: its help, and what adds its flags."""
