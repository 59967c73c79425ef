"""`/metrics` is what Prometheus expects, complete, and bounded whatever clients make up."""

from __future__ import annotations

import re

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tuna_router.app import Router
from tuna_router.auth import sha256_hex
from tuna_router.books.series import Histogram, Labelled
from tuna_router.control.metrics import exposition
from tuna_router.settings import parse_settings

from ..conftest import KEY, StartBackend, StartRouter

LINE = re.compile(r'[a-z_:][a-z0-9_:]*(\{([a-z_]+="(\\.|[^"\\\n])*",?)*\})? [-+0-9.eInfNa]+')
NOT_BASE_UNITS = re.compile(r"_(ms|milliseconds|minutes|hours|kb|mb)(_|$)")


def lint(text: str) -> list[str]:
    """What `promtool check metrics` would say, in its words where it has some."""
    found: list[str] = []
    types: dict[str, str] = {}
    helped: set[str] = set()
    series: set[str] = set()
    current = ""
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            if word == "HELP":
                if name in helped:
                    found.append(f"{name}: a second HELP")
                helped.add(name)
                if not rest.strip():
                    found.append(f"{name}: no help text")
            elif word == "TYPE":
                if name in types:
                    found.append(f"{name}: a second TYPE")
                types[name] = rest
                current = name
            continue
        if not LINE.fullmatch(line):
            found.append(f"not a sample: {line!r}")
        name, key = re.split(r"[{ ]", line)[0], line.rpartition(" ")[0]
        if key in series:
            found.append(f"{key}: twice")
        series.add(key)
        kind = types.get(current, "")
        suffixes = {"histogram": ("_bucket", "_sum", "_count", "_created")}.get(kind, ("",))
        if name not in [current + suffix for suffix in suffixes]:
            found.append(f"{name}: not in the group of its TYPE {current}")
        if kind == "counter" and not name.endswith("_total"):
            found.append(f"{name}: counters should end in _total")
        if kind != "counter" and name.endswith("_total"):
            found.append(f"{name}: non-counters should not end in _total")
        if NOT_BASE_UNITS.search(name):
            found.append(f"{name}: use base units")
        if current not in helped:
            found.append(f"{name}: no HELP")
    return found


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: dict[str, Metric], name: str, **labels: str) -> float | None:
    return next((s.value for s in found[name].samples if labels.items() <= s.labels.items()), None)


def whole(router: Router) -> str:
    """A scrape of a router that was told a little of everything."""
    core, now = router.core, router.core.meter.clock()
    core.counts.refused.add(("concurrency_limit",))
    core.counts.retries.add(("spot", "connection refused"))
    core.counts.resumes.add(("exact",))
    core.counts.moves.add(("spot",))
    core.counts.preemptions.add(("spot",))
    core.counts.waited(0.2)
    core.counts.itl("spot").add(0.02)
    share = core.ledger.begin("spot", now)
    key = core.guard.find(KEY.encode())
    assert key is not None
    key.reject("requests_per_minute")
    key.enter()
    key.used(3, 4, now)
    core.ledger.close(share, now + 2.0, key, 'a "model"\n\\')
    body, kind = exposition(core)
    assert kind.startswith("text/plain")
    return body.decode()


def router() -> Router:
    return Router(
        parse_settings(
            {
                "keys": [{"name": "alice", "sha256": sha256_hex(KEY)}],
                "backends": [
                    {"name": "spot", "kind": "spot", "url": "http://127.0.0.1:9", "price_per_hour_usd": 3600},
                    {"name": "unpriced", "kind": "serverless", "url": "http://127.0.0.1:9"},
                ],
            }
        )
    )


