"""How a load test's figures are written."""

from __future__ import annotations

from tuna_nb.benchmarks.load.spec import Arrivals, LoadSpec
from tuna_nb.benchmarks.measures import Slo
from tuna_nb.benchmarks.order import LEAST, Distribution, Quantile


def ms(value: float | None) -> str:
    """`1,234 ms`, `52.3 ms`, `0.042 ms`: three figures or more."""
    return "-" if value is None else f"{digits(value)} ms"


def digits(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def rate(value: float | None) -> str:
    return "-" if value is None else digits(value)


def quantile(found: Quantile, count: int) -> str:
    """With its interval: `52.3 [51.8–52.9]`."""
    if found.value is None or found.low is None or found.high is None:
        return "n too small" if count < LEAST[found.level] or count else "-"
    return f"{digits(found.value)} [{digits(found.low)}–{digits(found.high)}]"


def row(name: str, found: Distribution) -> tuple[str, ...]:
    mean = "-" if found.mean is None else digits(found.mean)
    return (name, f"{found.count:,}", mean, *(quantile(q, found.count) for q in found.quantiles))


def load(spec: LoadSpec) -> str:
    """What was sent, in words."""
    a = spec.arrivals
    words = {
        "constant": f"{a.rate:g} a second, evenly",
        "poisson": f"{a.rate:g} a second, Poisson",
        "gamma": f"{a.rate:g} a second, gamma with CV {a.cv:g}",
        "day": f"{a.low_rate:g} to {a.rate:g} a second and back in {span(a.period_s)}",
        "spike": f"{a.low_rate:g} a second, {a.rate:g} from {span(a.spike_at_s)} for {span(a.spike_s)}",
        "gaps": f"{a.rate:g} a second for {span(a.on_s)}, then nothing for {span(a.off_s)}",
        "trace": f"the trace {_last(a)}" + (f", {a.speed:g} times as fast" if a.speed != 1 else ""),
        "closed": f"{a.concurrency} at a time",
    }[a.kind]
    length = (
        f"{spec.requests:,} requests"
        if spec.requests
        else span(spec.duration_s)
        if spec.duration_s
        else "all of it"
    )
    return f"{words}; {length}; seed {spec.seed}"


def prompts(spec: LoadSpec) -> str:
    p = spec.prompts
    if p.kind != "synthetic":
        return f"{p.kind} {(p.path or '').rsplit('/', 1)[-1]}"
    lengths = [
        f"{x.mean:g}{f' (CV {x.cv:g})' if x.cv else ''} {way}"
        for x, way in ((p.input_tokens, "in"), (p.output_tokens, "out"))
    ]
    shared = f", {p.shared_prefix_tokens} shared in {p.prefixes} ways" if p.shared_prefix_tokens else ""
    return f"synthetic, {', '.join(lengths)}{shared}"


def slo(limits: Slo) -> str:
    pairs = (("TTFT", limits.ttft_ms), ("TPOT", limits.tpot_ms), ("latency", limits.latency_ms))
    return ", ".join(f"{name} ≤ {digits(limit)} ms" for name, limit in pairs if limit is not None)


def span(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _last(a: Arrivals) -> str:
    return (a.trace or "").rsplit("/", 1)[-1]
