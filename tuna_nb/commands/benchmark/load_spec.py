"""From the words of `benchmark load-test` to what a load test is asked; refuses what can't be, before anything is
sent."""

from __future__ import annotations

import math
import os
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from tuna_nb.benchmarks.load.spec import ArrivalKind, Arrivals, Lengths, LoadSpec, PromptKind, Prompts, Target
from tuna_nb.benchmarks.measures import Slo
from tuna_nb.errors import UsageError, did_you_mean

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_SLO: Final = ("ttft", "tpot", "latency")
DEFAULT_S: Final = 60.0

_ONLY: Final[Mapping[str, tuple[str, ...]]] = {
    "burstiness": ("gamma",), "low_rate": ("day", "spike"), "speed": ("trace",), "period": ("day",),
    "spike_at": ("spike",), "spike_for": ("spike",), "on": ("gaps",), "off": ("gaps",), "trace": ("trace",),
}  # fmt: skip
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "constant": ("rate",), "poisson": ("rate",), "gamma": ("rate", "burstiness"), "day": ("rate",),
    "spike": ("rate", "spike_at", "spike_for"), "gaps": ("rate", "on", "off"), "trace": ("trace",),
    "closed": ("concurrency",),
}  # fmt: skip


def load_spec(options: Namespace, target: Target, levels: tuple[float, ...] = ()) -> LoadSpec:
    """Raises UsageError. levels: of a sweep, whose first takes the place of `--rate` or `--concurrency`."""
    kind = _kind(options)
    sweeps = "concurrency" if kind == "closed" else "rate"
    given = vars(options) | ({sweeps: levels[0]} if levels else {})
    for name in _NEEDS[kind]:
        if given[name] is None:
            raise UsageError(*_lacking(kind, name))
    for name, kinds in _ONLY.items():
        if given[name] is not None and kind not in kinds:
            words = " and ".join(f"--arrivals {one}" for one in kinds)
            raise UsageError(f"{flag(name)} does nothing here", f"it belongs to {words}")
    for name in ("rate", "concurrency", "burstiness", "speed"):
        _above_zero(name, given[name])
    requests, duration_s = _length(options, kind)
    return LoadSpec(
        target,
        _arrivals(given, kind, duration_s),
        _prompts(options, kind),
        duration_s=duration_s,
        requests=requests,
        warmup_requests=_count("warmup", options.warmup, least=0),
        seed=options.seed,
        request_timeout_s=span("timeout", options.timeout),
    )


def levels(options: Namespace) -> tuple[float, ...]:
    """Of `--sweep`. Raises UsageError."""
    if options.sweep is None:
        return ()
    if options.trace is not None or options.arrivals in ("trace", "day", "spike", "gaps"):
        raise UsageError(
            "--sweep needs one load at a time", "with --arrivals constant, poisson or gamma, or --concurrency"
        )
    found = tuple(_number("sweep", word) for word in options.sweep.split(","))
    closed = options.concurrency is not None
    if any(level <= 0 or (closed and level != int(level)) for level in found):
        raise UsageError(f"--sweep {options.sweep}: no such load", "numbers above 0 with commas, e.g. 1,2,4,8")
    return found


def slo(text: str | None) -> Slo | None:
    """`ttft=200ms,tpot=50ms,latency=5s`, or some of these. Raises UsageError."""
    if text is None:
        return None
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in _SLO:
            raise UsageError(f"--slo: no limit {name!r}", did_you_mean(name, _SLO))
        limits[f"{name}_ms"] = 1000 * span("slo", value, f"{name}=")
    return Slo(**limits)


