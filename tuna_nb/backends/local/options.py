"""The local cloud's settings: every figure of its behaviour, as text from a user, checked and typed.

Defaults are scaled down so that a person sees a whole life cycle in a minute: a real serverless cold start takes
tens of seconds to minutes, a real spot machine boots for minutes, and AWS gives two minutes of notice.
"""

from __future__ import annotations

import ipaddress
import math
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from tuna_nb.errors import RequestError, did_you_mean

LOOPBACK: Final = "127.0.0.1"
STAND_IN_START_TIMEOUT_S: Final = 30.0
COMMAND_START_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one resource. None: not set, so the engine's or the price list's own figure holds."""

    cold_start_s: float = 2.0
    boot_s: float = 8.0
    notice_s: float = 5.0
    preemption_mean_s: float = 0.0
    seed: int | None = None
    serverless_price_per_hour_usd: float | None = None
    spot_price_per_hour_usd: float | None = None
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    max_num_seqs: int | None = None
    engine_start_timeout_s: float | None = None
    stop_grace_s: float = 3.0
    drain_s: float = 30.0
    qps_window_s: float = 10.0
    listen: str = LOOPBACK
    engine_args: tuple[str, ...] = ()
    engine_env: Mapping[str, str] = field(default_factory=dict)

    def start_timeout_s(self, stand_in: bool) -> float:
        """How long an engine may take to its first token before the start counts as failed."""
        if self.engine_start_timeout_s is not None:
            return self.engine_start_timeout_s
        return STAND_IN_START_TIMEOUT_S if stand_in else COMMAND_START_TIMEOUT_S


OPTIONS: Final[Mapping[str, str]] = {
    "cold_start_s": "serverless: seconds before a container's engine starts (default 2, scaled down); billed",
    "boot_s": "spot: seconds a machine boots before its engine starts (default 8, scaled down); billed",
    "notice_s": "spot: seconds between a preemption's notice and the kill (default 5, scaled down); 0: no notice",
    "preemption_mean_s": "spot: mean life of a replica before it is taken away at random (default 0: never)",
    "seed": "spot: seed of the random preemptions, a whole number (default: a new one each time)",
    "serverless_price_per_hour_usd": "serverless: price of one GPU (default: the local price list)",
    "spot_price_per_hour_usd": "spot: price of one GPU (default: the local price list)",
    "decode_tokens_per_s": "stand-in engine: tokens per second of one stream",
    "prefill_tokens_per_s": "stand-in engine: prompt tokens per second",
    "max_num_seqs": "stand-in engine: requests in one batch",
    "engine_start_timeout_s": "seconds an engine may take to its first token (default 30; 600 for a command)",
    "stop_grace_s": "seconds between SIGTERM and SIGKILL when an engine is stopped (default 3)",
    "drain_s": "spot: most seconds a replica that is scaled down goes on serving its requests (default 30)",
    "qps_window_s": "spot: seconds over which requests per second are measured (default 10, scaled down)",
    "listen": "address of this machine that the endpoint listens at (default 127.0.0.1: for this machine alone)",
    "engine_args": "more arguments for the engine, split by shell rules",
    "engine_env": "environment for the engine, NAME=VALUE pairs split by shell rules; not for secrets",
}
"""Name to one line of help, as `Backend.options` wants it."""

_WHOLE: Final = frozenset({"seed", "max_num_seqs"})
_POSITIVE: Final = frozenset(
    {
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
        "max_num_seqs",
        "engine_start_timeout_s",
        "qps_window_s",
    }
)


def parse(options: Mapping[str, str]) -> Figures:
    """The figures that `options` asks for. Raises RequestError for an unknown name or a bad value."""
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name not in OPTIONS:
            raise RequestError(f"the local cloud has no option {name!r}", did_you_mean(name, OPTIONS))
        if name == "engine_args":
            values[name] = tuple(_words(name, text))
        elif name == "listen":
            values[name] = _address(text)
        elif name == "engine_env":
            values[name] = _environment(text)
        else:
            values[name] = _number(name, text)
    return Figures(**values)


def to_json(figures: Figures) -> dict[str, Any]:
    """For the wire and the journal; `from_json` reads it back."""
    shown = {f.name: getattr(figures, f.name) for f in fields(figures)}
    return {**shown, "engine_args": list(figures.engine_args), "engine_env": dict(figures.engine_env)}


def from_json(shown: Mapping[str, Any]) -> Figures:
    """Raises TypeError where a name is not a figure's."""
    return Figures(**{**shown, "engine_args": tuple(shown["engine_args"])})


def _number(name: str, text: str) -> float | int:
    try:
        value = int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise RequestError(f"option {name}: {text!r} is not {kind}", OPTIONS[name]) from None
    if not math.isfinite(value):
        raise RequestError(f"option {name}: {text!r} is not a finite number", OPTIONS[name])
    if name in _POSITIVE and value <= 0:
        raise RequestError(f"option {name}: must be above 0, not {text}", OPTIONS[name])
    if name != "seed" and value < 0:
        raise RequestError(f"option {name}: must not be negative, not {text}", OPTIONS[name])
    return value


def _address(text: str) -> str:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise RequestError(f"option listen: {text!r} is no IPv4 address", OPTIONS["listen"]) from None
    # Bound here and told to others: it has to be one address, and one that this machine has.
    with socket.socket() as probe:
        try:
            if address.is_unspecified:
                raise OSError
            probe.bind((str(address), 0))
        except OSError:
            raise RequestError(
                f"option listen: {text} is no address of this machine", "`ip addr` lists them"
            ) from None
    return str(address)


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise RequestError(f"option {name}: {text!r} can't be split: {exc}", OPTIONS[name]) from None


def _environment(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in _words("engine_env", text):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise RequestError(f"option engine_env: {word!r} is not NAME=VALUE", OPTIONS["engine_env"])
        pairs[name] = value
    return pairs
