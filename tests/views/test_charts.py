"""Charts of prices: what is known is drawn, what is not is named, and each reads anywhere in every form."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.views.pages import page
from tests.views.prices import NOW, SHAPE, many, offer, price_list, realistic, seen
from tuna_nb.catalog.listing import Seen
from tuna_nb.catalog.offers import DAY_S, Lines, OfferKind
from tuna_nb.errors import RequestError
from tuna_nb.views.charts import CHARTS, PLOTLY, Chart, chart
from tuna_nb.views.points import MOST_REGIONS, By, of_providers, of_regions

HOSTILE = "<script>alert('x')</script> & \"quotes\" <b>not bold</b>"
SPOT, SERVERLESS, ON_DEMAND = OfferKind.SPOT, OfferKind.SERVERLESS, OfferKind.ON_DEMAND


@pytest.fixture(params=CHARTS)
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spec(made: Chart) -> dict[str, Any]:
    assert made.spec is not None
    return made.spec


def numbers(made: Chart, axis: str) -> list[float]:
    """What is drawn before anything is pressed."""
    return [v for trace in spec(made)["data"] if trace.get("visible", True) for v in trace[axis] if v is not None]


def test_plotly_itself_accepts_each_chart(which: str) -> None:
    figure = chart(realistic(), which).figure()
    assert figure.layout.template.layout.to_plotly_json() == {}
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_each_chart_is_one_bundle_of_plotly_html_and_text(which: str) -> None:
    bundle = chart(realistic(), which)._repr_mimebundle_()
    assert set(bundle) == {PLOTLY, "text/html", "text/plain"}
    shown = page(bundle["text/html"])
    assert "svg" in shown.tags
    assert "table" in shown.tags
    assert ("role", "img") in shown.attributes
    assert any(name == "aria-label" and "$" in value for name, value in shown.attributes)
    json.dumps(bundle[PLOTLY], allow_nan=False)
    assert bundle[PLOTLY]["config"]["showSendToCloud"] is False
    assert "http" not in json.dumps(bundle).replace("http://www.w3.org/2000/svg", "")


def test_a_list_without_offers_is_a_sentence_and_no_frame(which: str) -> None:
    made = chart(price_list(), which)
    bundle = made._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "no offer matches" in bundle["text/plain"]
    assert not {"svg", "table"} & set(page(bundle["text/html"]).tags)
    with pytest.raises(RequestError, match="nothing to draw"):
        made.figure()


@pytest.mark.parametrize("count", [16 * 8, 2000])
def test_sixteen_gpus_at_eight_providers_stay_well_below_two_hundred_kilobytes(which: str, count: int) -> None:
    listed = replace(many(count), history=tuple(
        Seen(NOW - day * DAY_S, p, "spot", gpu, None, 0.3 + (day * 7919 % 100) / 1000)
        for gpu in ("L4", "T4", "H100", "A100_80GB") for p in ("aws", "gcp", "azure") for day in range(90)
    ))  # fmt: skip
    assert len(json.dumps(chart(listed, which)._repr_mimebundle_())) < 170_000


def test_what_a_provider_says_is_never_read_as_a_tag(which: str) -> None:
    hostile = offer(HOSTILE, SPOT, "L4", 0.3, HOSTILE, source=HOSTILE, note=HOSTILE)
    unknown = offer("aws", SPOT, "T4", None, "us-east-1", note=HOSTILE)
    line = Seen(NOW, HOSTILE, "spot", "L4", None, 0.3)
    made = chart(price_list(hostile, unknown, history=(line,)), which)
    assert "<script>" not in made.html
    page(made.html)
    told = json.dumps(spec(made))
    assert "<script>" not in told
    assert "<b>not" not in told


def test_an_unknown_price_is_named_and_never_drawn_as_nothing() -> None:
    nothing = offer(
        "azure", SPOT, "L4", None, "westeurope", note="no spot quote: it is equal to the on-demand price"
    )
    made = chart(price_list(nothing, offer("aws", SPOT, "L4", 0.3, "us-east-1")), "prices")
    assert numbers(made, "x") == [0.3]
    assert "azure" not in json.dumps(spec(made)["data"])
    assert "L4 azure spot: no spot quote: it is equal to the on-demand price" in made.text
    assert "1 without a price" in spec(made)["layout"]["title"]["subtitle"]["text"]
    alone = chart(price_list(nothing), "prices")
    assert alone.spec is None
    assert "no price to compare" in alone.text
    assert "L4 azure spot" in page(alone.html).text


def test_a_price_of_zero_is_not_believed() -> None:
    table = of_providers(price_list(offer("free", SERVERLESS, "T4", 0.0, None)))
    assert table.keys == ()
    assert table.unknown == ("T4 free serverless: no price is known",)


def test_a_stale_price_looks_different_and_says_so() -> None:
    old = offer("aws", SPOT, "L4", 0.3, "us-east-1", observed_at=NOW - 3 * DAY_S)
    new = offer("gcp", SPOT, "L4", 0.4, "us-central1")
    [bars] = [t for t in spec(chart(price_list(old, new), "prices"))["data"] if "pattern" in t.get("marker", {})]
    assert bars["marker"]["pattern"]["shape"] == ["/", ""]
    assert [told[5] for told in bars["customdata"]] == ["3d ago, stale", "1h ago"]
    [points] = [t for t in spec(chart(price_list(old, new), "memory"))["data"] if "customdata" in t]
    assert points["marker"]["symbol"] == ["triangle-up-open", "triangle-up"]
    assert "stroke-dasharray" in chart(price_list(old, new), "prices").drawing
    assert "stroke-dasharray" not in chart(price_list(new), "prices").drawing


def test_a_kind_is_never_told_by_its_colour_alone() -> None:
    data = spec(chart(realistic(), "memory"))["data"]
    kinds = {t["name"]: t["marker"] for t in data if t.get("showlegend", True)}
    assert set(kinds) == {"serverless", "spot", "on-demand", "interruptible", "dedicated"}
    assert len({m["symbol"] for m in kinds.values()}) == len({m["color"] for m in kinds.values()}) == 5


def test_a_row_is_the_cheapest_of_its_kind_and_its_hover_says_everything() -> None:
    dear = offer("modal", SERVERLESS, "L4", 0.9, "eu")
    cheap = offer("modal", SERVERLESS, "L4", 0.8, "us", lines=Lines(0.05, 0.01, 0.0), source="modal's page")
    made = chart(price_list(dear, cheap), "prices")
    assert numbers(made, "x") == [0.8]
    [trace] = [t for t in spec(made)["data"] if "customdata" in t]
    # 0.80 + 8 x 0.05 + 32 x 0.01
    assert trace["customdata"][0][:7] == [
        "modal serverless",
        "L4 24 GB",
        "us",
        "$0.800",
        "$1.52",
        "1h ago",
        "modal's page",
    ]
    # All in it is the other one that costs less: what its disk costs is not known.
    assert trace["customdata"][0][7:10] == ["eu", "$0.900", "$0.900 and disk"]


def test_two_buttons_change_between_the_gpu_alone_and_all_in() -> None:
    made = spec(chart(realistic(), "prices"))
    alone, whole = made["layout"]["updatemenus"][0]["buttons"]
    assert (alone["label"], whole["label"]) == (By.GPU_HOUR, By.ALL_IN)
    before = [t["x"] for t in made["data"]]
    assert alone["args"][0]["x"] == before
    assert whole["args"][0]["x"] != before
    assert "1 GPU, 8 vCPUs, 32 GiB, 100 GB disk" in whole["args"][1]["xaxis.title.text"]


def test_a_menu_shows_one_gpu_alone() -> None:
    made = spec(chart(many(1500), "prices"))
    menu = made["layout"]["updatemenus"][-1]["buttons"]
    assert len(menu) == 16
    few = spec(chart(realistic(), "prices"))["layout"]["updatemenus"][-1]["buttons"]
    assert [b["label"] for b in few] == ["all GPUs", "L4", "RTX4090", "A100_80GB", "H100"]
    h100 = next(b for b in menu if b["label"] == "H100")["args"]
    shown = [t for t, seen_ in zip(made["data"], h100[0]["visible"], strict=True) if seen_ and "customdata" in t]
    assert {told[1] for t in shown for told in t["customdata"]} == {"H100 80 GB"}
    bottom, top = h100[1]["yaxis.range"]
    assert all(top < y < bottom for t in shown for y in t["y"])
    assert all(word.startswith("H100 ") for word in h100[1]["yaxis.ticktext"])
    assert not {"height", "width", "autosize"} & set(h100[1]), "a notebook's output does not grow with them"
    # The legend's own lines always stay.
    assert all(
        seen_ for t, seen_ in zip(made["data"], h100[0]["visible"], strict=True) if t.get("showlegend", True)
    )


def test_a_machine_of_eight_is_compared_by_the_gpu() -> None:
    machine = offer("aws", ON_DEMAND, "H100", 6.88, "us-east-1", gpu_count=8, vcpus=192, memory_gib=2048)
    table = of_providers(price_list(machine, shape=None))
    assert [row.least for rows in table.rows.values() for row in rows.values()] == [6.88, 6.88]
    whole = of_providers(price_list(machine, shape=SHAPE))
    assert whole.rows[By.ALL_IN]["H100", "aws", "on-demand"].least == pytest.approx(8 * 6.88)


def test_regions_show_spot_from_the_cheapest_zone_to_the_dearest() -> None:
    made = chart(realistic(), "regions")
    table = of_regions(realistic())
    row = table.rows[By.GPU_HOUR]["L4", "aws", "us-east-1"]
    assert (row.least, row.most, row.offers) == (0.301, 0.42, 3)
    assert {row.offer.offer.kind for row in table.rows[By.GPU_HOUR].values()} == {SPOT, OfferKind.INTERRUPTIBLE}
    [aws] = [
        t for t in spec(made)["data"] if t.get("name") == "aws" and "L4 24 GB" in json.dumps(t.get("customdata"))
    ]
    assert aws["x"][0] + aws["error_x"]["array"][0] == pytest.approx(0.42)


def test_regions_beyond_the_cheapest_are_counted() -> None:
    table = of_regions(many(2000))
    assert all(len(span) <= MOST_REGIONS for span in table.gpus().values())
    assert "more are not drawn" in table.note
    assert table.note in chart(many(2000), "regions").text


def test_history_holds_a_price_until_the_next_and_leaves_out_what_changes_nothing() -> None:
    made = chart(price_list(offer("modal", SERVERLESS, "L4", 0.76, None), history=seen()), "history")
    [modal] = [t for t in spec(made)["data"] if t["name"] == "modal serverless"]
    assert modal["line"]["shape"] == "hv"
    assert modal["y"] == [0.8, 0.8, 0.76, 0.76]
    [aws] = [t for t in spec(made)["data"] if t["name"] == "aws spot"]
    assert max(aws["y"]) < 0.5, "the dearer region is not the cheapest that was seen"
    assert [b["label"] for b in spec(made)["layout"]["updatemenus"][0]["buttons"]] == ["H100", "L4"]
    assert "$0.760" in made.text


def test_history_without_anything_seen_says_what_fills_it() -> None:
    assert (
        "no price has been kept yet; `--live` looks"
        in chart(price_list(*[r.offer for r in realistic().rows]), "history").text
    )


def test_an_unknown_chart_names_its_neighbour() -> None:
    with pytest.raises(RequestError) as caught:
        chart(realistic(), "price")
    assert "prices" in (caught.value.hint or "")


def test_a_notebook_keeps_few_lines_of_text_and_a_terminal_all() -> None:
    made = chart(many(1500), "prices")
    assert "more rows are left out" in made._repr_mimebundle_()["text/plain"]
    assert len(made.text.splitlines()) > 3 * len(made._repr_mimebundle_()["text/plain"].splitlines()) - 30
    assert "█" in made.text
    assert "█" not in made.html
