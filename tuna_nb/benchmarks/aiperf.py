"""NVIDIA's aiperf as another engine: the same requests at the same times, measured by another tool.

It is given Tuna's own schedule and bodies as a trace to replay, so both tools send the same requests at the same
times; what may differ is how they measure. It lives in an environment of its own, since its pins clash with
everybody's, and is begun by `aiperf_launch`, so that no key is in a process list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tuna_nb.benchmarks.load.spec import LoadSpec
from tuna_nb.benchmarks.rows import Row
from tuna_nb.errors import RequestError, TunaError, UsageError

VERSION: Final = "0.13.0"
INSTALLS: Final = f"aiperf {VERSION} with its 138 packages, 840 MB on disk, from your Python package index"
INSTALL_S: Final = 1800.0
START_S: Final = 180.0
"""It imports, makes its processes and writes its report: half a minute on a machine at rest."""
MOST_REQUESTS: Final = 100_000
TERM_S: Final = 5.0
LEAST_FOR_P99: Final = 300
_STAMP: Final = "installed"
_LAST_LINES: Final = 12
_STEPS: Final = ("Resolved", "Downloading", "Prepared", "Installed", "Collecting", "Installing")
"""Of uv's and pip's words those that tell how far it is."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measure:
    """One of aiperf's measures. definition: what it counts. p99: None of fewer than 300 requests."""

    unit: str
    definition: str
    n: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float | None


@dataclass(frozen=True, slots=True)
class AiperfFigures:
    """One run, as aiperf tells it. took_s: from its first request to its last byte. late_p99_ms: how late it was
    itself, None where it does not tell."""

    version: str
    requests: int
    errors: int
    took_s: float
    requests_per_s: float
    output_tokens_per_s: float | None
    ttft: Measure | None
    itl: Measure | None
    chunk_gap: Measure | None
    latency: Measure | None
    late_p99_ms: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Beside:
    """One figure as both tools tell it, and how each of them defines it."""

    what: str
    unit: str
    aiperf: float | None
    tuna: float | None
    aiperf_counts: str
    tuna_counts: str

    @property
    def said(self) -> str:
        """Both, and what each counts, in a line."""
        a, b = ("nothing" if v is None else f"{v:,.4g} {self.unit}" for v in (self.aiperf, self.tuna))
        by = "" if self.apart is None else f" ({self.apart:+.1%})"
        same = self.tuna_counts == "the same"
        counted = self.aiperf_counts if same else f"aiperf: {self.aiperf_counts}; Tuna: {self.tuna_counts}"
        return f"{self.what}: aiperf says {a}, Tuna says {b}{by}; {counted}"

    @property
    def apart(self) -> float | None:
        """How much Tuna's is above aiperf's, as a share of aiperf's."""
        if not self.aiperf or self.tuna is None:
            return None
        return self.tuna / self.aiperf - 1


_DEFINED: Final = {
    "time_to_first_token": "from sending to the first event with text",
    "inter_token_latency": "(latency - TTFT) / (tokens - 1), a mean within each request",
    "inter_chunk_latency": "from one event with text to the next, each by itself",
    "request_latency": "from sending to the last event",
}


def is_installed(folder: Path) -> bool:
    """folder: where Tuna keeps aiperf."""
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text().strip() == VERSION


def require_consent(folder: Path, yes: bool) -> None:
    """Raises UsageError where it would have to be installed and nobody has said yes to that."""
    if not is_installed(folder) and not yes:
        raise UsageError(f"--engine aiperf installs {INSTALLS} into {folder}", "add --yes to let it")


def check(spec: LoadSpec) -> tuple[str, ...]:
    """What its reader should know. Raises RequestError for what aiperf can't be asked."""
    from tuna_nb.benchmarks.load import run

    run.check(spec)
    if not spec.target.base_url.rstrip("/").endswith("/v1"):
        raise RequestError("aiperf only asks endpoints at .../v1", "--engine native asks any")
    notes = []
    if spec.warmup_requests:
        notes.append("aiperf sends no warm-up before a schedule that it replays")
    if spec.arrivals.kind == "closed" and spec.requests is None:
        notes.append("aiperf asks the same thousand prompts again where they are used up")
    return tuple(notes)


