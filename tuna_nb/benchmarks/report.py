"""What a load test comes to: its figures, and what went on around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tuna_nb.benchmarks.aiperf import Beside
from tuna_nb.benchmarks.load.spec import Lag, LoadSpec
from tuna_nb.benchmarks.measures import Figures, Slo
from tuna_nb.benchmarks.rows import Row


@dataclass(frozen=True, slots=True)
class Mark:
    """Something happened meanwhile. at_s: from the first measured request. kind: as the router calls it."""

    at_s: float
    kind: str
    said: str


@dataclass(frozen=True, slots=True)
class RunCost:
    """What the deployment's ledger grew by while the run lasted: billed time, idle time included.

    usd None: it can't be told, and note says why.
    """

    usd: float | None
    per_1000_requests_usd: float | None = None
    per_million_tokens_usd: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One load. level: requests per second, or requests at a time, of a sweep; None: there is only this one.

    lag: how late the generator itself was. began_at: Unix seconds.
    """

    figures: Figures
    rows: tuple[Row, ...] = field(default=(), repr=False)
    level: float | None = None
    lag: Lag | None = None
    began_at: float = 0.0
    took_s: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadReport:
    """spec: what was asked, without headers. service: the deployment; None: a URL. resumes: broken streams by what
    came of them, as the router counts; None where no router was asked. folder: where it is kept. beside: of the
    same load, sent once more by another tool, its figures and ours."""

    name: str
    spec: LoadSpec
    service: str | None
    slo: Slo | None
    steps: tuple[Step, ...]
    sweep: str | None = None
    began_at: float = 0.0
    took_s: float = 0.0
    interrupted: bool = False
    cost: RunCost = RunCost(None)
    marks: tuple[Mark, ...] = ()
    resumes: Mapping[str, int] | None = None
    notes: tuple[str, ...] = ()
    folder: str | None = None
    beside: tuple[Beside, ...] = ()

    @property
    def figures(self) -> Figures:
        """Of the only step, or of a sweep's last."""
        return self.steps[-1].figures

    @property
    def step(self) -> Step:
        return self.steps[-1]

    @property
    def passed(self) -> bool:
        """Whether any request came whole."""
        return any(step.figures.whole for step in self.steps)

    @property
    def target(self) -> str:
        return self.service or self.spec.target.base_url

    @property
    def resumed(self) -> int | None:
        """Streams that broke and were continued; None where nobody counts."""
        return None if self.resumes is None else sum(self.resumes.get(way, 0) for way in CONTINUED)


CONTINUED = ("exact", "ids", "text", "again", "closed")
"""What may come of a stream that broke, as the router counts it; else its client was told an error."""


def differences(a: LoadReport, b: LoadReport) -> tuple[str, ...]:
    """Why two runs may not be comparable, in words; empty where nothing is known that speaks against it."""
    one, two = a.spec, b.spec
    found = []
    for what, x, y in (
        ("other models", one.target.models, two.target.models),
        ("another API", one.target.api, two.target.api),
        ("one streamed, the other did not", one.target.stream, two.target.stream),
        ("other fields in the requests", one.target.extra, two.target.extra),
        ("other arrivals", one.arrivals, two.arrivals),
        ("other prompts", one.prompts, two.prompts),
        ("another length", _length(one), _length(two)),
    ):
        if x != y:
            found.append(f"{what}: {_words(x)} and {_words(y)}")
    if one.seed != two.seed:
        found.append(f"another seed ({one.seed} and {two.seed}): requests came at other times, with other prompts")
    for name, run in (("A", a), ("B", b)):
        if run.interrupted:
            found.append(f"{name} was interrupted")
        if len(run.steps) > 1:
            found.append(f"{name} is a sweep: its last step is compared")
        share = run.figures.error_share
        if share is not None and share > 0.01:
            found.append(f"{share:.0%} of {name} failed: its latencies are of the rest")
    return tuple(found)


def _length(spec: LoadSpec) -> str:
    if spec.requests is not None:
        return f"{spec.requests} requests"
    return "the whole trace" if spec.duration_s is None else f"{spec.duration_s:g} s"


def _words(value: object) -> str:
    """Of a dataclass what is not as usual."""
    if not hasattr(value, "__dataclass_fields__"):
        return (
            ", ".join(value) if isinstance(value, tuple) and all(isinstance(v, str) for v in value) else str(value)
        )
    usual = type(value)()
    kept = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return ", ".join(f"{k} {v}" for k, v in kept.items() if k == "kind" or v != getattr(usual, k))
