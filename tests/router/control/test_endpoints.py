"""The control plane: configuration, counters, metrics."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tuna_router.auth import sha256_hex
from tuna_router.settings import MASK
from tuna_router.state import load

from ..backends import Seen, Wire
from ..conftest import KEY, StartBackend, StartRouter, until


async def test_backends_are_replaced_while_running_and_unchanged_ones_keep_what_was_learned(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    first, second, spot = await start_backend(), await start_backend(), await start_backend()
    router = await start_router(first, spot)
    await router.complete()
    known = router.router.core.fleet["spot"]
    changed = {
        "backends": [
            {"name": "other", "kind": "serverless", "url": second.url},
            {"name": "spot", "kind": "spot", "url": spot.url, "max_concurrency": 7},
        ]
    }
    answer = await router.client.post("/router/config", json=changed)
    assert answer.status_code == 200
    assert router.router.core.fleet["spot"] is known
    assert router.state() == "READY"
    assert known.settings.max_concurrency == 7
    await spot.stop()
    assert (await router.complete()).headers["x-tuna-backend"] == "other"
    changed["backends"][1]["url"] = second.url
    await router.client.post("/router/config", json=changed)
    assert router.router.core.fleet["spot"] is not known


async def test_the_founding_keys_still_work(start_backend: StartBackend, start_router: StartRouter) -> None:
    serverless, spot = await start_backend(), await start_backend()
    router = await start_router()
    answer = await router.client.post(
        "/router/config",
        json={"serverless_url": serverless.url, "serverless_auth_token": "tok", "spot_url": spot.url},
    )
    assert answer.status_code == 200, answer.text
    await until(lambda: router.state() == "READY")
    await spot.stop()
    assert (await router.complete()).status_code == 200
    assert serverless.seen[0].headers["authorization"] == "Bearer tok"
    moved = await start_backend()
    await router.client.post("/router/config", json={"serverless_url": moved.url})
    assert (await router.complete()).status_code == 200
    assert "authorization" not in moved.seen[0].headers, "another server does not get this one's token"
    health = (await router.client.get("/router/health")).json()
    assert (health["serverless_base_url"], health["skyserve_base_url"]) == (moved.url, spot.url)


async def test_header_values_are_masked_and_a_masked_configuration_can_be_posted_back(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    entry = {"name": "a", "kind": "serverless", "url": backend.url, "headers": {"x-token": "provider-secret"}}
    router = await start_router(backends=[entry])
    shown = (await router.client.get("/router/config")).json()
    assert shown["backends"][0]["headers"] == {"x-token": MASK}
    assert (await router.client.post("/router/config", json=shown)).status_code == 200
    await router.complete()
    assert backend.seen[0].headers["x-token"] == "provider-secret"
    shown["backends"][0]["url"] = "http://elsewhere.example"
    refused = await router.client.post("/router/config", json=shown)
    assert refused.status_code == 422
    assert "masked" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_concurency": 3}, "did you mean 'max_concurrency'?"),
        ({"backends": [{"kind": "spot", "url": "http://x", "header": {}}]}, "did you mean 'headers'?"),
        ({"backends": [{"kind": "sopt", "url": "http://x"}]}, "did you mean 'spot'?"),
        ({"backends": [{"kind": "spot", "url": "ftp://x"}]}, "not an http or https URL"),
        ({"backends": [{"kind": "spot", "url": "http://u:p@x"}]}, "user name or password"),
        ({"backends": [{"kind": "spot", "url": "http://x", "headers": {"a": "b\nc"}}]}, "not plain text"),
        (
            {"backends": [{"kind": "spot", "url": "http://x", "headers": {"Host": "b"}}]},
            "can't be a backend's header",
        ),
        ({"backends": [{"name": "a", "kind": "spot", "url": "http://x"}] * 2}, "two backends are named"),
        ({"backends": {}}, "must be a list"),
        ({"max_concurrency": 0}, "at least 1"),
        ({"probe_interval_s": "2"}, "positive number"),
        ({"api_key_sha256": ["my-key"]}, "no SHA-256 hash"),
        ({"api_key_sha256": []}, "remove the last key"),
        ({"serverless_url": 3}, "must be a string"),
        ({"serverless_auth_token": "t\n"}, "no serverless backend"),
        ([], "not a JSON object"),
    ],
)
async def test_a_bad_configuration_is_refused_with_a_hint_and_changes_nothing(
    start_router: StartRouter, change: Any, words: str
) -> None:
    router = await start_router()
    before = router.router.core.settings
    answer = await router.client.post("/router/config", json=change)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert words in error["message"] + " " + error["hint"]
    assert ":p@" not in answer.text
    assert router.router.core.settings is before


async def test_a_body_that_is_no_json_is_a_400(start_router: StartRouter) -> None:
    router = await start_router()
    assert (await router.client.post("/router/config", content=b"{")).status_code == 400
    assert (await router.client.post("/router/config", content=b"[" * 100_000)).status_code == 400
    assert (await router.client.post("/router/config", content=b" " * 2_000_000)).status_code == 413
    assert (await router.client.get("/router/nothing")).status_code == 404
    assert (await router.client.delete("/router/config")).status_code == 405
    assert (await router.client.post("/router/health")).status_code == 405


async def test_an_accepted_change_is_in_the_file_and_in_the_next_router(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    backend = await start_backend()
    for name in ("router.json", "router.yaml"):
        path = tmp_path / name
        router = await start_router(save_to=path)
        entry = {"kind": "serverless", "url": backend.url, "headers": {"x-token": "secret"}}
        answer = await router.client.post("/router/config", json={"backends": [entry], "max_concurrency": 9})
        assert answer.status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        restarted = load(path)
        assert restarted == router.router.core.settings
        assert restarted.backends[0].headers == {"x-token": "secret"}
        assert KEY not in path.read_text()


async def test_a_change_that_can_not_be_saved_is_not_made(start_router: StartRouter, tmp_path: Path) -> None:
    router = await start_router(save_to=tmp_path / "no-folder" / "router.json")
    answer = await router.client.post("/router/config", json={"max_concurrency": 9})
    assert answer.status_code == 422
    assert router.router.core.admission.limit == 100


async def test_a_key_is_changed_while_running(start_router: StartRouter) -> None:
    router = await start_router()
    new = {"authorization": "Bearer new"}
    await router.client.post("/router/config", json={"api_key_sha256": [sha256_hex("new")]})
    assert (await router.client.get("/router/stats")).status_code == 401
    assert (await router.client.get("/router/stats", headers=new)).status_code == 200


async def test_replicas_can_be_posted_in_both_forms(start_backend: StartBackend, start_router: StartRouter) -> None:
    router = await start_router(spot=await start_backend())
    post = router.client.post
    assert (await post("/router/spot-replicas", json={"replicas": 0})).json()["states"] == {"spot": "COLD"}
    await post("/router/spot-replicas", json={"replicas": 1})
    await until(lambda: router.state() == "READY")
    await post("/router/spot-replicas", json={"ready": 0, "draining": 1, "backend": "spot"})
    assert router.state() == "DRAINING"
    assert (await post("/router/spot-replicas", json={"ready": 0, "backend": "x"})).status_code == 404
    assert (await post("/router/spot-replicas", json={"replica": 1})).status_code == 422
    assert (await post("/router/spot-replicas", json={"ready": -1})).status_code == 422


async def test_a_notice_needs_a_spot_backend_a_sane_body_and_an_admin_key(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(), await start_backend(), admin_key_sha256=[sha256_hex("a")])
    path, admin = "/router/spot-replicas/spot/notice", {"authorization": "Bearer a"}
    post = router.client.post
    assert (await post(path, json={"seconds": 30})).status_code == 403
    assert (await post(path, json={"seconds": 30}, headers={"authorization": "Bearer x"})).status_code == 401
    assert (await post(path, json={"seconds": "soon"}, headers=admin)).status_code == 422
    assert (await post(path, json=[], headers=admin)).status_code == 422
    assert router.state() == "READY"
    other = await post("/router/spot-replicas/serverless/notice", json={"seconds": 30}, headers=admin)
    assert other.status_code == 404
    assert "spot" in other.json()["error"]["hint"]
    one_of_two = await post("/router/spot-replicas", json={"ready": 2}, headers=admin)
    assert one_of_two.status_code == 200
    told = (await post(path, json={"seconds": 30, "replica": "1"}, headers=admin)).json()
    assert told == {"ok": True, "backend": "spot", "state": "READY", "gone_in_s": None}
    told = (await post(path, json={"seconds": 30, "replica": "2"}, headers=admin)).json()
    assert told["state"] == "DRAINING"


async def test_counters_are_exact_and_every_request_is_in_one_of_them(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def mixed(wire: Wire, seen: Seen) -> None:
        number = len(spot.seen)
        if number % 3 == 0:
            await wire.raw(b"HTTP/1.1 ")
            wire.close()
        elif number % 3 == 1:
            await wire.stream_head()
            await wire.token("a")
            await wire.token("b", "stop")
            await wire.chunk(b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n')
            await wire.done()
        else:
            await wire.json({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}})

    spot = await start_backend(mixed)
    router = await start_router(await start_backend(), spot)
    for _ in range(12):
        await router.complete()
        await until(lambda: router.state() == "READY" and not router.router.core.fleet["spot"].cooling)
    stats = (await router.client.get("/router/stats")).json()
    for level in (stats["requests"], *stats["backends"]):
        assert level["started"] == level["finished"] + level["cancelled"] + level["failed"] + level["running"]
    assert stats["requests"]["started"] == stats["requests"]["finished"] == 12
    assert stats["attempts"] == 12 + stats["failovers"] == 16
    by_name = {b["name"]: b for b in stats["backends"]}
    assert (by_name["spot"]["finished"], by_name["spot"]["failed"]) == (8, 4)
    assert by_name["spot"]["prompt_tokens"] == 4 * (5 + 7)
    assert by_name["spot"]["completion_tokens"] == 4 * (2 + 4)
    assert by_name["serverless"]["completion_tokens"] == 4 * 2
    assert stats["requests"]["completion_tokens"] == 4 * (2 + 4 + 2)
    route = stats["route_stats"]
    assert (route["total"], route["spot"], route["serverless"], route["rejected"]) == (12, 8, 4, 0)
    assert (route["window_total"], route["window_spot"], route["pct_spot"]) == (12, 8, 66.67)
    assert stats["requests"]["ttft_s"]["p50"] > 0

    families = {f.name: f for f in text_string_to_metric_families((await router.client.get("/metrics")).text)}
    values = {
        (s.labels["backend"], s.labels["outcome"]): s.value
        for s in families["tuna_router_backend_requests"].samples
    }
    assert values["spot", "failed"] == 4
    assert values["serverless", "finished"] == 4
    state = {s.labels["state"]: s.value for s in families["tuna_router_spot_state"].samples}
    assert state == {"COLD": 0, "WARMING": 0, "READY": 1, "DRAINING": 0}
    assert families["tuna_router_request_seconds"].type == "histogram"


async def test_health_has_the_founding_keys(start_backend: StartBackend, start_router: StartRouter) -> None:
    router = await start_router(await start_backend(), await start_backend())
    health = (await router.client.get("/router/health")).json()
    assert health["status"] == "ok"
    assert {
        "skyserve_ready",
        "spot_state",
        "last_probe_ts",
        "last_probe_err",
        "serverless_base_url",
        "skyserve_base_url",
        "route_stats",
        "version",
        "backends",
    } <= health.keys()
    assert {
        "total",
        "spot",
        "serverless",
        "rejected",
        "pct_spot",
        "pct_serverless",
        "window_total",
        "window_spot",
        "window_serverless",
        "gpu_seconds_spot",
        "gpu_seconds_serverless",
        "uptime_seconds",
        "spot_ready_seconds",
    } <= health["route_stats"].keys()
    by_name = {b["name"]: b for b in health["backends"]}
    assert by_name["spot"]["circuit"] == by_name["serverless"]["circuit"] == "CLOSED"
    assert (by_name["spot"]["predicted_wait_s"], by_name["serverless"]["warm"]) == (0, False)
    assert [(b["name"], b["state"], b["in_flight"]) for b in health["backends"]] == [
        ("serverless", "READY", 0),
        ("spot", "READY", 0),
    ]
    json.dumps(health, allow_nan=False)