async def install(folder: Path, say: Say) -> None:
    """Make its environment in `folder`, with uv where that is here. Raises TunaError."""
    if is_installed(folder):
        return
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise TunaError(f"aiperf {VERSION} wants Python 3.11 to 3.13, this is {sys.version.split()[0]}")
    venv = folder / "venv"
    await asyncio.to_thread(shutil.rmtree, venv, True)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = Path(sys.executable).with_name("uv")
    uv = shutil.which("uv") or (str(beside) if beside.exists() else None)
    wanted = f"aiperf=={VERSION}"
    python = str(venv / "bin" / "python")
    if uv is not None:
        steps = [
            [uv, "venv", "--quiet", "-p", sys.executable, str(venv)],
            [uv, "pip", "install", "-p", python, wanted],
        ]
    else:
        steps = [
            [sys.executable, "-m", "venv", str(venv)],
            [python, "-m", "pip", "install", "--disable-pip-version-check", wanted],
        ]

    def progress(line: str) -> None:
        if line.startswith(_STEPS):
            say(line[:100])

    begun = time.monotonic()
    say(f"installing {INSTALLS} into {folder}")
    for step in steps:
        code, last = await _child(step, dict(os.environ), b"", INSTALL_S, say=progress, name="installing aiperf")
        if code != 0:
            await asyncio.to_thread(shutil.rmtree, venv, True)
            raise TunaError(f"aiperf could not be installed: {last}", "is there a way to the Python package index?")
    (folder / _STAMP).write_text(VERSION)
    say(f"aiperf {VERSION} is installed, in {time.monotonic() - begun:.0f} s")


async def run_aiperf(spec: LoadSpec, folder: Path, report: Say) -> AiperfFigures:
    """Have aiperf send `spec`. folder: where Tuna keeps it, `install`ed here where it is not yet.

    A cancel ends all its processes. Raises RequestError for what it can't be asked, TunaError where it fails.
    """
    notes = check(spec)
    await install(folder, report)
    # In the system's own place: aiperf's sockets are there, whose paths may have a hundred characters.
    place = Path(tempfile.mkdtemp(prefix="tuna-"))
    try:
        closed = spec.arrivals.kind == "closed"
        count, last_s = await asyncio.to_thread(_write_requests, spec, place / "requests.jsonl")
        if count == 0:
            raise RequestError("the schedule has no request", "a longer --duration, or more --requests")
        argv = _argv(spec, folder, place, count if not closed or spec.requests is not None else None)
        told = {"argv": argv, "headers": dict(spec.target.headers), "tokenizer": str(folder / "tokenizer")}
        limit_s = START_S + max(last_s, spec.duration_s or 0.0) + _tail_s(spec)
        secrets = _secrets(spec.target.headers)
        report(f"aiperf sends {count} requests" if not closed else "aiperf sends requests")
        code, last = await _child(
            # -P: else our own folder comes first there, where another `aiperf` is.
            [str(folder / "venv" / "bin" / "python"), "-P", str(Path(__file__).with_name("aiperf_launch.py"))],
            _environment(place),
            json.dumps(told).encode() + b"\n",
            limit_s,
            say=lambda _line: None,
            secrets=secrets,
            name="aiperf",
            cwd=place,
        )
        result = place / "out" / "profile_export_aiperf.json"
        if not result.exists():
            raise TunaError(
                f"aiperf ended with {code} and no figures: {last}", "--engine native needs no other tool"
            )
        return read(_clean(result.read_text(), secrets), notes)
    finally:
        # Its own files may hold headers that it did not know for keys.
        await asyncio.to_thread(shutil.rmtree, place, True)


