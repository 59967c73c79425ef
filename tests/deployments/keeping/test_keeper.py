"""Headers that expire are renewed in the running router, and it is told where the replicas are, for as long as the
deployment is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.deployments.lives import ask, deploy, destroy, kill_router, parts, until
from tests.deployments.providers import Addressed, Expiring
from tuna_nb.backends.base import Auth
from tuna_nb.deployments.keeping import companion
from tuna_nb.deployments.keeping.keeper import RETRY_S, Keeper, renew_at
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.settings import Settings

pytestmark = pytest.mark.e2e

Make = Callable[..., DeployRequest]


class Wall:
    """Unix time, as the test has it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def expiring(workspace: Workspace, wall: Wall) -> Expiring:
    made = Expiring(workspace.settings.data_dir / "local-cloud", wall)
    workspace._backends["expiring"] = made
    return made


def number(workspace: Workspace, name: str) -> int:
    """Of the headers that the router has now."""
    folder = workspace.settings.data_dir / "routers" / workspace.store.deployment(name).id
    kept = json.loads((folder / "config.json").read_text())
    return int(next(b for b in kept["backends"] if b["name"] == "serverless")["headers"]["x-number"])


def renewing(workspace: Workspace, name: str) -> psutil.Process | None:
    return companion.find(workspace.store.deployment(name).id, companion.KEEPER)


async def test_they_are_renewed_when_a_fifth_of_their_life_is_left(
    workspace: Workspace, request_of: Make, expiring: Expiring, wall: Wall
) -> None:
    record = await deploy(workspace, request_of("r", serverless_provider="expiring"), until_spot=False)
    renewal = Keeper(workspace, record.id, wall)
    assert await renewal.look()
    first = number(workspace, "r")
    wall.now += 0.79 * expiring.life_s
    assert await renewal.look()
    assert number(workspace, "r") == first
    wall.now += 0.02 * expiring.life_s
    assert await renewal.look()
    assert number(workspace, "r") == first + 1
    assert await ask(workspace, "r")
    wall.now += 100 * expiring.life_s  # the machine slept
    assert await renewal.look()
    assert number(workspace, "r") == first + 2
    await destroy(workspace, "r")
    assert not await renewal.look(), "it ends with the deployment"


async def test_a_provider_that_gives_no_token_is_asked_again(
    workspace: Workspace, request_of: Make, expiring: Expiring, wall: Wall
) -> None:
    record = await deploy(workspace, request_of("r", serverless_provider="expiring"), until_spot=False)
    renewal = Keeper(workspace, record.id, wall)
    first = number(workspace, "r")
    expiring.refuses = True
    assert await renewal.look()
    expiring.refuses = False
    assert await renewal.look()
    assert number(workspace, "r") == first, "not at once: it is not to be stormed"
    wall.now += RETRY_S
    assert await renewal.look()
    assert number(workspace, "r") == first + 1
    await destroy(workspace, "r")


async def test_a_router_that_is_down_gets_its_headers_when_it_is_back(
    workspace: Workspace, request_of: Make, expiring: Expiring, wall: Wall
) -> None:
    wanted = request_of("r", serverless_provider="expiring")
    record = await deploy(workspace, wanted, until_spot=False)
    renewal = Keeper(workspace, record.id, wall)
    kill_router(workspace, "r")
    assert await renewal.look()
    await deploy(workspace, wanted, until_spot=False)
    before = number(workspace, "r")
    wall.now += RETRY_S
    assert await renewal.look()
    assert number(workspace, "r") == before + 1
    await destroy(workspace, "r")


async def test_a_process_of_its_own_does_it_and_ends_with_the_router(
    workspace: Workspace, request_of: Make, expiring: Expiring
) -> None:
    wanted = request_of("r", serverless_provider="expiring")
    await deploy(workspace, wanted, until_spot=False)
    process = await until(lambda: renewing(workspace, "r"))
    key = workspace.secrets.get(workspace.store.deployment("r").id, "admin_key")
    assert key not in " ".join(process.cmdline())
    await deploy(workspace, wanted, until_spot=False)
    assert renewing(workspace, "r") == process, "there is one, however often it is deployed"
    await destroy(workspace, "r")
    assert not process.is_running()


async def test_after_the_machine_was_off_there_is_one_again_however_many_look_at_once(
    workspace: Workspace, request_of: Make
) -> None:
    record = await deploy(workspace, request_of("r"), until_spot=False)
    first = renewing(workspace, "r")
    assert first is not None
    await asyncio.to_thread(companion.stop, record.id)
    await companion.revive(workspace.settings, [replace(record, state="destroying")])
    assert renewing(workspace, "r") is None, "it is being taken down"
    await asyncio.gather(*(companion.revive(workspace.settings, [record]) for _ in range(8)))
    second = renewing(workspace, "r")
    assert second is not None
    assert [p.pid for p in psutil.process_iter() if _is_one(p, record.id)] == [second.pid]
    await destroy(workspace, "r")
    await companion.revive(workspace.settings, [record])
    assert renewing(workspace, "r") is None, "what is gone is not looked after"


