"""A source of prices that can't answer says so, by name; it never has nothing for sale."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.catalog.sources.asking import LIVE, Kind, fault, offers
from tests.fakes.faults import Fault
from tests.fakes.pricelist import GATEWAY, HTML, REFUSED, TOO_OFTEN, FakePrices, Said
from tuna_nb.catalog.sources.base import Source
from tuna_nb.errors import CredentialsError


@pytest.fixture(params=LIVE)
def kind(request: pytest.FixtureRequest) -> Kind:
    return LIVE[request.param]


@pytest.fixture
def fake(kind: Kind) -> Iterator[FakePrices]:
    with kind.fake() as fake:
        yield fake


@pytest.fixture
def source(kind: Kind, fake: FakePrices) -> Source:
    return kind.at(fake.url, kind.key or "")


def test_the_right_answer_is_offers_with_their_date_and_source(source: Source) -> None:
    found = offers(source)
    assert found
    for offer in found:
        assert abs(time.time() - offer.observed_at) < 60
        assert offer.source
        assert offer.price_per_hour_usd is None or offer.price_per_hour_usd > 0
        assert offer.price_per_hour_usd is not None or offer.note


def test_unreachable(kind: Kind) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        said = fault(kind.at(f"http://me:secret@127.0.0.1:{port}", kind.key or ""))
    assert f"no connection to http://127.0.0.1:{port}" in str(said)
    assert "secret" not in str(said)


def test_slow_beyond_its_time_out(source: Source, fake: FakePrices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(source), "timeout_s", 0.3)
    fake.faults.order(Fault(hangs=True), times=9)
    assert "no answer within 0.3 s" in str(fault(source))
    fake.faults.clear()


def test_dripping_beyond_its_time_out(source: Source, fake: FakePrices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(source), "timeout_s", 0.3)
    fake.drips = True
    assert "no answer within 0.3 s" in str(fault(source))


def test_an_answer_that_breaks_off(source: Source, fake: FakePrices) -> None:
    fake.faults.order(Fault(drops=True), times=9)
    assert "broke off" in str(fault(source))


def test_rate_limited_in_plain_text(source: Source, fake: FakePrices) -> None:
    fake.instead = TOO_OFTEN
    assert "rate-limited (429)" in str(fault(source))


@pytest.mark.parametrize("page", [HTML, GATEWAY], ids=["200", "502"])
def test_html(source: Source, fake: FakePrices, page: Said) -> None:
    fake.instead = page
    said = str(fault(source))
    assert "HTML" in said if page.status == 200 else "it answered 502" in said
    assert "<" not in said


def test_another_shape_of_json(source: Source, fake: FakePrices) -> None:
    for body in (b"[]", b"null", b'"hello"', b"{}", b'{"offers": 3, "data": {"locations": 3}, "skus": {}}'):
        fake.instead = Said(200, body, "application/json")
        assert "changed" in str(fault(source))


def test_nothing_for_sale_is_a_fault_too(source: Source, fake: FakePrices) -> None:
    empty = b'{"offers": [], "data": {"locations": []}, "skus": []}'
    fake.instead = Said(200, empty, "application/json")
    assert "changed" in str(fault(source))


def test_a_refused_key_is_not_told(source: Source, fake: FakePrices, kind: Kind) -> None:
    fake.instead = REFUSED
    said = fault(source)
    assert isinstance(said, CredentialsError) == (kind.key is not None)
    assert "403" in str(said)
    assert kind.key is None or kind.key not in f"{said} {said.hint} {said.__cause__} {said.__context__}"


def test_a_key_that_is_repeated_to_us_is_not_told(source: Source, fake: FakePrices, kind: Kind) -> None:
    for status in (200, 500):
        body = {"status": 500, "error": f"what is {kind.key}?"}
        fake.instead = Said(status, json.dumps(body).encode(), "application/json")
        said = fault(source)
        assert kind.key is None or kind.key not in f"{said} {said.hint}"


def test_no_key_is_ever_in_a_url(source: Source, fake: FakePrices, kind: Kind) -> None:
    offers(source)
    assert fake.asked
    for asked in fake.asked:
        assert kind.key is None or kind.key not in asked.path + asked.query
        assert kind.key is None or any(kind.key in value for value in asked.headers.values())


@pytest.mark.parametrize("broken", ["half of\na key", "clé", "\x00key"])
@pytest.mark.parametrize("name", [name for name in LIVE if LIVE[name].key])
def test_a_key_that_can_not_be_sent_is_not_told(name: str, broken: str) -> None:
    said = fault(LIVE[name].at("http://127.0.0.1:9", broken))
    assert isinstance(said, CredentialsError)
    assert broken not in f"{said} {said.hint} {said.__cause__} {said.__context__}"
