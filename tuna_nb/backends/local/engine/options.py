"""The command line of the stand-in, and what it says when a flag is wrong."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from tuna_nb.backends.local.engine.checks import ServedModel
from tuna_nb.backends.local.engine.faults import Fault, parse_fault_flag
from tuna_nb.backends.local.engine.reasoning import PARSERS
from tuna_nb.backends.local.engine.scheduler import Limits, Speed

PROGRAM: Final = "python -m tuna_nb.backends.local.engine"


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that can be set about one engine. Times in seconds, lengths in tokens."""

    model: ServedModel
    host: str
    port: int
    port_file: Path | None
    limits: Limits
    speed: Speed
    seed: int
    api_key: str | None
    min_answer_tokens: int
    raw_bytes: bool
    leak: bool
    stream_interval: int
    request_id_header: bool
    shutdown_timeout_s: float
    hang_on_sigterm: bool
    startup_delay_s: float
    never_ready: bool
    die_at_start: bool
    faults: tuple[Fault, ...]
    allow_faults: bool
    omit_done: bool
    usage_in_last_chunk: bool
    reject_unknown_fields: bool
    no_token_ids: bool
    reasoning_parser: str | None


class _Parser(argparse.ArgumentParser):
    """Two lines and a hint instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        hint = f"`{PROGRAM} --help` lists every flag."
        if message.startswith("unrecognized arguments:"):
            close = difflib.get_close_matches(message.split()[2].split("=", maxsplit=1)[0], known, 1)
            if close:
                hint = f"Did you mean {close[0]}?"
        print(f"The engine was not started: {message}\nhint: {hint}", file=sys.stderr)  # noqa: T201 - a command line
        raise SystemExit(2)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _at_least_zero(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be between 0 and 65535, not {text}")
    return value


def _fault(text: str) -> Fault:
    try:
        return parse_fault_flag(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM, description="A stand-in for vLLM: its wire behaviour, without a model.", allow_abbrev=False
    )
    speed, limits = Speed(), Limits()
    add = parser.add_argument
    add("--model", required=True, help="name of the model; any name is taken")
    add("--served-model-name", action="append", nargs="+", metavar="NAME", help="names to serve it under")
    add("--host", default="127.0.0.1")
    add("--port", type=_port, default=8000, help="0: any free port (see --port-file)")
    add("--port-file", type=Path, metavar="PATH", help='written when ready: {"pid": ..., "port": ...}')
    add("--api-key", help="key asked for under /v1 (better: the variable VLLM_API_KEY, which `ps` does not show)")
    add("--seed", type=int, default=0, help="of requests without a seed")

    size = parser.add_argument_group("size and speed")
    add = size.add_argument
    add("--max-model-len", type=_positive, default=4096, metavar="TOKENS", help="context window")
    add(
        "--max-num-seqs", type=_positive, default=limits.max_num_seqs, metavar="N", help="answers generated at once"
    )
    add("--max-num-queued-reqs", type=_positive, metavar="N", help="running and waiting requests; 503 beyond")
    add("--max-num-batched-tokens", type=_positive, default=limits.max_num_batched_tokens, metavar="TOKENS")
    add("--prefill-tokens-per-s", type=_at_least_zero, default=speed.prefill_tokens_per_s, metavar="RATE")
    add("--decode-tokens-per-s", type=_at_least_zero, default=speed.decode_tokens_per_s, metavar="RATE",
        help="of one stream alone; 0: as fast as the machine can")  # fmt: skip
    add("--batch-cost", type=_at_least_zero, default=speed.batch_cost, metavar="SHARE",
        help="how much each further stream lengthens a step, as a share of the step of one")  # fmt: skip
    add("--stream-interval", type=_positive, default=1, metavar="N", help="tokens per streamed chunk")

    text = parser.add_argument_group("text")
    add = text.add_argument
    add("--min-answer-tokens", type=int, default=40, metavar="TOKENS", help="no answer ends by itself before that")
    add("--raw-bytes", action="store_true", help="also write characters of several bytes, one byte per token")
    add("--reasoning-parser", choices=PARSERS, help="think first, and tell the thoughts of a chat as `reasoning`")
    add("--no-prompt-leak", action="store_true", help="without vLLM's bug 48853 (prompt text in a resumed answer)")

    life = parser.add_argument_group("start, end, faults")
    add = life.add_argument
    add("--startup-delay", type=_at_least_zero, default=0.0, metavar="S", help="seconds before it listens")
    add("--never-ready", action="store_true", help="run and never listen")
    add("--die-at-start", action="store_true", help="log an error and exit 1")
    add("--shutdown-timeout", type=_at_least_zero, default=0.0, metavar="S",
        help="seconds that SIGTERM lets running requests finish; 0 aborts them")  # fmt: skip
    add("--hang-on-sigterm", action="store_true", help="SIGTERM closes the port and leaves open streams silent")
    add("--fault", type=_fault, action="append", default=[], metavar="KIND[:KEY=N,...]",
        help="fault for the next requests, e.g. reset:after_tokens=5,times=1")  # fmt: skip
    add("--allow-faults", action="store_true", help="take orders on /-/faults (GET, POST, DELETE)")

    other = parser.add_argument_group("deviations, to play other engines")
    add = other.add_argument
    add("--omit-done", action="store_true", help="streams end without [DONE]")
    add("--usage-in-last-chunk", action="store_true", help="usage in the finishing chunk, asked for or not")
    add("--reject-unknown-fields", action="store_true", help="422 for fields it does not know")
    add("--no-token-ids", action="store_true", help="ignore return_token_ids")
    add("--enable-request-id-headers", action="store_true", help="answer with X-Request-Id")
    return parser


def parse(arguments: Sequence[str], environment: dict[str, str]) -> Options:
    """Options from a command line; prints two lines and exits with 2 when it makes no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = tuple(name for group in given.served_model_name or () for name in group) or (given.model,)
    if any(not name.strip() for name in (given.model, *names)):
        parser.error("argument --model: the name is empty")
    return Options(
        model=ServedModel(names, given.model, given.max_model_len),
        host=given.host,
        port=given.port,
        port_file=given.port_file,
        limits=Limits(given.max_num_seqs, given.max_num_queued_reqs, given.max_num_batched_tokens),
        speed=Speed(given.prefill_tokens_per_s, given.decode_tokens_per_s, given.batch_cost),
        seed=given.seed,
        api_key=given.api_key or environment.get("VLLM_API_KEY") or None,
        min_answer_tokens=given.min_answer_tokens,
        raw_bytes=given.raw_bytes,
        leak=not given.no_prompt_leak,
        stream_interval=given.stream_interval,
        request_id_header=given.enable_request_id_headers,
        shutdown_timeout_s=given.shutdown_timeout,
        hang_on_sigterm=given.hang_on_sigterm,
        startup_delay_s=given.startup_delay,
        never_ready=given.never_ready,
        die_at_start=given.die_at_start,
        faults=tuple(given.fault),
        allow_faults=given.allow_faults,
        omit_done=given.omit_done,
        usage_in_last_chunk=given.usage_in_last_chunk,
        reject_unknown_fields=given.reject_unknown_fields,
        no_token_ids=given.no_token_ids,
        reasoning_parser=given.reasoning_parser,
    )
