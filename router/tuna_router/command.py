"""The command line: a contract that other programs start the router by. Flags, then environment, then file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tuna_router import __version__, state
from tuna_router.auth import sha256_hex
from tuna_router.errors import SettingsError, UsageError
from tuna_router.settings import BackendSettings, Kind, Settings, check_url, named


@dataclass(frozen=True, slots=True)
class Launch:
    """What a router is to be started with.

    `not_saved` are hashes of keys from flags or environment: they are given anew at every start, and
    in the file they would outlive their rotation.
    """

    settings: Settings
    open_door: bool
    save_to: Path | None
    not_saved: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "tuna-router --help shows every flag")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. Raises UsageError; `--help` and `--version` print and exit."""
    parser = _Parser(
        prog="tuna-router",
        description="One OpenAI-compatible endpoint over serverless and spot GPUs.",
        epilog="Environment: SERVERLESS_BASE_URL, SERVERLESS_AUTH_TOKEN, SKYSERVE_BASE_URL, API_KEY.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=_port, default=8080, help="port to listen on; 0 for a free one (default 8080)"
    )
    parser.add_argument(
        "--fd", type=_descriptor, metavar="N", help="a socket that listens already, opened by a supervisor"
    )
    parser.add_argument(
        "--serverless", action="append", default=[], metavar="URL", help="a serverless backend; may be repeated"
    )
    parser.add_argument(
        "--spot", action="append", default=[], metavar="URL", help="a spot backend; may be repeated"
    )
    auth = parser.add_mutually_exclusive_group()
    auth.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the API key")
    auth.add_argument("--no-auth", action="store_true", help="let everyone in")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM; serve HTTPS with this certificate")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM; the certificate's key")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="JSON or YAML; accepted changes are written back"
    )
    parser.add_argument("--max-concurrency", type=_at_least_one, metavar="N", help="requests at once (default 100)")
    parser.add_argument(
        "--port-file", type=Path, metavar="PATH", help="write pid, port and url there when listening"
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="totals, spending and what was learned of backends (default: beside --config, if that is given)",
    )
    parser.add_argument("--access-log", metavar="FILE", help="a line for each request; - for stdout")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of both logs")
    parser.add_argument(
        "--shutdown-timeout-s",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="time to finish at SIGTERM (default 10)",
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="warning")
    parser.add_argument("--version", action="version", version=f"tuna-router {__version__}")
    options = parser.parse_args(argv)
    if (options.tls_cert is None) is not (options.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    return options


def prepare(options: argparse.Namespace, environ: Mapping[str, str]) -> Launch:
    """Flags over environment over file. Raises UsageError or SettingsError."""
    settings = state.load(options.config) if options.config is not None else Settings()
    token = environ.get("SERVERLESS_AUTH_TOKEN") or None
    serverless, spot = options.serverless, options.spot
    if not serverless and environ.get("SERVERLESS_BASE_URL"):
        serverless = [environ["SERVERLESS_BASE_URL"]]
    if not spot and environ.get("SKYSERVE_BASE_URL"):
        spot = [environ["SKYSERVE_BASE_URL"]]
    try:
        backends = [
            *_with_token(_of_kind(Kind.SERVERLESS, serverless, settings.backends), token, given=bool(serverless)),
            *_of_kind(Kind.SPOT, spot, settings.backends),
        ]
        settings = dataclasses.replace(settings, backends=named(backends))
    except SettingsError as error:
        raise UsageError(error.message, error.hint) from error
    if options.max_concurrency is not None:
        settings = dataclasses.replace(settings, max_concurrency=options.max_concurrency)
    launch = Launch(settings, options.no_auth, options.config)
    return launch if options.no_auth else _with_key(launch, options, environ)


def state_path(options: argparse.Namespace) -> Path | None:
    """Where what is learned is kept: `--state`, else beside `--config`, else nowhere."""
    if options.state is not None:
        return Path(options.state)
    config = options.config
    return None if config is None else Path(config).with_name(f"{Path(config).stem}.state.json")


def _of_kind(kind: Kind, urls: Sequence[str], known: Sequence[BackendSettings]) -> list[BackendSettings]:
    """The backends of one kind: those of the flags, else those of the file.

    A URL that the file knows keeps the headers and limits that the file gives it.
    """
    of_file = [b for b in known if b.kind is kind]
    if not urls:
        return of_file
    by_url = {b.url: b for b in of_file}
    checked = [check_url(url, f"--{kind.value}") for url in urls]
    return [by_url.get(url) or BackendSettings("", kind, url) for url in dict.fromkeys(checked)]


def _with_token(backends: list[BackendSettings], token: str | None, *, given: bool) -> list[BackendSettings]:
    """SERVERLESS_AUTH_TOKEN goes to the URLs of the flags or the environment (`given`), never to a
    backend of the file that has credentials of its own: that may be another provider."""
    if token is None:
        return backends
    bearer = {"authorization": f"Bearer {token}"}
    return [
        dataclasses.replace(b, headers={**b.headers, **bearer}) if given or "authorization" not in b.headers else b
        for b in backends
    ]


def _with_key(launch: Launch, options: argparse.Namespace, environ: Mapping[str, str]) -> Launch:
    settings = launch.settings
    key = None
    if options.api_key_env is not None:
        key = environ.get(options.api_key_env)
        if not key:
            raise UsageError(
                f"the environment variable {options.api_key_env} is empty or not set",
                f"export {options.api_key_env}=..., or start with --no-auth",
            )
    elif environ.get("API_KEY"):
        key = environ["API_KEY"]
    if key is not None and sha256_hex(key) not in {known.sha256 for known in settings.all_keys}:
        mine = sha256_hex(key)
        settings = dataclasses.replace(settings, api_key_sha256=(mine, *settings.api_key_sha256))
        return dataclasses.replace(launch, settings=settings, not_saved=(mine,))
    if not settings.all_keys:
        raise UsageError(
            "no API key is configured",
            "--api-key-env NAME names the variable that holds one; --no-auth lets everyone in",
        )
    return launch


def _port(text: str) -> int:
    if text.isdigit() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port")


def _descriptor(text: str) -> int:
    if text.isdigit() and int(text) > 2:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not the number of an open file above 2")


def _at_least_one(text: str) -> int:
    if text.isdigit() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if 0 < seconds <= 86400:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
