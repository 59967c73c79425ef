"""Keys: whose it is, and what it may use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tuna_router.auth import sha256_hex
from tuna_router.errors import SettingsError
from tuna_router.keys.live import Guard, LiveKey
from tuna_router.keys.settings import KeySettings, parse_keys
from tuna_router.settings import parse_settings, to_json
from tuna_router.state import load

from ..backends import Seen, Wire
from ..conftest import KEY, StartBackend, StartRouter, until

DAY = 86400.0


def live(**limits: Any) -> LiveKey:
    return LiveKey(KeySettings("alice", sha256_hex("alice"), **limits), 0.0)


def code(key: LiveKey, now: float = 0.0, unix_s: float = 0.0) -> str | None:
    refusal = key.refusal(now, unix_s)
    return None if refusal is None else refusal.body.decode().split('"code":"')[1].split('"')[0]


def test_a_key_without_limits_has_nothing_to_be_asked() -> None:
    assert not live().limited
    for limits in (
        {"requests_per_minute": 1},
        {"tokens_per_minute": 1},
        {"max_concurrency": 1},
        {"spend_limit_usd": 0.0},
    ):
        assert live(**limits).limited


def test_requests_a_minute() -> None:
    key = live(requests_per_minute=2)
    for _ in range(2):
        assert code(key) is None
        key.take(0.0)
    refusal = key.refusal(0.0, 0.0)
    assert refusal is not None
    assert refusal.status == 429
    assert b"retry-after: 30\r\n" in refusal.lines
    assert b"x-ratelimit-limit-requests: 2\r\nx-ratelimit-remaining-requests: 0\r\n" in refusal.lines
    assert b'"type":"rate_limit_error"' in refusal.body
    assert code(key, 30.0) is None
    assert key.rejected == {"requests_per_minute": 1}


def test_tokens_are_charged_when_they_are_known_and_an_overdrawn_key_waits() -> None:
    key = live(tokens_per_minute=100)
    assert code(key) is None
    key.used(150, 50, 0.0)
    assert code(key) == "tokens_per_minute"
    assert b"x-ratelimit-remaining-tokens: 0\r\n" in key.lines(0.0)
    assert code(key, 61.0) is None
    assert (key.prompt_tokens, key.completion_tokens) == (150, 50)


def test_a_key_above_its_spending_gets_openais_insufficient_quota_until_the_window_ends() -> None:
    key = live(spend_limit_usd=1.0, spend_window_s=DAY)
    key.spent.add(1.0, 10 * DAY)
    refusal = key.refusal(0.0, 11 * DAY - 60)
    assert refusal is not None
    assert b'"code":"insufficient_quota"' in refusal.body
    assert b'"hint"' in refusal.body
    assert b"retry-after: 60\r\n" in refusal.lines
    assert b"x-should-retry: false\r\n" in refusal.lines, "OpenAI's clients try 429 again unless told not to"
    assert code(key, 0.0, 11 * DAY) is None


def test_new_limits_do_not_forget_what_was_used_and_a_new_key_begins_anew() -> None:
    guard = Guard()
    old = KeySettings("alice", sha256_hex("a"), requests_per_minute=1)
    guard.configure([old], open_door=False, now=0.0)
    key = guard.find(b"a")
    assert key is not None
    key.take(0.0)
    guard.configure([KeySettings("bob", sha256_hex("a"), requests_per_minute=1)], open_door=False, now=0.0)
    assert guard.find(b"a") is key
    assert key.settings.name == "bob"
    assert code(key) == "requests_per_minute"
    guard.configure([KeySettings("bob", sha256_hex("b"))], open_door=False, now=0.0)
    assert guard.find(b"a") is None, "also not from memory"
    assert guard.find(b"b") is not key


def test_a_hash_that_differs_in_one_bit_is_another_key() -> None:
    guard, digest = Guard(), int(sha256_hex("a"), 16)
    for bit in (0, 1, 7, 128, 255):
        guard.configure([KeySettings("alice", f"{digest ^ (1 << bit):064x}")], open_door=False, now=0.0)
        assert guard.find(b"a") is None


def test_what_a_key_used_survives_a_restart_also_while_it_is_not_configured() -> None:
    first, second, third = Guard(), Guard(), Guard()
    keys = [KeySettings("alice", sha256_hex("a"))]
    first.configure(keys, open_door=True, now=0.0)
    key = first.find(b"a")
    assert key is not None
    key.used(3, 4, 0.0)
    key.spent.add(2.0, 5.0)
    second.recall(first.learned())
    third.configure(keys, open_door=True, now=0.0)
    third.recall(second.learned())
    assert third.learned() == first.learned()
    assert sha256_hex("a") not in str(first.learned()), "half of a hash names it well enough"


def test_the_two_lists_of_hashes_and_the_list_of_keys_are_one() -> None:
    a, b, c = (sha256_hex(k) for k in "abc")
    settings = parse_settings(
        {
            "api_key_sha256": [a, b],
            "admin_key_sha256": [c],
            "keys": [{"name": "alice", "sha256": b, "requests_per_minute": 5}],
        }
    )
    assert [(k.name, k.role) for k in settings.all_keys] == [
        ("alice", "client"),
        (f"admin:{c[:12]}", "admin"),
        (f"key:{a[:12]}", "client"),
    ]
    assert parse_settings(to_json(settings, mask=True)) == settings


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "must be a list"),
        ([3], "not a set of keys"),
        ([{"name": "a"}], "has no 'sha256'"),
        ([{"name": "a", "sha256": "my-secret-key"}], "no SHA-256"),
        ([{"name": "a b", "sha256": "0" * 64}], "can't name a key"),
        ([{"name": "a", "sha256": "0" * 64, "rpm": 3}], "unknown key 'rpm'"),
        ([{"name": "a", "sha256": "0" * 64, "role": "root"}], "unknown role"),
        ([{"name": "a", "sha256": "0" * 64, "spend_limit_usd": -1}], "dollars"),
        ([{"name": "a", "sha256": "0" * 64, "spend_limit_usd": float("nan")}], "dollars"),
        ([{"name": "a", "sha256": "0" * 64, "spend_window_s": 0}], "seconds"),
        ([{"name": "a", "sha256": "0" * 64, "max_concurrency": True}], "whole number"),
        ([{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}], "two keys are named"),
        ([{"name": "a", "sha256": "0" * 64}, {"name": "b", "sha256": "0" * 64}], "listed twice"),
        ([{"name": f"k{i}", "sha256": f"{i:064x}"} for i in range(1001)], "more than 1000"),
    ],
)
def test_a_bad_key_is_refused_without_showing_it(keys: object, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_keys("keys", keys)
    assert words in caught.value.message
    assert "my-secret-key" not in caught.value.message + caught.value.hint


def entry(**limits: Any) -> list[dict[str, Any]]:
    return [{"name": "alice", "sha256": sha256_hex(KEY), **limits}]


async def test_over_the_wire_a_rate_limit_is_a_429_that_says_when_to_come_back(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend, api_key_sha256=[], keys=entry(requests_per_minute=2))
    answers = [await router.complete() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused = answers[2]
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"]
    assert refused.headers["x-request-id"]
    assert len(backend.seen) == 2
    stats = await router.client.get("/router/stats")
    assert stats.status_code == 200, "the control plane is not limited"
    assert stats.json()["rejected_by_reason"] == {"requests_per_minute": 1}
    events = await router.client.send(
        router.client.build_request("GET", "/router/events", headers={"last-event-id": "0"}), stream=True
    )
    text = ""
    async for piece in events.aiter_text():
        text += piece
        if '"key":"alice","reason":"requests_per_minute"' in text:
            break
    await events.aclose()


async def test_over_the_wire_a_keys_own_concurrency_counts_those_that_wait_too(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    release = asyncio.Event()

    async def hold(wire: Wire, seen: Seen) -> None:
        await release.wait()
        await wire.json({"ok": True})

    router = await start_router(
        await start_backend(hold), api_key_sha256=[], keys=entry(max_concurrency=2), max_concurrency=1
    )
    tasks = [asyncio.create_task(router.complete()) for _ in range(2)]
    await until(lambda: router.router.core.admission.waiting == 1)
    refused = await router.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_concurrency")
    release.set()
    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200, 200]
    assert (await router.complete()).status_code == 200
    assert [key.in_flight for key in router.router.core.guard] == [0]


async def test_a_key_that_the_router_makes_is_shown_once_works_at_once_and_is_in_the_file_as_a_hash(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    path = tmp_path / "router.json"
    router = await start_router(await start_backend(), save_to=path)
    made = await router.client.post("/router/keys", json={"name": "bob", "requests_per_minute": 5})
    assert made.status_code == 201
    key = made.json()["key"]
    assert len(key) > 40
    as_bob = {"authorization": f"Bearer {key}"}
    assert (await router.client.get("/v1/x", headers=as_bob)).status_code == 200
    shown = (await router.client.get("/router/keys")).json()["keys"]
    assert [(k["name"], k["role"], k["started"]) for k in shown if k["name"] == "bob"] == [("bob", "client", 1)]
    for text in (path.read_text(), (await router.client.get("/router/keys")).text):
        assert key not in text
        assert sha256_hex(key) in text
    assert load(path) == router.router.core.settings
    assert (await router.client.delete("/router/keys/bob")).json() == {"deleted": "bob"}
    assert (await router.client.get("/v1/x", headers=as_bob)).status_code == 401
    assert load(path).keys == ()


async def test_a_key_is_rotated_without_a_restart(start_backend: StartBackend, start_router: StartRouter) -> None:
    router = await start_router(await start_backend())
    post, delete = router.client.post, router.client.delete
    given = {"name": "next", "sha256": sha256_hex("next"), "role": "admin"}
    assert (await post("/router/keys", json=given)).json()["key"] is None
    old = f"key:{sha256_hex(KEY)[:12]}"
    as_next = {"authorization": "Bearer next"}
    assert (await delete(f"/router/keys/{old}", headers=as_next)).status_code == 200
    assert (await router.complete()).status_code == 401
    assert (await router.client.get("/router/keys", headers=as_next)).status_code == 200


async def test_nobody_locks_himself_out(start_router: StartRouter) -> None:
    router = await start_router()
    own = f"key:{sha256_hex(KEY)[:12]}"
    refused = await router.client.delete(f"/router/keys/{own}")
    assert refused.status_code == 409
    assert "you are using" in refused.json()["error"]["message"]
    for number in (1, 2):
        given = {"name": f"admin{number}", "sha256": sha256_hex(f"admin{number}"), "role": "admin"}
        # The second by the first: from then on client keys administrate no more.
        headers = {"authorization": "Bearer admin1"} if number == 2 else {}
        assert (await router.client.post("/router/keys", json=given, headers=headers)).status_code == 201
    assert (await router.client.get("/router/keys")).status_code == 403
    as_admin = {"authorization": "Bearer admin1"}
    assert (await router.client.delete("/router/keys/admin2", headers=as_admin)).status_code == 200
    assert (await router.client.delete("/router/keys/admin1", headers=as_admin)).status_code == 409
    emptied = await router.client.post("/router/config", json={"keys": []}, headers=as_admin)
    assert emptied.status_code == 422
    assert "every client an admin" in emptied.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "a b"}, 422),
        ({"name": "alice", "limit": 3}, 422),
        ({}, 422),
        ({"name": f"key:{sha256_hex(KEY)[:12]}"}, 422),
        ({"name": "x", "sha256": sha256_hex(KEY)}, 409),
        ({"name": "x", "sha256": "key in clear"}, 422),
    ],
)
async def test_a_bad_key_is_refused_over_the_wire(start_router: StartRouter, body: Any, status: int) -> None:
    router = await start_router()
    before = router.router.core.settings
    assert (await router.client.post("/router/keys", json=body)).status_code == status
    assert router.router.core.settings is before
    assert (await router.client.delete("/router/keys/nobody")).status_code == 404