async def test_it_is_what_prometheus_expects_and_nothing_is_missing() -> None:
    text = whole(router())
    assert lint(text) == []
    found = families(text)
    assert found["tuna_router_inter_token_seconds"].type == "histogram"
    assert value(found, "tuna_router_rejected", reason="concurrency_limit") == 1
    assert value(found, "tuna_router_rejected", reason="requests_per_minute") == 1
    assert value(found, "tuna_router_retries", backend="spot", reason="connection refused") == 1
    assert value(found, "tuna_router_resumes", outcome="exact") == 1
    assert value(found, "tuna_router_moves", backend="spot") == 1
    assert value(found, "tuna_router_preemptions", backend="spot") == 1
    assert value(found, "tuna_router_cost_usd", backend="spot") == 2.0
    assert value(found, "tuna_router_key_cost_usd", key="alice") == 2.0
    assert value(found, "tuna_router_key_tokens", key="alice", type="completion") == 4
    assert value(found, "tuna_router_model_cost_usd", model='a "model"\n\\') == 2.0
    assert value(found, "tuna_router_queue_length") == 0
    assert value(found, "tuna_router_usd_per_hour", backend="spot") == 0.0
    assert {s.labels["state"] for s in found["tuna_router_spot_state"].samples} == {
        "COLD",
        "WARMING",
        "READY",
        "DRAINING",
    }
    for name in ("gpu_seconds", "tokens", "idle_cost_usd", "unpriced_seconds", "spot_ready_seconds", "answers"):
        assert f"tuna_router_{name}" in found
    assert sha256_hex(KEY) not in text
    assert KEY not in text


def test_the_lint_finds_what_it_is_for() -> None:
    bad = "# HELP a_ms x\n# TYPE a_ms counter\na_ms 1\na_ms 1\n# TYPE b gauge\nb{x=} 1\n"
    assert len(lint(bad)) >= 6


async def test_an_unknown_price_is_missing_and_not_nothing() -> None:
    one = router()
    core, now = one.core, one.core.meter.clock()
    running = core.ledger.begin("unpriced", now)
    found = families(exposition(core)[0].decode())
    assert value(found, "tuna_router_usd_per_hour", backend="unpriced") is None
    core.ledger.close(running, now + 3.0, None)
    found = families(exposition(core)[0].decode())
    assert value(found, "tuna_router_unpriced_seconds", backend="unpriced") == 3.0


async def test_answers_and_latencies_are_by_backend(start_backend: StartBackend, start_router: StartRouter) -> None:
    running = await start_router(await start_backend(), await start_backend())
    for _ in range(3):
        assert (await running.complete(stream=True)).status_code == 200
    text = (await running.client.get("/metrics")).text
    assert lint(text) == []
    found = families(text)
    labels = {"backend": "spot", "status": "200", "class": "2xx"}
    assert value(found, "tuna_router_answers", **labels) == 3
    for name in ("backend_ttft_seconds", "backend_request_seconds"):
        counts = [
            s.value
            for s in found[f"tuna_router_{name}"].samples
            if s.name.endswith("_count") and s.labels["backend"] == "spot"
        ]
        assert counts == [3]


def test_labels_that_clients_make_up_have_an_end() -> None:
    counter = Labelled(most=3)
    for number in range(10):
        counter.add((f"m{number}", "x"))
        counter.add(("m0", "x"))
    assert dict(counter) == {("m0", "x"): 11, ("m1", "x"): 1, ("m2", "x"): 1, ("other", "other"): 7}


def test_a_histogram_is_cumulative_and_its_quantiles_lie_in_their_bucket() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for seconds in (0.5, 1.0, 1.5, 3.0, 9.0):
        histogram.add(seconds)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 3.0), ("4.0", 4.0), ("+Inf", 5.0)]
    assert (histogram.count, histogram.total) == (5, 15.0)
    assert histogram.quantile(0.5) == 1.5
    assert histogram.quantile(0.99) == 4.0
    before = list(histogram.counts)
    assert histogram.quantile(0.5, before) is None
    histogram.add(3.0)
    assert histogram.quantile(0.5, before) == 3.0
