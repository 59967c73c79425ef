"""Taking down: verified, as often as you like, from any half-built state; and what nobody owns is found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.deployments.conftest import Told
from tests.deployments.leftovers import assert_nothing_left
from tests.deployments.lives import (
    CorruptJournal,
    Make,
    ask,
    deploy,
    destroy,
    kill_cloud,
    kill_router,
    local,
    parts,
    planned,
)  # fmt: skip
from tests.deployments.providers import Stubborn, Unheard
from tests.frontends.terminals import Done, Terminal, deploy_words
from tuna_nb.backends import registry
from tuna_nb.costs.traffic import between
from tuna_nb.deployments import reconcile
from tuna_nb.deployments.destroy import destroy as take_down
from tuna_nb.deployments.status import status
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError

pytestmark = pytest.mark.e2e

Tuna = Callable[..., Done]


async def test_destroying_twice_is_fine(workspace: Workspace, request_of: Make, told: Told) -> None:
    record = await deploy(workspace, request_of("a"))
    await destroy(workspace, "a", told)
    assert next(line for line in told.lines if line.endswith("is gone")).startswith("router ")
    gone = workspace.store.deployment("a")
    assert (gone.state, gone.endpoint_url) == ("destroyed", None)
    assert gone.destroyed_at is not None
    await take_down(workspace, gone, told.report)
    await take_down(workspace, record, told.report)
    assert workspace.store.deployment("a").state == "destroyed"


@pytest.mark.parametrize("built", ["nothing", "serverless", "router", "spot"])
async def test_a_partial_deployment_is_taken_down(workspace: Workspace, request_of: Make, built: str) -> None:
    half = await planned(workspace, request_of("a"))
    record = workspace.store.add_deployment(
        "a", half.request.to_json(), half.to_json(), half.records(), half.deployment_id
    )
    if built == "router":
        config = {"backends": [], "api_key_sha256": ["0" * 64], "admin_key_sha256": ["0" * 64]}
        await workspace.router_host().start(record.id, config, None, False)
    elif built != "nothing":
        side = half.serverless if built == "serverless" else half.spot
        assert side is not None
        await local(workspace).deploy(side, lambda *_: None)
    await destroy(workspace, "a")
    assert {r.state for r in parts(workspace, "a").values()} == {"gone"}
    await assert_nothing_left(workspace.settings.data_dir)


@pytest.mark.parametrize("dead", ["router", "cloud"])
async def test_what_has_died_meanwhile_is_taken_down(workspace: Workspace, request_of: Make, dead: str) -> None:
    await deploy(workspace, request_of("a"))
    (kill_router if dead == "router" else lambda w, _: kill_cloud(w))(workspace, "a")
    await destroy(workspace, "a")
    await assert_nothing_left(workspace.settings.data_dir)


async def test_one_side_that_fails_stops_no_other_and_stays_in_the_books(
    workspace: Workspace, request_of: Make
) -> None:
    stubborn = Stubborn(local(workspace).folder)
    workspace._backends["stubborn"] = stubborn
    await deploy(workspace, request_of("a", spots_cloud="stubborn"))
    with pytest.raises(BackendError, match="stubborn: 503"):
        await destroy(workspace, "a")
    left = parts(workspace, "a")
    assert {role: r.state for role, r in left.items()} == {
        "serverless": "gone", "router": "gone", "spot": "destroying",
    }  # fmt: skip
    assert "503" in str(left["spot"].error)
    record = workspace.store.deployment("a")
    assert record.destroyed_at is None
    assert "503" in str(record.error)
    # Whoever looks is told what it is and what ends it, and that it still costs.
    shown = await status(workspace, record)
    assert shown.state == "interrupted"
    assert "tuna destroy --service-name a" in str(shown.hint)
    assert shown.rate_usd_per_hour == pytest.approx(0.22)
    stubborn.refuses = False
    await destroy(workspace, "a")
    assert workspace.store.deployment("a").error is None


async def test_a_provider_that_cant_be_asked_is_never_taken_for_empty(
    workspace: Workspace, request_of: Make
) -> None:
    await deploy(workspace, request_of("a"))
    journal = CorruptJournal(workspace)
    with pytest.raises(BackendError, match="journal"):
        await destroy(workspace, "a")
    assert workspace.store.deployment("a").destroyed_at is None
    journal.mend()
    await destroy(workspace, "a")
    await assert_nothing_left(workspace.settings.data_dir)


async def test_the_last_counters_and_the_last_bill_are_kept(workspace: Workspace, request_of: Make) -> None:
    record = await deploy(workspace, request_of("a"))
    await ask(workspace, "a")
    await destroy(workspace, "a")
    traffic = between(workspace.store.books, [record.id], 0, time.time() + 60)
    assert traffic is not None
    assert traffic.total.total.requests == 2
    for resource in workspace.store.resources(record.id):
        if resource.role != "router":
            lives = workspace.store.books.intervals(resource.id)
            assert lives
            assert all(i.ended_at is not None and i.ended_at > i.started_at for i in lives)


# -- what nobody owns -------------------------------------------------------------------------------------


@pytest.fixture
def installed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace, where the registry too knows the test's own local cloud and nothing else."""
    monkeypatch.setattr(registry, "names", lambda: ["local"])
    return workspace


