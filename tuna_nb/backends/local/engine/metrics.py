"""vLLM's metrics, in Prometheus' text format: its names, labels, buckets and `_created` lines."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Final

_REASONS: Final = ("stop", "length", "abort", "error", "repetition")
_ADMISSION_REASONS: Final = ("max_num_queued_reqs", "max_num_queued_tokens")
_WAITING_REASONS: Final = ("capacity", "deferred")

_TTFT: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_ITL: Final = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_LATENCY: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_TOKENS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)
_ITERATION: Final = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)

_HISTOGRAMS: Final[dict[str, tuple[str, tuple[float, ...]]]] = {
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _TTFT),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _ITL),
    "request_time_per_output_token_seconds": ("Histogram of time_per_output_token_seconds per request.", _ITL),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _LATENCY),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _LATENCY),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _LATENCY),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _LATENCY),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _LATENCY),
    "request_prompt_tokens": ("Number of prefill tokens processed.", _TOKENS),
    "request_generation_tokens": ("Number of generation tokens processed.", _TOKENS),
    "request_params_max_tokens": ("Histogram of the max_tokens request parameter.", _TOKENS),
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _ITERATION),
}
_COUNTERS: Final[dict[str, str]] = {
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prompt_tokens": "Number of prefill tokens processed.",
    "prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "generation_tokens": "Number of generation tokens processed.",
}


class Histogram:
    """Counts of observations at or below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` over."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def lines(self, name: str, labels: str, created: float) -> list[str]:
        """The series of this histogram."""
        rows = []
        running = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            running += count
            rows.append(f'{name}_bucket{{{labels},le="{"+Inf" if bound is None else bound}"}} {float(running)}')
        rows.append(f"{name}_count{{{labels}}} {float(running)}")
        rows.append(f"{name}_sum{{{labels}}} {self.total}")
        return rows


class Metrics:
    """The engine's counters; gauges are handed in when they are read."""

    def __init__(self, model_name: str) -> None:
        quoted = model_name.replace("\\", r"\\").replace('"', r"\"")
        self._labels = f'engine="0",model_name="{quoted}"'
        self._model = f'model_name="{quoted}"'
        self._created = time.time()
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self.finished = dict.fromkeys(_REASONS, 0)
        self.rejected = dict.fromkeys(_ADMISSION_REASONS, 0)
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """Count a value in the histogram `name` (without the `vllm:`)."""
        self.histograms[name].observe(value, times)

    def render(self, *, running: int, waiting: int, kv_cache_usage: float) -> str:
        """The text of /metrics."""
        rows: list[str] = []

        def gauge(name: str, text: str, series: list[tuple[str, float]]) -> None:
            rows.append(f"# HELP vllm:{name} {text}")
            rows.append(f"# TYPE vllm:{name} gauge")
            rows.extend(f"vllm:{name}{{{labels}}} {float(value)}" for labels, value in series)

        def counter(name: str, text: str, series: list[tuple[str, int]]) -> None:
            rows.append(f"# HELP vllm:{name}_total {text}")
            rows.append(f"# TYPE vllm:{name}_total counter")
            rows.extend(f"vllm:{name}_total{{{labels}}} {float(value)}" for labels, value in series)
            gauge(f"{name}_created", text, [(labels, self._created) for labels, _ in series])

        own = self._labels
        gauge("num_requests_running", "Number of requests in model execution batches.", [(own, running)])
        gauge("num_requests_waiting", "Number of requests waiting to be processed.", [(own, waiting)])
        gauge(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            [(f'{own},reason="{r}"', waiting if r == "capacity" else 0) for r in _WAITING_REASONS],
        )
        gauge("engine_sleep_state", "Engine sleep state.", [(f'{own},sleep_state="awake"', 1)])
        gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [(own, kv_cache_usage)])
        gauge("cache_config_info", "Information of the LLMEngine CacheConfig", [('block_size="128",engine="0"', 1)])
        for name, text in _COUNTERS.items():
            counter(name, text, [(own, self.counters[name])])
        counter(
            "request_success",
            "Count of successfully processed requests.",
            [(f'engine="0",finished_reason="{r}",{self._model}', n) for r, n in self.finished.items()],
        )
        counter(
            "admission_rejections",
            "Requests rejected at admission.",
            [(f'{self._model},reason="{r}"', n) for r, n in self.rejected.items()],
        )
        for name, (text, _) in _HISTOGRAMS.items():
            rows.append(f"# HELP vllm:{name} {text}")
            rows.append(f"# TYPE vllm:{name} histogram")
            rows.extend(self.histograms[name].lines(f"vllm:{name}", own, self._created))
            gauge(f"{name}_created", text, [(own, self._created)])
        return "\n".join(rows) + "\n"
