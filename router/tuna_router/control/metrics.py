"""`/metrics`: everything that is counted, in Prometheus' words. A registry for each scrape, nothing global.

No label is a client's to choose but `model`, and of models there are at most 200 and "other".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tuna_router import __version__
from tuna_router.books.series import Histogram
from tuna_router.core import Core
from tuna_router.settings import Kind
from tuna_router.spot import SpotState

_OUTCOMES = ("finished", "cancelled", "failed")


def exposition(core: Core) -> tuple[bytes, str]:
    """The body and the content type of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FromCore(core))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def rejected(core: Core) -> Counter[str]:
    """Refused requests by reason."""
    reasons = Counter[str]({labels[0]: int(count) for labels, count in core.counts.refused})
    for key in core.guard:
        reasons.update(key.rejected)
    return reasons


class _FromCore(Collector):
    def __init__(self, core: Core) -> None:
        self._core = core

    def describe(self) -> list[Metric]:
        """Nothing: collecting is cheap, and this registry lives for one scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        yield from _requests(self._core)
        yield from _limits(self._core)
        yield from _attempts(self._core)
        yield from _backends(self._core)
        yield from _dollars(self._core)
        yield from _keys(self._core)


def _requests(core: Core) -> Iterator[Metric]:
    meter = core.meter
    yield _gauge("info", "The router's version", ("version",), [((__version__,), 1)])
    yield _counter(
        "requests",
        "Client requests by how they ended",
        ("outcome",),
        [((outcome,), getattr(meter.requests, outcome)) for outcome in _OUTCOMES],
    )
    yield _counter("failovers", "Attempts after the first", (), [((), meter.failovers)])
    yield _counter("broken_streams", "Answers that broke off", (), [((), meter.broken_streams)])
    yield _histograms("request_seconds", "Duration of finished requests", (), [((), meter.requests.latency)])
    yield _histograms("ttft_seconds", "Time to the first byte", (), [((), meter.requests.ttft)])
    counts = core.counts
    yield _counter("retries", "Failed attempts by reason", ("backend", "reason"), counts.retries)
    yield _counter("resumes", "Streams continued on another backend", ("outcome",), counts.resumes)
    kept = sum(stream.memory_bytes for stream in core.streams)
    yield _gauge("resume_bytes", "Bytes kept to continue the streams that run", (), [((), kept)])
    yield _counter("moves", "Streams moved away from a backend that was going", ("backend",), counts.moves)
    yield _counter("preemptions", "Times a READY spot backend was lost", ("backend",), counts.preemptions)


def _limits(core: Core) -> Iterator[Metric]:
    admission = core.admission
    yield _gauge("in_flight", "Client requests being served", (), [((), admission.in_flight)])
    yield _gauge("max_concurrency", "The concurrency limit", (), [((), admission.limit)])
    yield _gauge("queue_length", "Requests waiting for a place", (), [((), admission.waiting)])
    yield _gauge("max_queue", "How many may wait", (), [((), admission.max_queue)])
    yield _histograms("queue_wait_seconds", "Waits that ended with a place", (), [((), core.counts.queue_wait)])
    reasons = rejected(core)
    rows = [((reason,), count) for reason, count in sorted(reasons.items())]
    yield _counter("rejected", "Requests refused because of a limit", ("reason",), rows)
    yield _counter("unauthorized", "Requests without a valid key", (), [((), core.meter.unauthorized)])
    if core.access_log is not None:
        dropped = core.access_log.dropped
        yield _counter("access_log_dropped", "Requests that the access log lost", (), [((), dropped)])
    yield _gauge("body_bytes", "Held of requests' bodies, to send them again", (), [((), core.bodies.held)])
    flowed = core.bodies.flowed
    yield _counter("bodies_flowed", "Bodies sent only once: the memory for them was full", (), [((), flowed)])
    yield _gauge("event_listeners", "Readers of /router/events", (), [((), len(core.events.listeners))])


def _attempts(core: Core) -> Iterator[Metric]:
    meter, now = core.meter, core.meter.clock()
    tallies = meter.backends.items()
    yield _counter(
        "backend_requests",
        "Attempts by backend and end",
        ("backend", "outcome"),
        [((name, outcome), getattr(tally, outcome)) for name, tally in tallies for outcome in _OUTCOMES],
    )
    tokens = []
    for name, tally in tallies:
        tokens += [
            ((name, "prompt"), tally.prompt_tokens),
            ((name, "completion"), tally.completion_tokens),
            ((name, "completion_estimated"), tally.completion_tokens_estimated),
        ]
    yield _counter("tokens", "Tokens by backend and type", ("backend", "type"), tokens)
    busy = [((name,), tally.busy_seconds(now)) for name, tally in tallies]
    yield _counter("backend_busy_seconds", "Seconds with at least one request running", ("backend",), busy)
    yield _counter(
        "gpu_seconds",
        "Seconds with at least one request running, added up over the backends of a kind",
        ("kind",),
        [((kind.value,), meter.gpu_seconds(kind)) for kind in Kind],
    )
    yield _counter(
        "answers",
        "Answers passed on, by backend and status",
        ("backend", "status", "class"),
        [
            ((name, str(code), f"{code // 100}xx"), count)
            for name, tally in tallies
            for code, count in tally.statuses.items()
        ],
    )
    one = ("backend",)
    latency = [((name,), tally.latency) for name, tally in tallies]
    yield _histograms("backend_request_seconds", "Duration of finished attempts", one, latency)
    ttft = [((name,), tally.ttft) for name, tally in tallies]
    yield _histograms("backend_ttft_seconds", "Time to the first byte of an attempt", one, ttft)
    between = [((name,), histogram) for name, histogram in core.counts.inter_token.items()]
    yield _histograms("inter_token_seconds", "Time between pieces of a stream", one, between)


def _backends(core: Core) -> Iterator[Metric]:
    fleet = list(core.fleet)
    running = [((b.settings.name, b.settings.kind.value), b.in_flight) for b in fleet]
    yield _gauge("backend_in_flight", "Requests at a backend", ("backend", "kind"), running)
    states = [
        ((b.settings.name, state.value), float(b.machine.state is state))
        for b in fleet
        if b.machine is not None
        for state in SpotState
    ]
    yield _gauge("spot_state", "1 for the state it is in", ("backend", "state"), states)
    ready = [((b.settings.name,), b.machine.ready_seconds) for b in fleet if b.machine is not None]
    yield _counter("spot_ready_seconds", "Time in READY", ("backend",), ready)


def _dollars(core: Core) -> Iterator[Metric]:
    core.ledger.advance()
    costs, one = core.ledger.backends.items(), ("backend",)
    for name, text, field in (
        ("cost_usd", "Dollars of ended requests: their shares of the backend's price", "requests_usd"),
        ("unpriced_seconds", "Seconds of ended requests at an unknown price", "unpriced_s"),
        ("idle_cost_usd", "Dollars while it was up and had no request", "idle_usd"),
        ("idle_seconds", "Seconds while it was up and had no request", "idle_s"),
        ("idle_unpriced_seconds", "The same at an unknown price", "idle_unpriced_s"),
    ):
        yield _counter(name, text, one, [((backend,), getattr(cost, field)) for backend, cost in costs])
    rates = [((backend,), rate) for backend, cost in costs if (rate := cost.per_hour_usd()) is not None]
    yield _gauge("usd_per_hour", "What it costs now; missing while that is unknown", one, rates)
    yield _counter("model_cost_usd", "Dollars of ended requests by model", ("model",), core.ledger.models)


def _keys(core: Core) -> Iterator[Metric]:
    keys, one = [(key.settings.name, key) for key in core.guard], ("key",)
    yield _counter("key_requests", "Admitted requests by key", one, [((n,), key.started) for n, key in keys])
    refused = [((n, reason), count) for n, key in keys for reason, count in key.rejected.items()]
    yield _counter("key_rejected", "Requests refused because of a key's limits", ("key", "reason"), refused)
    tokens = [((n, "prompt"), key.prompt_tokens) for n, key in keys]
    tokens += [((n, "completion"), key.completion_tokens) for n, key in keys]
    yield _counter("key_tokens", "Tokens by key and type", ("key", "type"), tokens)
    yield _counter("key_cost_usd", "Dollars by key", one, [((n,), key.spent.total_usd) for n, key in keys])
    unpriced = [((n,), key.spent.unpriced_s) for n, key in keys]
    yield _counter("key_unpriced_seconds", "Seconds at an unknown price by key", one, unpriced)
    yield _gauge("key_in_flight", "Running and waiting requests", one, [((n,), key.in_flight) for n, key in keys])


Rows = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> CounterMetricFamily:
    family = CounterMetricFamily(f"tuna_router_{name}", text, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tuna_router_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histograms(
    name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], Histogram]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"tuna_router_{name}", text, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, histogram.cumulative(), histogram.total)
    return family
