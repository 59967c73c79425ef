"""`/metrics`: the meter's counters in Prometheus' words. A registry for each scrape, nothing global."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tuna_router import __version__
from tuna_router.core import Core
from tuna_router.meter import LATENCY_BUCKETS_S, Durations
from tuna_router.spot import SpotState


def exposition(core: Core) -> tuple[bytes, str]:
    """The body and the content type of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FromMeter(core))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _FromMeter(Collector):
    def __init__(self, core: Core) -> None:
        self._core = core

    def describe(self) -> list[Metric]:
        """Nothing: collecting is cheap, and this registry lives for one scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric, read off the meter."""
        core, meter = self._core, self._core.meter
        now = meter.clock()
        info = GaugeMetricFamily("tuna_router_info", "The router's version", labels=["version"])
        info.add_metric([__version__], 1)
        yield info

        requests = CounterMetricFamily(
            "tuna_router_requests", "Client requests by how they ended", labels=["outcome"]
        )
        for outcome in ("finished", "cancelled", "failed"):
            requests.add_metric([outcome], getattr(meter.requests, outcome))
        yield requests
        yield GaugeMetricFamily("tuna_router_in_flight", "Client requests being served", core.admission.in_flight)
        yield GaugeMetricFamily("tuna_router_max_concurrency", "The concurrency limit", core.admission.limit)
        yield CounterMetricFamily("tuna_router_rejected", "Requests refused at the limit", meter.rejected)
        yield CounterMetricFamily("tuna_router_unauthorized", "Requests without a valid key", meter.unauthorized)
        yield CounterMetricFamily("tuna_router_failovers", "Attempts after the first", meter.failovers)
        yield CounterMetricFamily("tuna_router_broken_streams", "Answers that broke off", meter.broken_streams)
        yield _histogram(
            "tuna_router_request_seconds", "Duration of finished requests", [], [([], meter.requests.latency)]
        )
        yield _histogram("tuna_router_ttft_seconds", "Time to the first byte", [], [([], meter.requests.ttft)])

        attempts = CounterMetricFamily(
            "tuna_router_backend_requests", "Attempts by backend and end", labels=["backend", "outcome"]
        )
        tokens = CounterMetricFamily("tuna_router_tokens", "Tokens by backend and type", labels=["backend", "type"])
        busy = CounterMetricFamily(
            "tuna_router_backend_busy_seconds", "Seconds with at least one request running", labels=["backend"]
        )
        for name, tally in meter.backends.items():
            for outcome in ("finished", "cancelled", "failed"):
                attempts.add_metric([name, outcome], getattr(tally, outcome))
            tokens.add_metric([name, "prompt"], tally.prompt_tokens)
            tokens.add_metric([name, "completion"], tally.completion_tokens)
            tokens.add_metric([name, "completion_estimated"], tally.completion_tokens_estimated)
            busy.add_metric([name], tally.busy_seconds(now))
        yield attempts
        yield tokens
        yield busy

        statuses = CounterMetricFamily(
            "tuna_router_answers", "Answers passed on, by backend and status", labels=["backend", "status"]
        )
        for name, tally in meter.backends.items():
            for status, count in tally.statuses.items():
                statuses.add_metric([name, str(status)], count)
        yield statuses

        running = GaugeMetricFamily(
            "tuna_router_backend_in_flight", "Requests at a backend", labels=["backend", "kind"]
        )
        state = GaugeMetricFamily("tuna_router_spot_state", "1 for the state it is in", labels=["backend", "state"])
        ready = CounterMetricFamily("tuna_router_spot_ready_seconds", "Time in READY", labels=["backend"])
        for backend in core.fleet:
            name = backend.settings.name
            running.add_metric([name, backend.settings.kind.value], backend.in_flight)
            if backend.machine is not None:
                for each in SpotState:
                    state.add_metric([name, each.value], float(backend.machine.state is each))
                ready.add_metric([name], backend.machine.ready_seconds)
        yield running
        yield state
        yield ready


def _histogram(
    name: str, text: str, labels: list[str], rows: list[tuple[list[str], Durations]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, durations in rows:
        total, buckets = 0, []
        for bound, count in zip([*map(str, LATENCY_BUCKETS_S), "+Inf"], durations.buckets, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(values, buckets, durations.sum_s)
    return family