def _is_one(process: psutil.Process, deployment_id: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return deployment_id in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def test_it_keeps_the_bill_of_every_deployment_while_nobody_looks(
    workspace: Workspace, request_of: Make
) -> None:
    record = await deploy(workspace, request_of("r"), until_spot=False)
    assert renewing(workspace, "r") is not None
    await ask(workspace, "r")
    books = workspace.store.books
    sides = {r.role: r.id for r in workspace.store.resources(record.id) if r.role != "router"}

    def written() -> bool:
        return all(books.intervals(number) for number in sides.values())

    await until(lambda: written() or None)
    await destroy(workspace, "r")


async def test_a_price_that_changes_is_paid_from_then_on(
    workspace: Workspace, request_of: Make, wall: Wall
) -> None:
    """As a spot market's does: a provider that keeps no history is asked for its price every hour."""
    addressed = workspace._backends["addressed"] = Addressed(workspace.settings.data_dir / "local-cloud")
    record = await deploy(workspace, request_of("r", spots_cloud="addressed"))
    spot = parts(workspace, "r")["spot"]
    keeper = Keeper(workspace, record.id, wall)
    assert await keeper.look()
    addressed.price_usd = 9.5
    wall.now += 3700
    assert await keeper.look()
    wall.now += 60
    assert await keeper.look()
    (running,) = workspace.store.books.open_intervals([spot.id])
    assert [price for _, price in running.prices] == [0.22, 9.5]
    assert running.prices[1][0] > 1_800_003_700
    addressed.price_usd = None
    await destroy(workspace, "r")


async def test_it_ends_where_its_records_were_thrown_away(tmp_path: Path) -> None:
    elsewhere = Workspace(Settings.load({"TUNA_DATA_DIR": str(tmp_path / "gone")}))
    assert not await Keeper(elsewhere, "none").look()
    assert not (tmp_path / "gone").exists()


def test_when_to_renew() -> None:
    assert renew_at(Auth({}), 100) is None
    assert renew_at(Auth({}, 3700), 100) == 3700 - 720
    assert renew_at(Auth({}, 50), 100) == 50, "at once"


def spots(workspace: Workspace, name: str) -> list[str]:
    """The spot backends that the router has now."""
    folder = workspace.settings.data_dir / "routers" / workspace.store.deployment(name).id
    kept = json.loads((folder / "config.json").read_text())
    return [b["name"] for b in kept["backends"] if b["kind"] == "spot"]


async def test_the_router_is_told_where_the_replicas_are_and_an_error_is_not_read_as_none(
    workspace: Workspace, request_of: Make, wall: Wall
) -> None:
    addressed = workspace._backends["addressed"] = Addressed(workspace.settings.data_dir / "local-cloud")
    record = await deploy(workspace, request_of("r", spots_cloud="addressed"))
    assert renewing(workspace, "r") is not None, "a process of its own, for when the notebook is closed"
    keeper = Keeper(workspace, record.id, wall)
    assert await keeper.look()
    known = spots(workspace, "r")
    assert len(known) == 2
    assert known[1].startswith("spot.")

    async def directly() -> bool:
        return await ask(workspace, "r") == known[1]

    await until(directly)
    addressed.unheard = True
    assert await keeper.look()
    assert spots(workspace, "r") == known
    addressed.unheard = False

    await addressed.cloud.preempt(parts(workspace, "r")["spot"].name, 0)

    async def another() -> bool:
        await keeper.look()
        return len(spots(workspace, "r")) == 2 and spots(workspace, "r") != known

    await until(another)
    await destroy(workspace, "r")
    assert not await keeper.look()


async def test_a_status_that_takes_long_is_asked_for_less_often(
    workspace: Workspace, request_of: Make, wall: Wall
) -> None:
    addressed = workspace._backends["addressed"] = Addressed(workspace.settings.data_dir / "local-cloud")
    record = await deploy(workspace, request_of("r", spots_cloud="addressed"))
    keeper = Keeper(workspace, record.id, wall)

    def six_seconds() -> None:
        wall.now += 6

    addressed.takes, addressed.asked = six_seconds, 0
    for later_s, asked in ((0, 1), (10, 1), (7, 1), (2, 2)):
        wall.now += later_s
        assert await keeper.look()
        assert addressed.asked == asked
    addressed.takes = None
    await destroy(workspace, "r")
