"""The table of prices: unknown is unknown, stale is marked, and every fault of a source has its line."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from tests.catalog.offering import NOW, offer
from tuna_nb.catalog.listing import Answer, Priced, PriceList, Seen, SourceReport
from tuna_nb.catalog.offers import AllIn, Lines, Offer, OfferKind, Shape
from tuna_nb.views import data, html, text
from tuna_nb.views.sheets import sheet

SPOT = offer("aws", OfferKind.SPOT, "H100", 1.5, gpu_count=8, region="us-east-2", zone="use2-az1")


def listed(*rows: Priced, sources: tuple[SourceReport, ...] = (), **more: object) -> PriceList:
    return PriceList(rows, len(rows), None, sources, NOW, **more)  # type: ignore[arg-type]


def row(one: Offer, **more: object) -> Priced:
    return Priced(one, 80, one.all_in(), one.is_stale(NOW), **more)  # type: ignore[arg-type]


def shown(prices: PriceList) -> str:
    made = sheet(prices, NOW)
    whole = text.render(made, width=250)
    assert html.render(made)
    return whole


def test_a_row_says_what_where_how_old_and_from_whom() -> None:
    found = shown(listed(row(replace(SPOT, observed_at=NOW - 7200), saves_on_demand=0.8, saves_serverless=-0.1)))
    for words in ("H100", "80", "aws", "spot", "8", "$1.500", "$12.000", "use2-az1", "2h ago", "the test"):
        assert words in found
    assert "80% on-demand, 10% dearer serverless" in found
    assert "STALE" not in found


def test_an_unknown_price_is_no_zero() -> None:
    found = shown(listed(row(replace(SPOT, price_per_hour_usd=None, note="no spot quote: blank"))))
    assert "no quote" in found
    assert "unknown" in found
    assert "$0" not in found
    assert "aws H100: no spot quote: blank" in found


def test_a_sum_that_lacks_a_line_says_from() -> None:
    found = shown(listed(row(replace(SPOT, lines=Lines(None, None)))))
    assert "from $12.000" in found
    assert "vCPUs and memory are billed too, at a price that is not known" in found


def test_a_stale_price_is_marked_and_told_how_to_renew() -> None:
    found = shown(listed(row(replace(SPOT, observed_at=NOW - 3 * 86400))))
    assert "3d ago STALE" in found
    assert "--live asks again" in found
    shipped = shown(listed(row(replace(SPOT, snapshot=True))))
    assert "all from the table that ships with Tuna; --live asks the providers" in shipped


def test_every_source_in_trouble_has_its_line() -> None:
    sources = (
        SourceReport("good", Answer.FRESH, 3, NOW),
        SourceReport("down", Answer.FAILED, 2, NOW - 3600, "connection refused", "try again later"),
        SourceReport("slow", Answer.SLOW, 0, None, "has not answered yet"),
        SourceReport("locked", Answer.UNASKED, 0, None, "needs credentials", "export KEY=..."),
        SourceReport("resting", Answer.UNASKED, 0, None, "down; asked again in 30 s at the earliest"),
    )
    found = shown(listed(row(SPOT), sources=sources))
    assert "down: connection refused (try again later); shown as of 1h 0m ago" in found
    assert "slow: has not answered yet (--timeout waits longer)" in found
    assert "locked: not asked, needs credentials: export KEY=..." in found
    assert "resting: not asked: down; asked again" in found
    assert "good:" not in found


def test_the_shape_that_is_priced_is_told() -> None:
    made = replace(listed(row(SPOT)), shape=Shape(2, 16, 64, 100))
    assert "2 GPUs, 16 vCPUs, 64 GiB, 100 GB of disk" in shown(made)


def test_a_remark_is_made_once_for_all_its_gpus() -> None:
    noted = [row(offer("runpod", OfferKind.SERVERLESS, gpu, note="flex")) for gpu in ("L4", "H100", "L4")]
    assert shown(listed(*noted)).count("flex") == 1
    assert "runpod L4, H100: flex" in shown(listed(*noted))


def test_a_frame_has_numbers_dates_and_every_column() -> None:
    table = data.frame(listed(row(SPOT), row(replace(SPOT, price_per_hour_usd=None))))
    assert table is not None
    assert table["price_per_hour_usd"].isna().tolist() == [False, True]
    assert table["all_in_usd_per_hour"].dtype == float
    assert str(table["observed_at"].dt.tz) == "UTC"
    assert set(table["kind"]) == {"spot"}
    empty = data.frame(listed())
    assert empty is not None
    assert list(empty.columns) == list(table.columns)


def test_a_history_is_a_frame_of_what_was_seen() -> None:
    seen = Seen(NOW, "aws", "spot", "H100", None, 1.5)
    table = data.frame(listed(history=(seen,)))
    assert table is not None
    assert table["at"].tolist() == [pd.Timestamp(NOW, unit="s", tz="UTC")]


def test_json_has_everything() -> None:
    plain = data.plain(listed(row(SPOT)))
    assert plain["rows"][0]["offer"]["price_per_hour_usd"] == 1.5
    assert plain["rows"][0]["all_in"] == data.plain(AllIn(12.0))