def read(text: str, notes: Sequence[str] = ()) -> AiperfFigures:
    """Its `profile_export_aiperf.json`. Raises TunaError where that is not what 0.13 writes."""
    try:
        told = json.loads(text)
        latency = _measure(told, "request_latency")
        errors = round(_one(told, "error_request_count") or 0)
        return AiperfFigures(
            str(told["aiperf_version"]),
            round(_one(told, "request_count") or 0),
            errors,
            _one(told, "benchmark_duration") or 0.0,
            _one(told, "request_throughput") or 0.0,
            _one(told, "output_token_throughput"),
            _measure(told, "time_to_first_token"),
            _measure(told, "inter_token_latency"),
            _measure(told, "inter_chunk_latency"),
            latency,
            _late(told),
            tuple(notes),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise TunaError(f"aiperf's report can't be read: {type(e).__name__}: {e}") from e


def beside(figures: AiperfFigures, rows: Iterable[Row]) -> tuple[Beside, ...]:
    """aiperf's figures beside ours, medians, each by aiperf's own definition as far as rows allow."""
    whole = [r for r in rows if not r.warmup and r.error is None and r.sent_s is not None]
    sent = [(r, r.sent_s) for r in whole if r.sent_s is not None]
    span = max((r.ended_s for r, _ in sent), default=0.0) - min((at for _, at in sent), default=0.0)
    tokens = [r.output_tokens for r in whole]
    known = [t for t in tokens if t is not None]
    total = sum(known) / span if span > 0 and len(known) == len(tokens) and known else None
    ttft = [1000 * (r.first_token_s - at) for r, at in sent if r.first_token_s is not None]
    from_schedule = [1000 * r.ttft_s for r in whole if r.ttft_s is not None]
    defined = _DEFINED["time_to_first_token"]
    return (
        Beside("median TTFT", "ms", _p50(figures.ttft), _median(ttft), defined, "the same"),
        Beside(
            "median TTFT", "ms", _p50(figures.ttft), _median(from_schedule), defined,
            "from the scheduled time to the first event with text",
        ),
        Beside(
            "median time per output token", "ms", _p50(figures.itl),
            _median([1000 * r.tpot_s for r in whole if r.tpot_s is not None]),
            _DEFINED["inter_token_latency"], "the same",
        ),
        Beside(
            "median gap between chunks", "ms", _p50(figures.chunk_gap),
            _median([gap for r in whole for gap in r.gaps_ms]),
            _DEFINED["inter_chunk_latency"], "the same",
        ),
        Beside(
            "median latency", "ms", _p50(figures.latency), _median([1000 * (r.ended_s - at) for r, at in sent]),
            _DEFINED["request_latency"], "from sending to the last byte",
        ),
        Beside(
            "output tokens", "tokens/s", figures.output_tokens_per_s, total,
            "all, over the time from the first sending to the last byte", "the same",
        ),
        Beside(
            "requests", "requests/s", figures.requests_per_s, len(whole) / span if span > 0 else None,
            "answered whole, over that time", "the same",
        ),
    )  # fmt: skip


def _write_requests(spec: LoadSpec, path: Path) -> tuple[int, float]:
    """The same bodies at the same times as our own generator's; (how many, when the last leaves in seconds)."""
    from tuna_nb.benchmarks.load.prompts import asks

    count, last = 0, 0.0
    with path.open("x") as out:
        for at, ask in zip(_times(spec), asks(spec), strict=False):
            if count == MOST_REQUESTS:
                raise RequestError(
                    f"more than {MOST_REQUESTS} requests", "a shorter --duration; --engine native has no such limit"
                )
            row: dict[str, Any] = {"payload": json.loads(ask.body)}
            if at is not None:
                row["timestamp"], last = round(1000 * at, 3), at
            out.write(json.dumps(row if at is not None else row["payload"]) + "\n")
            count += 1
    return count, last


def _times(spec: LoadSpec) -> Iterator[float | None]:
    from tuna_nb.benchmarks.load.arrivals import schedule

    if spec.arrivals.kind == "closed":
        return iter([None] * min(spec.requests or 1000, MOST_REQUESTS))
    return islice(schedule(spec), spec.requests)


def _argv(spec: LoadSpec, folder: Path, place: Path, count: int | None) -> list[str]:
    target = spec.target
    words = [
        "profile", "-m", target.models[0], "--url", target.base_url.rstrip("/").removesuffix("/v1"),
        "--endpoint-type", "chat" if target.api == "chat" else "completions",
        "--tokenizer", str(folder / "tokenizer"), "--use-server-token-count",
        "--input-file", str(place / "requests.jsonl"), "--output-artifact-dir", str(place / "out"),
        "--request-timeout-seconds", f"{spec.request_timeout_s:g}", "--random-seed", str(spec.seed % 2**31),
        "--no-gpu-telemetry", "--no-server-metrics", "--ui", "none",
    ]  # fmt: skip
    if target.stream:
        words.append("--streaming")
    if spec.arrivals.kind != "closed":
        return [
            *words, "--custom-dataset-type", "mooncake-trace", "--fixed-schedule", "--fixed-schedule-auto-offset",
        ]  # fmt: skip
    words += ["--custom-dataset-type", "raw-payload", "--concurrency", str(spec.arrivals.concurrency)]
    if count is not None:
        words += ["--request-count", str(count)]
    if spec.duration_s is not None:
        words += ["--benchmark-duration", f"{spec.duration_s:g}", "--benchmark-grace-period", f"{spec.grace_s:g}"]
    return words


def _tail_s(spec: LoadSpec) -> float:
    """How long the last requests may go on. A closed loop of a count alone has no end but its requests'."""
    if spec.arrivals.kind == "closed" and spec.duration_s is None:
        rounds = -(-(spec.requests or 1) // spec.arrivals.concurrency)
        return rounds * spec.request_timeout_s
    return min(spec.grace_s, spec.request_timeout_s)


def _environment(place: Path) -> dict[str, str]:
    """Nothing of ours: no key, and none of the settings with which it can't load a folder (HF_HUB_OFFLINE)."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SYSTEMROOT")}
    return kept | {"HOME": str(place), "TMPDIR": str(place), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}


async def _child(
    words: Sequence[str],
    environment: Mapping[str, str],
    told: bytes,
    limit_s: float,
    *,
    say: Say,
    name: str,
    secrets: Sequence[str] = (),
    cwd: Path | None = None,
) -> tuple[int, str]:
    """(Exit code, its last words). Its whole process group ends with it, and with a cancel or the limit.

    Raises TunaError where it has not ended in `limit_s`.
    """
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(limit_s):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(told)
                await process.stdin.drain()
            process.stdin.close()
            rest = b""
            while piece := await process.stdout.read(65536):
                *lines, rest = (rest + piece).split(b"\n")
                for raw in lines:
                    line = _clean(raw.decode(errors="replace"), secrets).strip()
                    if any(c.isalnum() for c in line):
                        last.append(line)
                        say(line)
            code = await process.wait()
    except TimeoutError:
        raise TunaError(f"{name} has not ended in {limit_s:.0f} s, and was stopped") from None
    finally:
        await _end_group(process)
    return code, " / ".join(last)[-600:]


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """What it started, too, also where it has ended itself; a cancel does not stop this."""
    task = asyncio.create_task(_end(process))
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    task.result()


async def _end(process: asyncio.subprocess.Process) -> None:
    for word, wait_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, TERM_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, word)
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if process.returncode is not None and not _group_is_there(process.pid):
                return
            await asyncio.sleep(0.05)


def _group_is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _secrets(headers: Mapping[str, str]) -> tuple[str, ...]:
    words = {word for value in headers.values() for word in (value, value.rpartition(" ")[2]) if len(word) > 3}
    return tuple(sorted(words, key=len, reverse=True))


def _clean(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _one(told: Mapping[str, Any], name: str) -> float | None:
    return float(told[name]["avg"]) if name in told else None


def _late(told: Mapping[str, Any]) -> float | None:
    """From the time that a request was due to its leaving."""
    if "replay_sched_lag_p99" in told:
        return float(told["replay_sched_lag_p99"]["avg"])
    lag = told.get("credit_to_start_latency")
    return float(lag["p99"]) if lag else None


def _measure(told: Mapping[str, Any], name: str) -> Measure | None:
    one = told.get(name)
    if one is None or "p50" not in one:
        return None
    n = int(one.get("count", 0))
    return Measure(
        str(one["unit"]),
        _DEFINED[name],
        n,
        float(one["avg"]),
        float(one["p50"]),
        float(one["p90"]),
        float(one["p95"]),
        float(one["p99"]) if n >= LEAST_FOR_P99 else None,
    )


def _p50(measure: Measure | None) -> float | None:
    return None if measure is None else measure.p50


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
