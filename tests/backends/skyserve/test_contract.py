"""SkyServe: the real `sky` client against a pretend API server, over loopback."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.backends.cloud_contract import CloudCase, CloudContract
from tests.backends.skyserve.requests import REQUEST
from tests.fakes.faults import Fault
from tests.fakes.skypilot import OTHERS, FakeSkyPilot
from tuna_nb.backends.base import Ref, SpotScaling, State
from tuna_nb.backends.skyserve.backend import SkyServeBackend
from tuna_nb.errors import BackendError, CredentialsError


def backend(**change: Any) -> SkyServeBackend:
    return SkyServeBackend(**{"pace": 0.02, "timeout_s": 30.0, **change})


def sent(cloud: FakeSkyPilot) -> str:
    """All but SkyPilot's own secrets, which go to the replica's environment."""
    import yaml

    told = []
    for body in cloud.bodies:
        kept = dict(body)
        for part in ("task", "dag"):
            if part in kept:
                documents = [d for d in yaml.safe_load_all(kept[part]) if d]
                kept[part] = [{k: v for k, v in d.items() if k != "secrets"} for d in documents]
        told.append(kept)
    return json.dumps(told)


def book(cloud: FakeSkyPilot, machine: str, at: float, usd: float) -> None:
    cloud.machines.append({"name": machine, "usage_intervals": [[int(at), int(at) + 600]], "total_cost": usd})


@pytest.fixture
def case(cloud: FakeSkyPilot) -> CloudCase:
    return CloudCase(
        backend(),
        REQUEST,
        cloud=cloud,
        fresh=backend,
        hasty=lambda: backend(timeout_s=0.5),
        refused=backend,
        create="POST /serve/up",
        listing="POST /serve/status",
        names=lambda: cloud.names,
        sent=lambda: sent(cloud),
        books=lambda ref, at, usd: book(cloud, f"{ref.name if ref else OTHERS}-1", at, float(usd)),
        account="POST /cost_report",
    )


class TestSkyServe(CloudContract):
    """SkyServe keeps the contract, as far as SkyPilot lets it."""

    async def test_a_refused_key_is_said_with_the_step_that_mends_it(self, case: CloudCase) -> None:
        """An API server that wants a login. There is one for all of a process: it is refused for a while."""
        await case.deploy()
        plan = await case.backend.plan(case.request)
        case.cloud.faults.order(Fault(401), times=10**6)
        rows = await case.refused().check(case.request)
        assert not all(row.passed for row in rows)
        for call in (
            case.backend.list_owned(),
            case.backend.status(case.ref),
            case.backend.destroy(case.ref),
            case.backend.deploy(plan, lambda *_: None),
        ):
            error = await case.raises(CredentialsError, call)
            assert error.hint == "sky api login"
        case.cloud.faults.clear()
        assert len(await case.backend.list_owned()) == 1

    @pytest.mark.parametrize("fault", [Fault(500), Fault(drops=True)], ids=["500", "cut"])
    async def test_an_error_is_never_read_as_empty_or_gone(self, case: CloudCase, fault: Fault) -> None:
        await super().test_an_error_is_never_read_as_empty_or_gone(case, fault)

    async def test_a_server_that_is_busy_for_good_is_an_error_in_time(self, case: CloudCase) -> None:
        """SkyPilot's client asks again for ten minutes; we don't."""
        await case.deploy()
        case.cloud.faults.order(Fault(503), times=10**6)
        began = time.monotonic()
        await case.raises(BackendError, backend(timeout_s=1).list_owned())
        await case.raises(BackendError, backend(timeout_s=1).status(case.ref))
        assert time.monotonic() - began < 20

    async def test_a_passing_error_is_waited_out(self, case: CloudCase) -> None:
        case.cloud.faults.order(Fault(500), case.listing, times=2)
        assert await case.backend.list_owned() == []
        case.cloud.faults.order(Fault(503), case.listing, times=1)
        assert await case.backend.list_owned() == []

    async def test_the_endpoint_is_a_balancer_before_replicas_with_addresses(self, case: CloudCase) -> None:
        import httpx

        endpoint = await case.deploy()
        assert endpoint.balances
        assert endpoint.traffic_url == f"{endpoint.url}/health"
        await case.backend.scale(endpoint.ref, SpotScaling(min_replicas=1, max_replicas=1))
        await case.until_state(endpoint.ref, State.READY)
        [replica] = (await case.backend.status(endpoint.ref)).replicas
        assert replica.url != endpoint.url
        assert replica.region == "us-east-1"
        assert "us-east-1b" in replica.detail
        headers = dict((await case.backend.auth(endpoint.ref)).headers)
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{replica.url}/v1/models", headers=headers)).status_code == 200
            assert (await http.get(f"{replica.url}/v1/models")).status_code == 401
            assert (await http.get(str(replica.notice_url), headers=headers)).status_code == 204
            assert (await http.get(str(replica.notice_url))).status_code == 401

    async def test_a_booting_service_is_starting_and_an_idle_one_is_idle(self, case: CloudCase) -> None:
        endpoint = await case.deploy()
        assert (await case.backend.status(endpoint.ref)).state is State.IDLE
        assert isinstance(case.cloud, FakeSkyPilot)
        case.cloud.boot_s = 0.5
        await case.backend.wake(endpoint.ref)
        seen: set[State] = set()

        async def ready() -> bool:
            seen.add((await case.backend.status(endpoint.ref)).state)
            return State.READY in seen

        await case.until(ready, "ready")
        assert seen <= {State.STARTING, State.READY}

    async def test_scaling_keeps_the_replicas_that_run(self, case: CloudCase) -> None:
        endpoint = await case.deploy()
        await case.backend.scale(endpoint.ref, SpotScaling(min_replicas=1, max_replicas=1))
        await case.until_state(endpoint.ref, State.READY)
        before = (await case.backend.status(endpoint.ref)).replicas
        await case.backend.scale(endpoint.ref, SpotScaling(min_replicas=1, max_replicas=3))
        after = (await case.backend.status(endpoint.ref)).replicas
        assert [r.url for r in after] == [r.url for r in before]
        assert after[0].state is State.READY

    async def test_a_preempted_replica_is_replaced(self, case: CloudCase) -> None:
        endpoint = await case.deploy()
        await case.backend.scale(endpoint.ref, SpotScaling(min_replicas=1, max_replicas=1))
        await case.until_state(endpoint.ref, State.READY)
        [first] = (await case.backend.status(endpoint.ref)).replicas
        assert isinstance(case.cloud, FakeSkyPilot)
        case.cloud.preempt(case.request.name)
        await case.until_state(endpoint.ref, State.READY)
        [second] = (await case.backend.status(endpoint.ref)).replicas
        assert second.url != first.url

    async def test_a_ref_by_name_is_enough_on_another_machine_too(
        self, case: CloudCase, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = await case.deploy()
        key = (await case.backend.auth(endpoint.ref)).headers
        monkeypatch.setenv("TUNA_DATA_DIR", str(tmp_path / "another"))
        assert (await backend().auth(Ref("skyserve", REQUEST.kind, REQUEST.name))).headers == key

    async def test_a_second_plan_of_the_same_name_is_the_first(self, case: CloudCase) -> None:
        endpoint = await case.deploy()
        changed = replace(case.request, scaling=SpotScaling(max_replicas=4))
        assert await backend().deploy(await backend().plan(changed), lambda *_: None) == endpoint

    async def test_its_account_is_an_estimate_shared_out_over_the_times_up(self, case: CloudCase) -> None:
        assert isinstance(case.cloud, FakeSkyPilot)
        now = int(time.time())
        names = (f"{case.request.name}-1", f"{case.request.name}-1-1", f"{case.request.name}x-1")
        spans = [[now - 7200, now - 3600], [now - 1800, None]]
        case.cloud.machines += [{"name": n, "usage_intervals": spans, "total_cost": 0.9} for n in names]
        charges = await case.backend.charges(case.ref, now - 86_400, now + 60)
        assert [c.started_at for c in charges] == [now - 7200, now - 1800]
        assert [c.usd for c in charges] == pytest.approx([0.6, 0.3], rel=0.01)
        assert all("estimate" in c.what for c in charges)
        assert len(await case.backend.charges(case.ref, now - 60, now)) == 1

    async def test_a_machine_of_unknown_price_is_not_free(self, case: CloudCase) -> None:
        """SkyPilot tells 0 where it has no price."""
        assert isinstance(case.cloud, FakeSkyPilot)
        book(case.cloud, f"{case.request.name}-1", time.time() - 3600, 0.0)
        error = await case.raises(BackendError, case.backend.charges(case.ref, time.time() - 86_400, time.time()))
        assert "no price" in error.message

    async def test_machines_in_the_controllers_own_book_are_not_free(self, case: CloudCase) -> None:
        assert isinstance(case.cloud, FakeSkyPilot)
        book(case.cloud, "sky-serve-controller-0123", time.time() - 3600, 3.0)
        await case.deploy()
        error = await case.raises(BackendError, case.backend.charges(case.ref, time.time() - 86_400, time.time()))
        assert "Cost Explorer" in str(error.hint)
