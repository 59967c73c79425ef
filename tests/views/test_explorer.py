"""The explorer's output: its offers travel whole and small, nothing in them can break out, and a table stands under it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.views.pages import page
from tests.views.prices import NOW, many, offer, price_list, realistic
from tuna_nb.catalog.listing import PriceList
from tuna_nb.catalog.offers import OfferKind
from tuna_nb.views import explorer
from tuna_nb.views.explorer import MOST_OFFERS, columns, show

HOSTILE = "</script><script>alert('x')</script> \u2028 & \"quotes\""


def travelled(html: str) -> dict[str, Any]:
    """The data as the page's script is given it."""
    found = re.search(r" mount\(host, (\{.*\}), \".*\"\); \}\)\(\);</script>$", html, re.S)
    assert found
    return dict(json.loads(found[1]))


def test_every_offer_travels_with_all_that_is_shown_of_it() -> None:
    listed = realistic()
    data = travelled(show(listed).html)
    names, there = data["words"], data["columns"]
    assert {len(column) for column in there.values()} == {len(listed.rows)}
    for i, row in enumerate(listed.rows):
        o = row.offer
        assert (names["gpu"][there["gpu"][i]], names["provider"][there["provider"][i]]) == (o.gpu, o.provider)
        assert names["kind"][there["kind"][i]] == o.kind
        assert names["region"][there["region"][i]] == (o.region or "")
        assert names["source"][there["source"][i]] == o.source
        assert data["vram"][there["gpu"][i]] == row.vram_gb
        assert there["price"][i] == (None if o.price_per_hour_usd is None else pytest.approx(o.price_per_hour_usd))
        assert there["all"][i] == (None if row.all_in is None else pytest.approx(row.all_in.usd_per_hour, rel=1e-4))
        assert there["stale"][i] == row.stale
        assert there["age"][i] == round(NOW - o.observed_at)


def test_an_unknown_price_travels_as_unknown() -> None:
    data = columns(price_list(offer("azure", OfferKind.SPOT, "L4", None, None, note="no spot quote")))
    assert data["columns"]["price"] == data["columns"]["all"] == [None]
    assert data["words"]["note"] == ["no spot quote"]


def test_two_thousand_offers_stay_below_two_hundred_kilobytes() -> None:
    assert len(json.dumps(show(many(2000))._repr_mimebundle_())) < 160_000


def test_more_offers_are_cut_with_a_word() -> None:
    data = columns(many(2100))
    assert len(data["columns"]["gpu"]) == MOST_OFFERS
    assert "The first 2,000 of 2,100 offers" in data["notes"][1]
    some = columns(replace(many(100), total=4000))
    assert "100 of 4,000 offers" in some["notes"][1]


def test_nothing_that_a_provider_says_ends_the_script() -> None:
    made = show(price_list(offer(HOSTILE, OfferKind.SPOT, "L4", 0.3, HOSTILE, source=HOSTILE, note=HOSTILE)))
    html = made.html
    assert html.count("<script>") == html.count("</script>") == 1
    assert travelled(html)["words"]["provider"] == [HOSTILE]
    assert "\u2028" not in html.partition("<script>")[2]
    assert "innerHTML" not in explorer._read("explorer.js")


def test_without_scripts_there_is_a_plain_table(monkeypatch: pytest.MonkeyPatch) -> None:
    html = show(many(300)).html
    plain = page(html.partition("<script>")[0])
    assert plain.tags.count("tr") == 1 + explorer.PREVIEW
    assert "280 more can be explored where scripts run" in plain.text
    assert "Prices as of 2027-01-15 08:00 UTC" in plain.text


def test_nothing_is_asked_of_the_network() -> None:
    written = explorer._read("explorer.js") + explorer._read("explorer.css")
    assert not re.search(r"https?:|//cdn|import\b|fetch\(|XMLHttp|@import|url\(", written)


def test_text_and_html_are_always_there_and_no_widget_is() -> None:
    bundle = show(realistic())._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert "47 GPU prices" in bundle["text/plain"]
    assert "no quote" in show(price_list(offer("azure", OfferKind.SPOT, "L4", None, None))).text


def test_an_empty_list_is_a_sentence() -> None:
    empty = show(PriceList((), 0, None, (), NOW))
    assert "no offer matches" in empty.text
    assert "<script>" not in empty.html
    assert "no offer matches" in page(empty.html).text


def test_two_explorers_in_a_notebook_have_names_of_their_own() -> None:
    made = show(realistic())
    names = {re.search(r'data-tuna-explorer="([^"]+)"', made.html)[1] for _ in range(3)}  # type: ignore[index]
    assert len(names) == 3


def test_as_a_widget_it_tells_python_what_was_chosen() -> None:
    widget = show(realistic()).widget()
    assert widget.chosen == list(range(len(realistic().rows)))
    assert widget.data == columns(realistic())
    assert "export default" in widget._esm
    widget.close()
