"""Sources of prices side by side: one that fails, dawdles or lies costs the others nothing, and itself only its news."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.catalog.offering import NOW, offer
from tuna_nb.catalog import kept
from tuna_nb.catalog.kept import Kept
from tuna_nb.catalog.listing import Answer, SourceReport
from tuna_nb.catalog.market import SNAPSHOT, Answers, Market, newest
from tuna_nb.catalog.offers import Billing, Lines, Offer, OfferKind
from tuna_nb.catalog.sources.base import Source
from tuna_nb.errors import BackendError, CredentialsError


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Shop(Source):
    """A source that says what it is told to."""

    def __init__(self, name: str, say: Callable[[], list[Offer]] | Exception | None = None) -> None:
        self.name = name
        self.say = say
        self.asked = 0
        self.gate: asyncio.Event | None = None
        self.missing: str | None = None

    def lacks(self) -> str | None:
        return self.missing

    async def fetch(self) -> list[Offer]:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.say, Exception):
            raise self.say
        return [offer(self.name)] if self.say is None else self.say()


class Files(Shop):
    local = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def market(tmp_path: Path, clock: Clock) -> Market:
    return Market(tmp_path / "prices", clock)


def report(answers: Answers, name: str) -> SourceReport:
    return next(r for r in answers.reports if r.name == name)


def sold(answers: Answers, name: str) -> list[float | None]:
    return [o.price_per_hour_usd for o in answers.offers if o.provider == name]


async def test_without_live_nobody_is_asked_and_the_snapshot_is_there(market: Market) -> None:
    shop = Shop("acme")
    answers = await market.ask([shop], live=False)
    assert shop.asked == 0
    assert answers.offers
    assert all(o.snapshot for o in answers.offers)
    assert [r.name for r in answers.reports] == [SNAPSHOT]


async def test_what_was_said_is_kept_for_the_next_process(market: Market, tmp_path: Path, clock: Clock) -> None:
    shop = Shop("acme")
    first = await market.ask([shop], live=True)
    assert (report(first, "acme").answer, sold(first, "acme")) == (Answer.FRESH, [1.0])
    assert [o.provider for o in first.fresh] == ["acme"]
    other = Market(tmp_path / "prices", clock)
    again = await other.ask([Shop("acme")], live=False)
    assert sold(again, "acme") == [1.0]
    assert again.fresh == ()
    assert (tmp_path / "prices").stat().st_mode & 0o077 == 0


async def test_a_fresh_answer_is_not_asked_for_again(market: Market, clock: Clock) -> None:
    shop = Shop("acme")
    await market.ask([shop], live=True)
    clock.now += shop.fresh_s * 0.7
    await market.ask([shop], live=True)
    assert shop.asked == 1
    clock.now += shop.fresh_s
    assert report(await market.ask([shop], live=False), "acme").answer is Answer.KEPT
    await market.ask([shop], live=True)
    assert shop.asked == 2


async def test_shortly_before_it_is_old_it_is_renewed_while_nobody_waits(market: Market, clock: Clock) -> None:
    shop = Shop("acme")
    await market.ask([shop], live=True)
    clock.now += shop.fresh_s * 0.8
    shop.gate = asyncio.Event()
    shop.say = lambda: [offer("acme", usd=2.0)]
    answers = await market.ask([shop], live=True, patience_s=30)
    assert sold(answers, "acme") == [1.0], "the caller has what there is at once"
    await asyncio.sleep(0)
    assert shop.asked == 2
    shop.gate.set()
    await asyncio.gather(*market._under_way.values())
    assert sold(await market.ask([shop], live=False), "acme") == [2.0]


FAULTS = {
    "down": BackendError("acme: connection refused"),
    "denied": CredentialsError("acme: the key is not accepted", "export ACME_KEY=..."),
    "broken": KeyError("price"),
    "nothing": lambda: [],
    "free": lambda: [offer("acme", usd=0.0)],
    "not a number": lambda: [offer("acme", usd=float("nan"))],
    "unknown gpu": lambda: [offer("acme", gpu="Z9000")],
    "not canonical": lambda: [offer("acme", gpu="Tesla T4")],
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_source_that_fails_is_named_and_takes_nothing_with_it(
    market: Market, clock: Clock, tmp_path: Path, fault: str
) -> None:
    good, bad = Shop("good"), Shop("acme")
    await market.ask([good, bad], live=True)
    clock.now += good.fresh_s + 1
    bad.say = FAULTS[fault]  # type: ignore[assignment]
    answers = await market.ask([bad, good], live=True)
    told = report(answers, "acme")
    assert told.answer is Answer.FAILED
    assert told.why
    assert told.fix == getattr(FAULTS[fault], "hint", None)
    assert sold(answers, "acme") == [1.0], "what it said before stays"
    assert told.observed_at == NOW
    assert report(answers, "good").answer is Answer.FRESH
    assert kept.load(tmp_path / "prices" / "acme.json").offers == (offer("acme"),)


async def test_one_that_is_slow_is_not_waited_for_and_still_heard(market: Market, clock: Clock) -> None:
    slow, good = Shop("slow"), Shop("good")
    slow.gate = asyncio.Event()
    answers = await market.ask([slow, good], live=True, patience_s=0.01)
    assert report(answers, "slow").answer is Answer.SLOW
    assert sold(answers, "good") == [1.0]
    slow.gate.set()
    await asyncio.gather(*market._under_way.values())
    assert sold(await market.ask([slow, good], live=False), "slow") == [1.0]


async def test_one_that_never_answers_is_given_up(market: Market) -> None:
    class Mute(Shop):
        timeout_s = 0.01

    mute = Mute("mute")
    mute.gate = asyncio.Event()
    told = report(await market.ask([mute], live=True, patience_s=10), "mute")
    assert (told.answer, told.why) == (Answer.FAILED, "no answer within 0.01 s")


async def test_after_a_failure_it_is_left_alone_longer_each_time(market: Market, clock: Clock) -> None:
    bad = Shop("acme", BackendError("acme: down"))
    await market.ask([bad], live=True)
    waits = []
    for _ in range(6):
        began = clock.now
        while bad.asked == len(waits) + 1:
            clock.now += 1
            told = report(await market.ask([bad], live=True), "acme")
        assert told.answer is Answer.FAILED
        waits.append(clock.now - began)
    assert waits == [30, 60, 120, 240, 300, 300]
    told = report(await market.ask([bad], live=True), "acme")
    assert told.answer is Answer.UNASKED
    assert "asked again in 300 s" in told.why
    bad.say = None
    clock.now += 300
    assert report(await market.ask([bad], live=True), "acme").answer is Answer.FRESH


async def test_one_that_lacks_credentials_is_not_asked_and_says_which(market: Market) -> None:
    shop = Shop("acme")
    shop.missing = "export ACME_KEY=..."
    told = report(await market.ask([shop], live=True), "acme")
    assert (told.answer, told.fix, shop.asked) == (Answer.UNASKED, "export ACME_KEY=...", 0)


async def test_of_one_seller_only_those_are_asked_that_have_its_offers(market: Market) -> None:
    acme, many, other = Shop("acme"), Shop("many"), Shop("other")
    acme.sellers, other.sellers = frozenset({"acme"}), frozenset({"other"})
    await market.ask([other], live=True)
    answers = await market.ask([acme, many, other], live=True, seller="acme")
    assert (acme.asked, many.asked, other.asked) == (1, 1, 1)
    assert sold(answers, "other") == [1.0], "what it said before is there to compare with"
    third = Shop("third")
    third.sellers = frozenset({"third"})
    again = await market.ask([third], live=True, seller="acme")
    assert third.asked == 0
    assert [r.name for r in again.reports] == [SNAPSHOT]


async def test_two_who_ask_at_once_ask_it_once(market: Market) -> None:
    shop = Shop("acme")
    shop.gate = asyncio.Event()
    both = [asyncio.ensure_future(market.ask([shop], live=True)) for _ in range(2)]
    while not shop.asked:
        await asyncio.sleep(0)
    shop.gate.set()
    assert [sold(a, "acme") for a in await asyncio.gather(*both)] == [[1.0], [1.0]]
    assert shop.asked == 1


async def test_files_of_this_machine_are_read_without_live_and_may_be_none(market: Market) -> None:
    empty, broken, good = Files("none", list), Files("broken", ValueError("row 7")), Files("files")
    answers = await market.ask([empty, broken, good], live=False)
    assert sold(answers, "files") == [1.0]
    assert report(answers, "none").answer is Answer.KEPT
    assert "row 7" in report(answers, "broken").why


async def test_a_file_that_is_damaged_or_of_another_version_counts_as_none(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "prices"
    folder.mkdir()
    for text in ("", "{", "[]", '{"version": 99}', '{"version": 1, "fields": ["x"]}'):
        (folder / "acme.json").write_text(text)
        assert kept.load(folder / "acme.json") == Kept()
        answers = await Market(folder, clock).ask([Shop("acme")], live=True)
        assert sold(answers, "acme") == [1.0]


async def test_a_folder_that_can_not_be_written_hides_no_price(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "prices").write_text("in the way")
    answers = await Market(tmp_path / "prices", clock).ask([Shop("acme")], live=True)
    assert sold(answers, "acme") == [1.0]


def test_everything_of_an_offer_survives_the_disk(tmp_path: Path) -> None:
    whole = offer(
        "acme", OfferKind.SPOT, "H100", 2.5, gpu_count=8, zone="z", machine="m", vcpus=96.0, memory_gib=1.5,
        lines=Lines(None, 0.1, 0.2), billing=Billing(60, 60, True, None), stock="LOW", confidence=0.9, note="n",
    )  # fmt: skip
    known = Kept((whole, offer("b", usd=None)), NOW, NOW - 1, 2, "why", "a step")
    kept.save(tmp_path / "a.json", known)
    assert kept.load(tmp_path / "a.json") == known
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_newest_word_counts_and_a_live_price_puts_the_shipped_one_away() -> None:
    old = offer("acme", usd=1.0, observed_at=NOW - 10, region="r")
    new = replace(old, price_per_hour_usd=2.0, observed_at=NOW)
    assert newest([old, new]) == newest([new, old]) == [new]
    shipped = offer("acme", usd=9.0, machine="elsewhere", snapshot=True)
    other = offer("acme", gpu="T4", snapshot=True)
    assert newest([shipped, other, new]) == [other, new]
    unquoted = replace(new, price_per_hour_usd=None)
    assert newest([shipped, unquoted]) == [shipped, unquoted], "no quote is no news"