def url_target(options: Namespace) -> Target:
    """Of an endpoint that no deployment of ours stands behind. Raises UsageError."""
    parts = urlsplit(options.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--url {options.url!r} is no address", "write http://127.0.0.1:8000/v1, or https://...")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("--url may hold no key", "put the key in a variable and name it: --key-variable NAME")
    if not options.model:
        raise UsageError("--url needs --model", "as the endpoint calls it; its /v1/models lists them")
    base = options.url.rstrip("/")
    headers = {}
    if options.key_variable is not None:
        key = os.environ.get(options.key_variable)
        if not key:
            raise UsageError(
                f"the variable {options.key_variable} is not set", "--key-variable names it, its value is the key"
            )
        headers = {"Authorization": f"Bearer {key}"}
    return target_of(options, base if base.endswith("/v1") else f"{base}/v1", tuple(options.model), headers)


def target_of(options: Namespace, base_url: str, models: tuple[str, ...], headers: Mapping[str, str]) -> Target:
    api: Literal["chat", "completions"] = options.api
    return Target(base_url, models, dict(headers), api, not options.no_stream)


def span(name: str, text: str, before: str = "") -> float:
    """Seconds of `200ms`, `90s`, `5m`, `1.5h`; a bare number is seconds. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if found is None or float(found[1]) == 0:
        raise UsageError(f"{flag(name)} {before}{text}: no span of time", "write 200ms, 90s, 5m or 1.5h")
    return float(found[1]) * _UNITS[found[2] or ""]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(options: Namespace) -> ArrivalKind:
    kind: ArrivalKind
    if options.concurrency is not None:
        if options.rate is not None or options.arrivals is not None or options.trace is not None:
            raise UsageError(
                "--concurrency goes with no --rate, --arrivals or --trace",
                "a closed loop sends the next request as one ends, whatever the schedule",
            )
        return "closed"
    kind = options.arrivals or ("trace" if options.trace is not None else "poisson")
    return kind


def _lacking(kind: str, name: str) -> tuple[str, str]:
    if name == "rate":
        return "how many requests?", "--rate N per second, --concurrency N at a time, or --trace FILE"
    return f"--arrivals {kind} needs {flag(name)}", "`tuna benchmark load-test --help` shows what it takes"


def _length(options: Namespace, kind: str) -> tuple[int | None, float | None]:
    if options.requests is not None and options.duration is not None:
        raise UsageError("--requests and --duration: one of them", "the other follows from it")
    if options.requests is not None:
        return _count("requests", options.requests), None
    if options.duration is not None:
        return None, span("duration", options.duration)
    return None, None if kind == "trace" else DEFAULT_S


def _arrivals(given: Mapping[str, Any], kind: ArrivalKind, duration_s: float | None) -> Arrivals:
    spans = {
        field: span(name, given[name])
        for field, name in (
            ("period_s", "period"), ("spike_at_s", "spike_at"), ("spike_s", "spike_for"), ("on_s", "on"),
            ("off_s", "off"),
        )
        if given[name] is not None
    }  # fmt: skip
    if kind == "day" and "period_s" not in spans and duration_s is not None:
        spans["period_s"] = duration_s
    low = given["low_rate"] or 0.0
    if low < 0 or low > (given["rate"] or 0.0):
        raise UsageError(f"--low-rate is {low:g}", "between 0 and --rate")
    if kind == "trace":
        _file("trace", given["trace"])
    return Arrivals(
        kind,
        rate=1.0 if given["rate"] is None else float(given["rate"]),
        low_rate=low,
        cv=1.0 if given["burstiness"] is None else given["burstiness"],
        trace=None if given["trace"] is None else str(Path(given["trace"]).expanduser().absolute()),
        speed=1.0 if given["speed"] is None else given["speed"],
        concurrency=1 if given["concurrency"] is None else int(given["concurrency"]),
        **spans,
    )


def _prompts(options: Namespace, arrivals: str) -> Prompts:
    kind: PromptKind = "trace" if arrivals == "trace" else "synthetic"
    path = options.trace if arrivals == "trace" else None
    for name, other in (("prompts", "file"), ("sharegpt", "sharegpt")):
        given = getattr(options, name)
        if given is not None:
            _file(name, given)
            kind, path = other, given  # type: ignore[assignment]
    return Prompts(
        kind,
        None if path is None else str(Path(path).expanduser().absolute()),
        _lengths("input_tokens", options.input_tokens),
        _lengths("output_tokens", options.output_tokens),
        _count("shared_prefix", options.shared_prefix, least=0),
        _count("prefixes", options.prefixes),
        options.ignore_eos,
    )


def _lengths(name: str, text: str) -> Lengths:
    mean, _, cv = text.partition("~")
    made = Lengths(_number(name, mean), _number(name, cv) if cv else 0.0)
    if made.mean < 1 or made.cv < 0:
        raise UsageError(f"{flag(name)} {text}: no length", "tokens, 1 at least, and how much they vary: 256~0.5")
    return made


def _file(name: str, path: str) -> None:
    if not Path(path).expanduser().is_file():
        raise UsageError(f"{flag(name)}: there is no file {path}", "paths are from the folder you are in")


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{flag(name)}: {text!r} is no number", "write e.g. 256, or 256~0.5 where it varies")
    return number


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"{flag(name)} is {value:g}", "above 0")


def _count(name: str, value: int, least: int = 1) -> int:
    if value < least:
        raise UsageError(f"{flag(name)} is {value}", f"{least} at least")
    return value
