"""What was learned survives a restart, and a file that is none does no harm."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tuna_router.app import Router
from tuna_router.auth import sha256_hex
from tuna_router.settings import parse_settings
from tuna_router.state_file import VERSION, StateFile, state_file

from .conftest import KEY, StartBackend, StartRouter, until


class Part:
    """Something worth keeping."""

    def __init__(self, **known: Any) -> None:
        self.known = known

    def learned(self) -> Mapping[str, Any]:
        return self.known

    def recall(self, data: Mapping[str, Any]) -> None:
        self.known = {"number": int(data["number"])}


def written(tmp_path: Path, text: str) -> tuple[Part, list[str]]:
    path = tmp_path / "a.state.json"
    path.write_text(text)
    part = Part(number=0)
    StateFile(path, {"part": part}, wall=lambda: 1234.5).load()
    return part, sorted(p.name for p in tmp_path.iterdir())


def test_what_is_saved_is_recalled_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.state.json"
    StateFile(path, {"part": Part(number=3)}).save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    part, names = written(tmp_path, path.read_text())
    assert part.known == {"number": 3}
    assert names == ["a.state.json"]


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    part = Part(number=1)
    file = StateFile(tmp_path / "a", {"part": part})
    file.save()
    (tmp_path / "a").unlink()
    file.save()
    assert not (tmp_path / "a").exists()
    part.known = {"number": 2}
    file.save()
    assert (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00\xff",
        "[" * 100_000,
        '{"kind": "something else", "version": 1, "parts": {}}',
        json.dumps({"kind": "tuna-router state", "version": VERSION + 1, "parts": {"part": {"number": 3}}}),
        json.dumps({"kind": "tuna-router state", "version": VERSION, "parts": []}),
        json.dumps({"kind": "tuna-router state", "version": VERSION, "parts": {"part": {"numbr": 3}}}),
        json.dumps({"kind": "tuna-router state", "version": VERSION, "parts": {"part": [3]}}),
        json.dumps({"kind": "tuna-router state", "version": VERSION, "parts": {"part": {"number": "many"}}}),
    ],
)
def test_a_file_that_can_not_be_used_is_put_aside_and_the_router_starts_afresh(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    part, names = written(tmp_path, text)
    assert part.known == {"number": 0}
    assert names == ["a.state.json.unusable-1234"]
    assert (tmp_path / names[0]).read_text() == text
    assert "can't use" in caplog.text


def test_a_folder_that_can_not_be_written_is_a_warning_and_no_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(tmp_path / "no" / "a", {"part": Part(number=1)})
    file.save()
    assert "will be lost" in caplog.text
    (tmp_path / "no").mkdir()
    file.save()
    assert (tmp_path / "no" / "a").exists(), "it is tried again though nothing has changed"


def router_with_a_price(backend_url: str) -> Router:
    return Router(
        parse_settings(
            {
                "keys": [{"name": "alice", "sha256": sha256_hex(KEY), "spend_limit_usd": 1.0}],
                "backends": [{"name": "a", "kind": "serverless", "url": backend_url, "price_per_hour_usd": 3600}],
            }
        ),
        wall=lambda: 1000.0,
    )


async def test_totals_and_spending_of_a_router_survive_it(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    backend = await start_backend()
    running = await start_router(backend)
    await running.complete()
    path = tmp_path / "state.json"
    first = router_with_a_price(backend.url)
    alice = first.core.guard.find(KEY.encode())
    assert alice is not None
    now = first.core.meter.clock()
    share = first.core.ledger.begin("a", now)
    first.core.ledger.close(share, now + 2.0, alice, "m")
    state_file(first.core, path).save()
    state_file(running.router.core, tmp_path / "other.json").save()
    for secret in (KEY, sha256_hex(KEY)):
        assert secret not in path.read_text()

    second = router_with_a_price(backend.url)
    state_file(second.core, path).load()
    again = second.core.guard.find(KEY.encode())
    assert again is not None
    assert again.spent.total_usd == pytest.approx(2.0)
    refusal = again.refusal(0.0, 1000.0)
    assert refusal is not None
    assert b"insufficient_quota" in refusal.body
    assert second.core.ledger.backends["a"].requests_usd == pytest.approx(2.0)
    third = router_with_a_price(backend.url)
    state_file(third.core, tmp_path / "other.json").load()
    assert third.core.totals.learned()["finished"] == 1
    assert third.core.totals.learned()["completion_tokens"] == 2


async def test_it_is_saved_now_and_then_while_it_runs(tmp_path: Path) -> None:
    part = Part(number=1)
    file = StateFile(tmp_path / "a", {"part": part})
    keeping = asyncio.create_task(file.keep(lambda: 0.01))
    await until((tmp_path / "a").exists)
    part.known = {"number": 2}
    await until(lambda: '"number": 2' in (tmp_path / "a").read_text())
    keeping.cancel()
    await asyncio.wait((keeping,))
