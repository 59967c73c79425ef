"""What SkyPilot and its clouds are known to do: each failure said with its step, nothing mistaken for gone."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.backends.local.clouds import until
from tests.backends.skyserve.requests import REQUEST
from tests.fakes.faults import Fault
from tests.fakes.skypilot import FakeSkyPilot
from tuna_nb.backends.base import Check, Endpoint, Engine, Ref, SpotScaling, State
from tuna_nb.backends.skyserve.backend import SkyServeBackend
from tuna_nb.errors import BackendError, CapacityError, CredentialsError, RequestError, TunaError, UnclearError

REF = Ref("skyserve", REQUEST.kind, REQUEST.name)
KEPT_UP = SpotScaling(min_replicas=1, max_replicas=1)


@pytest.fixture
def backend(cloud: FakeSkyPilot) -> SkyServeBackend:
    return SkyServeBackend(pace=0.02, timeout_s=30)


async def deploy(backend: SkyServeBackend, **change: Any) -> Endpoint:
    return await backend.deploy(await backend.plan(replace(REQUEST, **change)), lambda *_: None)


async def reaches(backend: SkyServeBackend, state: State) -> None:
    async def there() -> bool:
        return (await backend.status(REF)).state is state

    await until(there)


async def refused(backend: SkyServeBackend, error: type[TunaError]) -> TunaError:
    with pytest.raises(error) as raised:
        await deploy(backend)
    assert raised.value.hint
    return raised.value


@pytest.mark.parametrize("fault", [Fault(500), Fault(401)], ids=["500", "401"])
async def test_an_ill_api_server_is_asked_afresh_and_not_remembered_for_seconds(
    backend: SkyServeBackend, cloud: FakeSkyPilot, fault: Fault
) -> None:
    """SkyPilot's client keeps the answer of /api/health for 5 s, a bad one too."""
    from sky.server import common

    common.get_api_server_status_response.cache_clear()  # as after 5 s without a call
    cloud.faults.order(fault, "GET /api/health", times=10**6)
    with pytest.raises(BackendError):
        await backend.list_owned()
    cloud.faults.clear()
    assert await backend.list_owned() == []