async def orphan(workspace: Workspace, request_of: Make, known: bool) -> str:
    """A spot resource that no live deployment owns; known: of a deployment that this store has recorded."""
    made = await planned(workspace, request_of("lost"))
    assert made.spot is not None
    if known:
        record = workspace.store.add_deployment(
            "lost", made.request.to_json(), made.to_json(), made.records(), made.deployment_id
        )
        workspace.store.update_deployment(record.id, state="destroyed", destroyed_at=record.created_at)
    await local(workspace).deploy(made.spot, lambda *_: None)
    return made.spot.request.name


@pytest.mark.parametrize("known", [True, False])
async def test_an_orphan_is_found_and_removed(installed: Workspace, request_of: Make, known: bool) -> None:
    name = await orphan(installed, request_of, known)
    (found,) = (await reconcile.orphans(installed)).found
    assert (found.provider, found.role, found.name, found.ours) == ("local", "spot", name, known)
    await reconcile.remove(installed, found, Told().report)
    assert (await reconcile.orphans(installed)).found == ()


async def test_a_live_deployments_resources_are_no_orphans(installed: Workspace, request_of: Make) -> None:
    await deploy(installed, request_of("a"))
    assert (await reconcile.orphans(installed)).found == ()
    await destroy(installed, "a")


async def test_a_router_without_a_deployment_is_found(installed: Workspace) -> None:
    config = {"backends": [], "api_key_sha256": ["0" * 64], "admin_key_sha256": ["0" * 64]}
    await installed.router_host().start("feedbeef00", config, None, False)
    installed.secrets.put("feedbeef00", "api_key", "x")
    (found,) = (await reconcile.orphans(installed)).found
    assert (found.role, found.name, found.ours) == ("router", "feedbeef00", False)
    await reconcile.remove(installed, found, Told().report)
    await assert_nothing_left(installed.settings.data_dir)


async def test_a_provider_that_cant_be_listed_is_named(
    workspace: Workspace, request_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "names", lambda: ["local", "unheard"])
    workspace._backends["unheard"] = Unheard(local(workspace).folder)
    found = await reconcile.orphans(workspace)
    assert found.found == ()
    assert found.unasked == (("unheard", "unheard: timed out after 30 s"),)


def test_destroy_all_ends_our_orphans_and_leaves_strangers(home: Terminal, tuna: Tuna) -> None:
    """Two stores over one local cloud: each may end only what it has recorded, unless told otherwise."""
    tuna(*deploy_words("mine"))
    database = home.folder / "tuna.db"
    away = database.rename(home.folder / "theirs.db")
    for suffix in ("-wal", "-shm"):
        side = home.folder / f"tuna.db{suffix}"
        if side.exists():
            side.rename(home.folder / f"theirs.db{suffix}")
    assert tuna("destroy", "--all").out.strip() == "nothing to destroy"
    assert len(tuna("list", "-o", "json").json["orphans"]) == 3
    for path in home.folder.glob("tuna.db*"):
        path.unlink()
    for path in home.folder.glob("theirs.db*"):
        path.rename(home.folder / path.name.replace("theirs", "tuna"))
    assert not away.exists()
    assert tuna("list", "-o", "json").json["orphans"] == []
    assert tuna("destroy", "--all").out.strip() == "gone: mine"


def test_destroy_all_takes_every_deployment_and_names_them(home: Terminal, tuna: Tuna) -> None:
    for name in ("one", "two"):
        tuna(*deploy_words(name, "--serverless-only"))
    assert tuna("destroy", "--all").out.strip() == "gone: one, two"


def test_refs_carry_the_deployments_id() -> None:
    from tuna_nb.backends.base import Kind, Ref
    from tuna_nb.deployments.keeping.watch import resource_ref
    from tuna_nb.records import ResourceRecord

    record = ResourceRecord(1, "d", "spot", "local", "n", None, "creating", None, None, 0.2, 0.0, None)
    assert resource_ref(record) == Ref("local", Kind.SPOT, "n", None, "d")
    assert resource_ref(replace(record, provider_id="p")).id == "p"
