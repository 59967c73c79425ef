"""What a backend of a real provider must do beyond the contract: survive what networks and providers do.

A provider's test class has `CloudContract` for its base, and a fixture `case` that gives a `CloudCase`: the adapter
with its real SDK or our HTTP client, and the fake of its provider that it talks to.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.backends.contract import BackendContract, Case
from tests.fakes.cloud import FakeCloud
from tests.fakes.faults import Fault
from tuna_nb.backends.base import Backend, Ref, State
from tuna_nb.errors import BackendError, CredentialsError, TunaError

DAY_S = 86400.0
SECRET = "hf_never-to-be-seen"
"""The Hugging Face token of every test here."""


@dataclass
class CloudCase(Case):
    """fresh: another adapter for the same provider, as after a crash. hasty: one that waits for half a second for
    an answer, at most. refused: one whose key the provider does not take.

    create, listing: how the fake names the call that creates, and the one that lists. names: of everything at the
    provider, others' resources included; sent: everything that the provider was sent so far, as text.
    books: puts an amount at a time (Unix seconds) on the provider's account, for our resource or, for None, for
    somebody else's; None where the provider has no account to be asked. account: how the fake names that call.
    marked_up: so many times the booked amount is on the account, where other lines go with it.
    """

    cloud: FakeCloud = field(kw_only=True)
    fresh: Callable[[], Backend] = field(kw_only=True)
    hasty: Callable[[], Backend] = field(kw_only=True)
    refused: Callable[[], Backend] = field(kw_only=True)
    create: str = field(kw_only=True)
    listing: str = field(kw_only=True)
    names: Callable[[], list[str]] = field(kw_only=True)
    sent: Callable[[], str] = field(kw_only=True)
    tells_usage: bool = False
    books: Callable[[Ref | None, float, str], None] | None = None
    account: str = ""
    marked_up: float = 1.0

    @property
    def ref(self) -> Ref:
        return Ref(self.backend.name, self.request.kind, self.request.name)

    async def raises(self, error: type[TunaError], call: Any) -> TunaError:
        with pytest.raises(error) as raised:
            await call
        return raised.value


class CloudContract(BackendContract):
    """Give a fixture `case` with a `CloudCase`."""

    async def test_an_account_tells_what_is_ours_alone_or_where_to_look(self, case: CloudCase) -> None:
        endpoint = await case.deploy()
        day = time.time() // DAY_S * DAY_S - 2 * DAY_S
        if case.books is None:
            error = await case.raises(BackendError, case.backend.charges(endpoint.ref, day, day + DAY_S))
            assert error.hint == case.backend.invoice
            return
        for ref, at, usd in (
            (endpoint.ref, day + 3600, "1.25"),
            (endpoint.ref, day + 7300, "0.5"),
            (None, day + 3600, "99.9"),
            (endpoint.ref, day - 3 * DAY_S, "7"),
        ):
            case.books(ref, at, usd)
        for ask in (case.backend, case.fresh()):
            charges = await ask.charges(endpoint.ref, day, day + DAY_S)
            assert math.fsum(c.usd for c in charges) == pytest.approx(1.75 * case.marked_up)
            for charge in charges:
                assert charge.started_at < min(charge.ended_at, day + DAY_S)
                assert charge.ended_at > day
                assert charge.what
            assert await ask.charges(endpoint.ref, day - 30 * DAY_S, day - 20 * DAY_S) == []
            await case.backend.destroy(endpoint.ref)

    @pytest.mark.parametrize(
        "fault",
        [Fault(500), Fault(429, headers={"Retry-After": "0"}), Fault(drops=True), Fault(403)],
        ids=["500", "429", "cut", "403"],
    )
    async def test_an_account_that_can_not_be_asked_is_never_a_free_one(
        self, case: CloudCase, fault: Fault
    ) -> None:
        endpoint = await case.deploy()
        now = time.time()
        if case.books is None:
            error = await case.raises(BackendError, case.backend.charges(endpoint.ref, now - DAY_S, now))
            assert error.hint == case.backend.invoice
            return
        case.books(endpoint.ref, now - DAY_S, "1.25")
        case.cloud.faults.order(fault, case.account, times=10**6)
        asked = case.backend.charges(endpoint.ref, now - 2 * DAY_S, now)
        error = await case.raises(CredentialsError if fault.status == 403 else BackendError, asked)
        assert error.hint
        case.cloud.faults.clear()
        assert len(await case.backend.charges(endpoint.ref, now - 2 * DAY_S, now)) == 1

    async def test_a_refused_key_is_said_with_the_step_that_mends_it(self, case: CloudCase) -> None:
        await case.deploy()
        backend = case.refused()
        rows = await backend.check(case.request)
        assert not all(row.passed for row in rows)
        for call in (
            backend.list_owned(),
            backend.status(case.ref),
            backend.destroy(case.ref),
            backend.deploy(await case.backend.plan(case.request), lambda *_: None),
        ):
            error = await case.raises(CredentialsError, call)
            assert error.hint
        assert len(await case.backend.list_owned()) == 1

    @pytest.mark.parametrize("fault", [Fault(500), Fault(503), Fault(drops=True)], ids=["500", "503", "cut"])
    async def test_an_error_is_never_read_as_empty_or_gone(self, case: CloudCase, fault: Fault) -> None:
        endpoint = await case.deploy()
        case.cloud.faults.order(fault, times=10**6)
        for call in (
            case.backend.list_owned(),
            case.backend.status(endpoint.ref),
            case.backend.destroy(endpoint.ref),
            case.fresh().status(case.ref),
        ):
            await case.raises(BackendError, call)
        case.cloud.faults.clear()
        assert len(await case.backend.list_owned()) == 1

    async def test_a_provider_that_does_not_answer_is_an_error_in_time(self, case: CloudCase) -> None:
        await case.deploy()
        backend = case.hasty()
        case.cloud.faults.order(Fault(hangs=True), times=10**6)
        began = time.monotonic()
        await case.raises(BackendError, backend.list_owned())
        await case.raises(BackendError, backend.status(case.ref))
        assert time.monotonic() - began < 60
        case.cloud.faults.clear()
        assert len(await case.backend.list_owned()) == 1

    async def test_a_passing_error_is_waited_out(self, case: CloudCase) -> None:
        case.cloud.faults.order(Fault(503), case.listing, times=2)
        assert await case.backend.list_owned() == []

    async def test_a_rate_limit_is_honoured_and_never_answered_by_a_storm(self, case: CloudCase) -> None:
        await case.deploy()
        before = len(case.cloud.faults.calls)
        case.cloud.faults.order(Fault(429, headers={"Retry-After": "0.2"}), case.listing, times=1)
        began = time.monotonic()
        assert len(await case.backend.list_owned()) == 1
        assert time.monotonic() - began >= 0.2
        case.cloud.faults.order(Fault(429, headers={"Retry-After": "0"}), times=10**6)
        await case.raises(BackendError, case.backend.list_owned())
        assert len(case.cloud.faults.calls) - before < 30

    async def test_a_create_whose_answer_got_lost_is_found_and_not_repeated(self, case: CloudCase) -> None:
        for fault in (Fault(drops=True, acts=True), Fault(500, acts=True)):
            case.cloud.faults.order(fault, case.create)
            endpoint = await case.deploy()
            assert [ref.name for ref in await case.backend.list_owned()] == [case.request.name]
            assert case.names().count(case.request.name) == 1
            await case.backend.destroy(endpoint.ref)

    async def test_a_create_that_is_refused_leaves_nothing_and_has_the_providers_words(
        self, case: CloudCase
    ) -> None:
        case.cloud.faults.order(Fault(400, message="the zebra is not allowed"), case.create, times=10**6)
        error = await case.raises(BackendError, case.deploy())
        assert "the zebra is not allowed" in error.message
        case.cloud.faults.clear()
        await case.backend.destroy(case.ref)
        assert await case.backend.list_owned() == []

    @pytest.mark.parametrize("number", range(1, 9))
    async def test_what_a_crash_after_any_call_left_is_found_by_its_name_and_removed(
        self, case: CloudCase, number: int
    ) -> None:
        """The caller dies after the `number`th call has been carried out: its answer never comes."""
        case.cloud.faults.after(number, Fault(hangs=True, acts=True))
        deploying = asyncio.create_task(case.deploy())
        seen = len(case.cloud.faults.calls)
        while not deploying.done() and len(case.cloud.faults.calls) < seen + number:
            await asyncio.sleep(0.005)
        await asyncio.wait({deploying}, timeout=0.1)
        deploying.cancel()
        case.cloud.faults.clear()
        await asyncio.gather(deploying, return_exceptions=True)
        again = case.fresh()
        assert {ref.name for ref in await again.list_owned()} <= {case.request.name}
        await again.deploy(await again.plan(case.request), lambda *_: None)
        assert [ref.name for ref in await again.list_owned()] == [case.request.name]
        await again.destroy(case.ref)
        assert await again.list_owned() == []

    async def test_what_others_have_there_is_neither_listed_nor_touched(self, case: CloudCase) -> None:
        others = [name for name in case.names() if name != case.request.name]
        assert others, "the fake has something of somebody else's"
        endpoint = await case.deploy()
        assert [ref.name for ref in await case.backend.list_owned()] == [case.request.name]
        await case.backend.destroy(endpoint.ref)
        assert [name for name in case.names() if name in others] == others

    async def test_the_hugging_face_token_is_in_no_command_line_and_no_plan(
        self, case: CloudCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", SECRET)
        request = replace(case.request, engine=replace(case.request.engine, gated=True))
        plan = await case.backend.plan(request)
        assert SECRET not in repr(plan)
        said: list[str] = []
        await case.backend.deploy(plan, lambda text, _: said.append(text))
        assert SECRET not in " ".join(said)
        assert SECRET not in case.sent(), "it may be sent as the provider's own secret, and in no other way"
        await case.backend.destroy(case.ref)

    async def test_a_cold_service_costs_nothing_and_shows_it(self, case: CloudCase) -> None:
        endpoint = await case.deploy()
        assert not (await case.until_state(endpoint.ref, State.IDLE)).billing

    async def test_checks_pass_and_create_nothing_where_all_is_well(self, case: CloudCase) -> None:
        before = case.names()
        rows = await case.backend.check(case.request)
        assert [row for row in rows if not row.passed] == []
        assert case.names() == before

    async def test_an_account_in_the_environment_makes_it_configured(self, case: CloudCase) -> None:
        asked = len(case.cloud.faults.calls)
        assert case.backend.configured()
        assert len(case.cloud.faults.calls) == asked