async def test_credentials_that_the_cloud_refuses_are_said_with_the_sign_in(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    cloud.denied = True
    assert "sky check aws" in str((await refused(backend, CredentialsError)).hint)
    rows = await backend.check(REQUEST)
    [row] = [row for row in rows if not row.passed]
    assert "sky check aws" in str(row.fix)
    cloud.denied = False
    await deploy(backend)


async def test_no_room_in_any_zone_is_no_capacity(backend: SkyServeBackend, cloud: FakeSkyPilot) -> None:
    cloud.capacity = False
    assert "--region" in str((await refused(backend, CapacityError)).hint)


async def test_a_launch_that_another_first_one_got_in_the_way_of_is_tried_once_more(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    cloud.lost_races = 1
    assert (await deploy(backend)).url
    await backend.destroy(REF)
    cloud.lost_races = 2
    await refused(backend, CapacityError)


@pytest.mark.parametrize("late", [False, True])
async def test_a_controller_that_registers_no_service_in_time_is_looked_for_and_tried_once_more(
    late: bool, backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    """Seen with real SkyPilot on a machine with too much to do."""
    cloud.unregistered, cloud.registers_late = 1, late
    assert (await deploy(backend)).url
    assert list(cloud.services) == [REF.name]
    await backend.destroy(REF)
    cloud.unregistered, cloud.registers_late = 2, False
    assert "deploy again" in str((await refused(backend, UnclearError)).hint)


async def test_a_quota_is_said_to_be_one(backend: SkyServeBackend, cloud: FakeSkyPilot) -> None:
    cloud.quota = False
    assert "quota" in str((await refused(backend, CapacityError)).hint)


async def test_a_missing_rsync_is_said_with_its_package(backend: SkyServeBackend, cloud: FakeSkyPilot) -> None:
    cloud.no_rsync = True
    assert "apt-get install rsync" in str((await refused(backend, BackendError)).hint)


async def test_an_api_server_that_is_away_is_an_error_and_nothing_is_gone(
    backend: SkyServeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes.skypilot import enter

    enter(monkeypatch.setenv, "http://user:hidden@127.0.0.1:9")
    for call in (backend.list_owned(), backend.status(REF), backend.destroy(REF)):
        with pytest.raises(BackendError) as raised:
            await call
        assert "no SkyPilot API server answers at http://127.0.0.1:9" in raised.value.message
        assert "hidden" not in str(raised.value.lines())


async def test_a_server_without_internet_can_not_tell_and_nothing_is_gone(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    await deploy(backend)
    cloud.offline = True
    for call in (backend.list_owned(), backend.status(REF), backend.destroy(REF)):
        with pytest.raises(BackendError, match="network error"):
            await call
    cloud.offline = False
    assert [ref.name for ref in await backend.list_owned()] == [REQUEST.name]


@pytest.mark.parametrize("controller", [None, "STOPPED"])
async def test_without_a_controller_there_are_no_services(
    backend: SkyServeBackend, cloud: FakeSkyPilot, controller: str | None
) -> None:
    cloud.controller = controller
    assert await backend.list_owned() == []
    assert (await backend.status(REF)).state is State.GONE
    await backend.destroy(REF)
    await deploy(backend)
    assert cloud.controller == "UP"


async def test_a_controller_that_is_not_up_yet_is_never_read_as_empty(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    endpoint = await deploy(backend)
    cloud.controller = "INIT"
    for call in (backend.list_owned(), backend.status(endpoint.ref), backend.auth(endpoint.ref)):
        with pytest.raises(BackendError, match="No live services"):
            await call
    destroying = asyncio.create_task(backend.destroy(endpoint.ref))
    await asyncio.wait({destroying}, timeout=0.5)
    assert not destroying.done()
    cloud.controller = "UP"
    await destroying
    assert cloud.services == {}


async def test_a_service_that_can_not_be_removed_is_purged_and_that_is_said(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    endpoint = await deploy(backend)
    cloud.sticks = True
    with pytest.raises(BackendError, match="purged") as raised:
        await backend.destroy(endpoint.ref)
    assert f"{REQUEST.name}-<number>" in str(raised.value.hint)
    assert (await backend.status(endpoint.ref)).state is State.GONE
    await backend.destroy(endpoint.ref)


async def test_a_deploy_that_is_cancelled_is_cancelled_at_the_server(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    cloud.up_s = 3600
    deploying = asyncio.create_task(deploy(backend))
    await until(lambda: "POST /serve/up" in cloud.faults.calls)
    deploying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deploying
    assert cloud.cancelled == ["serve.up"]
    await backend.destroy(REF)
    assert cloud.services == {}


async def test_what_a_lost_creation_makes_a_little_later_is_removed_too(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    cloud.up_s = 0.3
    cloud.faults.order(Fault(drops=True, acts=True), "POST /serve/up")
    with contextlib.suppress(BackendError):
        await deploy(backend)
    slow = SkyServeBackend(pace=1, timeout_s=30)
    slow._unsettled = backend._unsettled
    slow.poll_s = 0.1  # type: ignore[misc]
    if slow._unsettled:
        slow._unsettled = {name: at - 25 for name, at in slow._unsettled.items()}
    await slow.destroy(REF)
    assert cloud.services == {}


async def test_an_engine_that_ends_has_failed_and_its_log_says_why(backend: SkyServeBackend) -> None:
    engine = Engine(REQUEST.engine.model, args=("--no-such-flag",))
    await deploy(backend, engine=engine, scaling=KEPT_UP)
    await reaches(backend, State.FAILED)
    status = await backend.status(REF)
    assert not status.billing
    assert "log" in status.detail
    lines = [line.text async for line in backend.logs(REF)]
    assert any("--no-such-flag" in line for line in lines)
    assert not any("pid=" in line or "\x1b" in line for line in lines)


async def test_no_machine_at_first_is_tried_again_and_shown(backend: SkyServeBackend, cloud: FakeSkyPilot) -> None:
    await deploy(backend)
    cloud.capacity = False
    await backend.wake(REF)

    async def told() -> bool:
        replicas = (await backend.status(REF)).replicas
        return any("no machine could be had" in replica.detail for replica in replicas)

    await until(told)
    cloud.capacity = True
    await reaches(backend, State.READY)


async def test_a_log_that_is_followed_goes_on_until_nobody_listens(backend: SkyServeBackend) -> None:
    await deploy(backend, scaling=KEPT_UP)
    await reaches(backend, State.READY)
    async with asyncio.timeout(10):
        async for line in backend.logs(REF, follow=True):
            assert line.source == "1"
            break


async def test_the_records_secrets_are_shown_nowhere(
    backend: SkyServeBackend, cloud: FakeSkyPilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_never-to-be-seen")
    endpoint = await deploy(backend, engine=replace(REQUEST.engine, gated=True), scaling=KEPT_UP)
    key = (await backend.auth(endpoint.ref)).headers["Authorization"].removeprefix("Bearer ")
    service = await backend._service(REQUEST.name)
    assert service.task is not None
    assert "hf_never-to-be-seen" in service.task
    for shown in (endpoint, await backend.status(endpoint.ref), await backend.list_owned(), service):
        assert "hf_never-to-be-seen" not in repr(shown)
        assert key not in repr(shown)
    ran = cloud.services[REQUEST.name].task["run"]
    assert key not in ran


async def test_skypilots_own_prints_are_not_seen_and_others_are(
    backend: SkyServeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    deploying = asyncio.create_task(deploy(backend))
    while not deploying.done():
        print("mine")
        await asyncio.sleep(0.01)
    await deploying
    told = capsys.readouterr().out
    assert "mine" in told
    assert "Considered resources" not in told
    asking = asyncio.create_task(backend.list_owned())
    await asyncio.sleep(0)
    with contextlib.redirect_stdout(io.StringIO()) as taken:
        await deploy(backend, name="tuna-second-0123456789-spot")
        print("to whom it was taken over by")
    assert taken.getvalue() == "to whom it was taken over by\n"
    await asking


async def test_an_endpoint_may_come_without_a_scheme(backend: SkyServeBackend, cloud: FakeSkyPilot) -> None:
    cloud.scheme = ""
    assert (await deploy(backend)).url.startswith("http://127.0.0.1:")


async def test_an_idle_controller_can_be_taken_down_and_a_used_one_is_left(
    backend: SkyServeBackend, cloud: FakeSkyPilot
) -> None:
    cloud.clusters = ["sky-serve-controller-abc", "my-own-cluster"]
    assert await backend.remove_shared() == [], "somebody else's service is there"
    cloud.controller = "STOPPED"
    assert await backend.remove_shared() == ["sky-serve-controller-abc"]
    assert cloud.clusters == ["my-own-cluster"]


async def test_a_plan_says_what_the_controller_costs_and_where_the_gpu_is_cheapest(
    backend: SkyServeBackend,
) -> None:
    plan = await backend.plan(replace(REQUEST, scaling=SpotScaling(max_replicas=3)))
    assert plan.price_per_hour_usd == 0.26
    assert plan.worst_case_usd_per_hour == pytest.approx(3 * 0.8048 + 0.192)
    assert any("controller" in note for note in plan.notes)
    assert any("us-east-2" in note for note in plan.notes)
    one = await backend.plan(replace(REQUEST, region="us-east-1"))
    assert one.price_per_hour_usd == 0.33
    assert one.quote is not None
    [file] = Path(os.environ["HOME"]).glob(".sky/catalogs/v*/aws/vms.csv")
    assert one.quote.observed_at == file.stat().st_mtime, "as old as SkyPilot's file"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"gpu": "L40"}, "did you mean 'L4'"),
        ({"gpu_count": 3}, "it has 1, 4"),
        ({"region": "us-east-9"}, "did you mean 'us-east-"),
        ({"gpu": "T4", "options": {"cloud": "gcp"}}, "L4"),
        ({"options": {"cloud": "aws", "disk_gb": "1"}}, "30 to"),
    ],
    ids=str,
)
async def test_what_the_cloud_does_not_sell_is_refused_in_the_plan(
    backend: SkyServeBackend, change: dict[str, Any], hint: str
) -> None:
    with pytest.raises(RequestError) as raised:
        await backend.plan(replace(REQUEST, **change))
    assert hint in str(raised.value.hint)


async def test_a_gpu_without_a_believable_spot_price_has_none(backend: SkyServeBackend) -> None:
    for change in ({"region": "us-west-2"}, {"gpu": "T4"}):
        assert (await backend.plan(replace(REQUEST, **change))).price_per_hour_usd is None
    offers = await backend.prices()
    assert {(o.gpu, o.region) for o in offers} == {("L4", "us-east-1"), ("L4", "us-east-2")}


async def test_without_skypilot_the_check_names_the_extra(
    backend: SkyServeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuna_nb.backends.skyserve import backend as room
    from tuna_nb.backends.skyserve import checks, client

    for module in (room, checks, client):
        monkeypatch.setattr(module, "installed", lambda: False)
    [row] = await backend.check(REQUEST)
    assert row == Check("package", False, "SkyPilot is not installed", "pip install 'tuna-nb[spot]'")
    assert not backend.configured()
    with pytest.raises(BackendError) as raised:
        await backend.list_owned()
    assert raised.value.hint == "pip install 'tuna-nb[spot]'"


@pytest.mark.usefixtures("nobody")
async def test_without_any_account_nothing_is_configured_and_the_check_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = SkyServeBackend()
    assert not backend.configured()
    rows = {row.name: row for row in await backend.check(REQUEST)}
    assert "aws configure" in str(rows["credentials"].fix)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    assert backend.clouds_here() == ("aws",)
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "azureProfile.json").touch()
    assert backend.clouds_here() == ("aws", "azure")


@pytest.mark.usefixtures("nobody")
async def test_azure_beside_container_apps_needs_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: row for row in await SkyServeBackend().check(replace(REQUEST, options={"cloud": "azure"}))}
    assert "azure-mgmt-appcontainers" in rows["azure package"].message
    assert "SKYPILOT_API_SERVER_ENDPOINT" in str(rows["azure package"].fix)


@pytest.mark.usefixtures("nobody")
async def test_where_skypilot_was_never_used_no_server_is_started_to_ask_for_orphans(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tuna_nb.backends.skyserve import client

    def started(*_: object) -> None:
        raise AssertionError("SkyPilot was called")

    monkeypatch.setattr(client, "_thread", started)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    assert await SkyServeBackend().list_owned() == []
    folder = tmp_path / ".sky"
    folder.mkdir()
    for used, text in (("state.db", ""), ("config.yaml", "api_server: {endpoint: http://sky.example}")):
        (folder / used).write_text(text)
        with pytest.raises(AssertionError):
            await SkyServeBackend().list_owned()
        (folder / used).unlink()


@pytest.mark.usefixtures("nobody")
def test_a_server_that_sky_was_logged_in_to_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not SkyServeBackend().configured()
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky" / "config.yaml").write_text("api_server: {endpoint: http://sky.example}")
    assert SkyServeBackend().clouds_here() == ("aws", "gcp", "azure")


def test_the_key_is_derived_kept_and_another_users_is_another(
    monkeypatch: pytest.MonkeyPatch, own_data_folder: Path, tmp_path: Path
) -> None:
    from tuna_nb.backends.skyserve.keys import replica_key

    first = replica_key("a")
    assert first == replica_key("a") != replica_key("b")
    assert first.startswith("tuna-")
    [path] = (own_data_folder / "secrets").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("TUNA_DATA_DIR", str(tmp_path / "other"))
    assert replica_key("a") != first
