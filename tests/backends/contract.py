"""What every backend must do, whoever's it is.

A provider's test module imports `BackendContract` as the base of its test class and gives a fixture `case`: a
backend (its real client or SDK, talking to the provider or to a wire-level fake of it) and a request that it can
meet. Each statement stands for one sentence of `backends/base.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from tuna_nb.backends.base import (
    Auth,
    Backend,
    Endpoint,
    Kind,
    LogLine,
    Ref,
    ServerlessScaling,
    ServiceRequest,
    SpotScaling,
    State,
    Status,
)
from tuna_nb.catalog.gpus import find
from tuna_nb.errors import BackendError, RequestError, TunaError


@dataclass
class Case:
    """backend: under test. request: one that it can meet. within: seconds in which its states must change.
    tells_usage: whether the provider tells billed intervals. tells_charges: whether it has an account to be asked."""

    backend: Backend
    request: ServiceRequest
    within: float = 30
    tells_usage: bool = True
    tells_charges: bool = True

    async def deploy(self) -> Endpoint:
        return await self.backend.deploy(await self.backend.plan(self.request), lambda *_: None)

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + self.within
        while not await condition():
            assert time.monotonic() < deadline, f"not within {self.within} s: {what}"
            await asyncio.sleep(0.05)

    async def until_state(self, ref: Ref, *states: State) -> Status:
        """Its status when it was in one of them, which a quick fake may have left again."""
        seen: list[Status] = []

        async def reached() -> bool:
            seen.append(await self.backend.status(ref))
            return seen[-1].state in states

        await self.until(reached, f"{ref.name} is one of {states}")
        return seen[-1]

    @property
    def unknown(self) -> Ref:
        return Ref(self.backend.name, self.request.kind, "tuna-no-such-resource")


class BackendContract:
    """Give a fixture `case`, which also destroys what is left."""

    # What is asked before anything exists

    async def test_it_names_itself_and_its_kinds(self, case: Case) -> None:
        assert case.backend.name
        assert case.request.kind in case.backend.kinds
        assert all(help_text for help_text in case.backend.options.values())

    async def test_every_check_is_a_row_and_a_failed_one_has_a_fix(self, case: Case) -> None:
        rows = await case.backend.check(case.request)
        assert rows
        for row in rows:
            assert row.name
            assert row.message
            assert row.passed or row.fix
        assert await case.backend.list_owned() == []

    async def test_a_plan_creates_nothing_and_knows_its_worst_case(self, case: Case) -> None:
        plan = await case.backend.plan(case.request)
        assert plan.request == case.request
        assert case.request.name in [r.name for r in plan.resources]
        if plan.price_per_hour_usd is not None:
            assert plan.price_per_hour_usd > 0
            assert plan.worst_case_usd_per_hour is not None
            assert plan.worst_case_usd_per_hour >= plan.price_per_hour_usd
        assert await case.backend.plan(case.request) == plan
        assert await case.backend.list_owned() == []

    async def test_a_request_that_it_can_never_meet_is_refused_in_the_plan(self, case: Case) -> None:
        with pytest.raises(RequestError):
            await case.backend.plan(replace(case.request, gpu="NO_SUCH_GPU"))
        with pytest.raises(RequestError):
            await case.backend.plan(replace(case.request, options={"no_such_option": "1"}))

    async def test_prices_are_dated_sourced_and_positive(self, case: Case) -> None:
        offers = await case.backend.prices()
        assert offers
        for offer in offers:
            assert offer.provider in (case.backend.clouds or (case.backend.name,))
            assert offer.kind in case.backend.kinds
            assert offer.price_per_hour_usd is not None
            assert offer.price_per_hour_usd > 0
            assert find(offer.gpu).name == offer.gpu
            assert offer.observed_at > 0
            assert offer.source

    # One resource's life

    async def test_a_deployed_resource_is_listed_with_its_deployment(self, case: Case) -> None:
        endpoint = await case.deploy()
        assert endpoint.url.startswith(("http://", "https://"))
        assert not endpoint.url.endswith("/")
        [ref] = await case.backend.list_owned()
        assert (ref.name, ref.kind) == (case.request.name, case.request.kind)
        assert ref.deployment_id == case.request.deployment_id
        status = await case.backend.status(ref)
        assert status.state is not State.GONE
        assert status.endpoint_url == endpoint.url

    async def test_deploying_the_same_plan_again_finds_what_is_there(self, case: Case) -> None:
        first = await case.deploy()
        assert await case.deploy() == first
        assert len(await case.backend.list_owned()) == 1

    async def test_a_resource_is_found_by_name_alone(self, case: Case) -> None:
        endpoint = await case.deploy()
        by_name = Ref(case.backend.name, case.request.kind, case.request.name)
        assert (await case.backend.status(by_name)).ref.id == endpoint.ref.id
        await case.backend.destroy(by_name)
        assert await case.backend.list_owned() == []

    async def test_its_headers_open_it_and_nothing_else_does(self, case: Case) -> None:
        import httpx

        endpoint = await case.deploy()
        auth = await case.backend.auth(endpoint.ref)
        assert isinstance(auth, Auth)
        await case.backend.wake(endpoint.ref)
        await case.until_state(endpoint.ref, State.READY)
        body = {"model": case.request.engine.model, "prompt": "hi", "max_tokens": 1}
        async with httpx.AsyncClient(base_url=endpoint.url, timeout=case.within) as http:
            assert (await http.post("/v1/completions", json=body)).status_code in (401, 403)
            opened = await http.post("/v1/completions", json=body, headers=dict(auth.headers))
            assert opened.status_code == 200
        for value in auth.headers.values():
            assert value not in repr(auth)

    async def test_what_runs_is_billed_and_usage_says_since_when(self, case: Case) -> None:
        asked = time.time()
        endpoint = await case.deploy()
        await case.backend.wake(endpoint.ref)
        status = await case.until_state(endpoint.ref, State.READY)
        assert status.billing
        if not case.tells_usage:
            with pytest.raises(BackendError):
                await case.backend.usage(endpoint.ref)
            return
        plan = await case.backend.plan(case.request)
        [interval] = await case.backend.usage(endpoint.ref)
        assert interval.replica_id in [r.id for r in status.replicas]
        assert asked - 1 <= interval.started_at <= time.time()
        assert interval.ended_at is None
        assert interval.ready_at is None or interval.started_at <= interval.ready_at <= time.time()
        assert interval.price_per_hour_usd == plan.price_per_hour_usd
        await case.backend.destroy(endpoint.ref)
        [interval] = await case.backend.usage(endpoint.ref)
        assert interval.ended_at is not None
        assert interval.ended_at >= interval.started_at

    async def test_an_account_tells_what_is_ours_alone_or_where_to_look(self, case: Case) -> None:
        endpoint = await case.deploy()
        await case.backend.wake(endpoint.ref)
        await case.until_state(endpoint.ref, State.READY)
        span = time.time() - 3600, time.time() + 3600
        if not case.tells_charges:
            with pytest.raises(BackendError) as raised:
                await case.backend.charges(endpoint.ref, *span)
            assert raised.value.hint
            return
        await case.backend.destroy(endpoint.ref)
        [interval] = await case.backend.usage(endpoint.ref)
        [charge] = await case.backend.charges(endpoint.ref, *span)
        assert (charge.started_at, charge.ended_at) == (interval.started_at, interval.ended_at)
        assert charge.usd > 0
        assert charge.what
        assert await case.backend.charges(endpoint.ref, 0, 3600) == []
        assert await case.backend.charges(case.unknown, *span) == []

    async def test_it_scales_in_place(self, case: Case) -> None:
        endpoint = await case.deploy()
        more = (
            ServerlessScaling(workers_min=1, workers_max=1)
            if case.request.kind is Kind.SERVERLESS
            else SpotScaling(min_replicas=1, max_replicas=1)
        )
        await case.backend.scale(endpoint.ref, more)
        assert (await case.until_state(endpoint.ref, State.READY)).endpoint_url == endpoint.url

    async def test_logs_are_in_order_of_time_and_start_where_asked(self, case: Case) -> None:
        endpoint = await case.deploy()
        await case.backend.wake(endpoint.ref)
        await case.until_state(endpoint.ref, State.READY)
        lines = [line async for line in case.backend.logs(endpoint.ref)]
        assert lines
        assert all(isinstance(line, LogLine) for line in lines)
        assert [line.at for line in lines] == sorted(line.at for line in lines)
        assert [x async for x in case.backend.logs(endpoint.ref, since=time.time() + 3600)] == []

    # Its end

    async def test_destroy_returns_when_a_fresh_listing_lacks_it(self, case: Case) -> None:
        endpoint = await case.deploy()
        await case.backend.wake(endpoint.ref)
        await case.backend.destroy(endpoint.ref)
        assert await case.backend.list_owned() == []
        status = await case.backend.status(endpoint.ref)
        assert status.state is State.GONE
        assert not status.billing
        assert status.replicas == ()

    async def test_destroying_twice_or_what_never_was_is_success(self, case: Case) -> None:
        endpoint = await case.deploy()
        await asyncio.gather(case.backend.destroy(endpoint.ref), case.backend.destroy(endpoint.ref))
        await case.backend.destroy(endpoint.ref)
        await case.backend.destroy(case.unknown)

    async def test_what_is_not_there_is_gone_and_can_not_be_changed(self, case: Case) -> None:
        assert (await case.backend.status(case.unknown)).state is State.GONE
        for call in (case.backend.wake(case.unknown), case.backend.auth(case.unknown)):
            with pytest.raises(TunaError):
                await call
