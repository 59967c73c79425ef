"""`show-gpus` as a person types it: the right rows for every flag, with live sources over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.faults import Fault
from tests.fakes.runpod import KEY, FakeRunpod
from tests.frontends.terminals import Done
from tuna_nb.backends import registry
from tuna_nb.backends.runpod import RunpodBackend
from tuna_nb.catalog.offers import OfferKind
from tuna_nb.deployments import prices
from tuna_nb.grammar.flags import OFFER_KINDS

Tuna = Callable[..., Done]


def rows(done: Done) -> list[dict[str, Any]]:
    return [row["offer"] | {k: v for k, v in row.items() if k != "offer"} for row in done.json["rows"]]


def asked(tuna: Tuna, *words: str) -> list[dict[str, Any]]:
    return rows(tuna("show-gpus", *words, "-o", "json"))


def source(done: Done, name: str) -> dict[str, Any]:
    return next(s for s in done.json["sources"] if s["name"] == name)


@pytest.fixture
def runpod(monkeypatch: pytest.MonkeyPatch) -> Any:
    with FakeRunpod() as cloud:
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        registry.put(RunpodBackend(cloud.url, pace=0.01))
        yield cloud
    prices._markets.clear()


def test_serverless_prices_are_shown_first_and_touch_nothing(tuna: Tuna, home: Any) -> None:
    found = asked(tuna)
    assert {r["kind"] for r in found} == {"serverless"}
    assert {"modal", "runpod", "baseten", "cerebrium", "cloudrun", "azure"} == {r["provider"] for r in found}
    assert [r["vram_gb"] for r in found] == sorted(r["vram_gb"] for r in found)
    assert not home.folder.exists(), "looking creates nothing"


def test_spot_shows_aws_beside_serverless_and_what_it_saves(tuna: Tuna) -> None:
    found = asked(tuna, "--spot")
    assert {r["provider"] for r in found if r["kind"] == "spot"} == {"aws"}
    [l40s] = [r for r in found if (r["gpu"], r["kind"]) == ("L40S", "spot")]
    assert 0 < l40s["saves_serverless"] < 1
    assert 0 < l40s["saves_on_demand"] < 1
    assert {r["provider"] for r in asked(tuna, "--spots-cloud", "gcp") if r["kind"] == "spot"} == {"gcp"}


FLAGS: list[tuple[list[str], Callable[[dict[str, Any]], bool]]] = [
    (["--gpu", "h100-80gb"], lambda r: r["gpu"] == "H100"),
    (["--provider", "runpod"], lambda r: r["provider"] == "runpod"),
    (["--kind", "on-demand"], lambda r: r["kind"] == "on-demand"),
    (["--kind", "spot", "--kind", "on-demand"], lambda r: r["kind"] in ("spot", "on-demand")),
    (["--min-vram", "80"], lambda r: r["vram_gb"] >= 80),
    (["--max-price", "0.7"], lambda r: r["price_per_hour_usd"] <= 0.7),
    (["--max-price", "1.2", "--all-in"], lambda r: r["all_in"]["usd_per_hour"] <= 1.2),
    (["--region", "us-east", "--kind", "spot"], lambda r: "us-east" in r["region"]),
    (["--gpu", "A10G", "--gpu-count", "8"], lambda r: r["gpu_count"] == 8),
]


@pytest.mark.parametrize(("words", "holds"), FLAGS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_each_flag_leaves_just_what_it_says(tuna: Tuna, words: list[str], holds: Callable[[Any], bool]) -> None:
    found = asked(tuna, *words)
    assert found
    assert all(holds(row) for row in found)


def test_a_shape_is_priced_all_in(tuna: Tuna) -> None:
    [row] = [r for r in asked(tuna, "--gpu", "L4", "--cpus", "8", "--memory", "32") if r["provider"] == "modal"]
    assert row["all_in"]["usd_per_hour"] == pytest.approx(0.80 + 8 * 0.04716 + 32 * 0.007992)


def test_pages_and_orders(tuna: Tuna) -> None:
    whole = asked(tuna, "--gpu", "H100", "--sort", "price")
    page = tuna("show-gpus", "--gpu", "H100", "--sort", "price", "--limit", "2", "--offset", "2", "-o", "json")
    assert rows(page) == whole[2:4]
    assert page.json["total"] == len(whole)
    known = [r["price_per_hour_usd"] for r in whole if r["price_per_hour_usd"] is not None]
    assert known == sorted(known)


def test_live_prices_take_the_place_of_shipped_ones_and_are_remembered(tuna: Tuna, runpod: FakeRunpod) -> None:
    done = tuna("show-gpus", "--provider", "runpod", "--live", "-o", "json")
    assert source(done, "runpod")["answer"] == "fresh"
    live = {r["gpu"]: r for r in rows(done)}
    assert not live["L4"]["snapshot"]
    assert not live["L4"]["stale"]
    assert live["L4"]["source"] == "RunPod's catalog"
    prices._markets.clear()
    again = {r["gpu"]: r for r in asked(tuna, "--provider", "runpod")}
    assert again["L4"] == live["L4"], "the next process has them from disk"
    history = tuna("show-gpus", "--gpu", "L4", "--history", "-o", "json").json["history"]
    assert [(h["provider"], h["price_per_hour_usd"]) for h in history] == [
        ("runpod", live["L4"]["price_per_hour_usd"])
    ]


def test_sources_that_are_down_leave_the_others_and_are_named(tuna: Tuna, runpod: FakeRunpod) -> None:
    runpod.faults.order(Fault(500), "GET /v2/catalog/gpus", times=10**6)
    done = tuna("show-gpus", "--live", "--timeout", "30", "-o", "json")
    assert {"modal", "runpod", "baseten", "azure"} <= {r["provider"] for r in rows(done)}
    for name, fault in (("azure", "price list can't be used"), ("runpod", "500")):
        assert source(done, name)["answer"] == "failed"
        assert fault in source(done, name)["why"]
    assert "runpod: " in tuna("show-gpus", "--live").out, "left alone for a while, and still named"


def test_one_that_needs_an_account_says_how_to_get_on(tuna: Tuna) -> None:
    done = tuna("show-gpus", "--live")
    assert "modal: not asked, needs credentials: tuna check --provider modal" in done.out


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [(["--gpu", "L44"], "unknown GPU 'L44'", "did you mean 'L4'?"),
     (["--provider", "modl"], "no prices of a provider 'modl' are known", "did you mean 'modal'?"),
     (["--kind", "sport"], "unknown value for --kind: 'sport'", "did you mean 'spot'?"),
     (["--min-vram", "-1"], "--min-vram -1 is not above zero", "above zero"),
     (["--max-price", "nan"], "--max-price nan is not above zero", "above zero"),
     (["--limit", "0"], "--limit 0 is not above zero", "above zero"),
     (["--disk", "-5"], "--disk -5 is below zero", "zero or more"),
     (["--spots-cloud", "ibm"], "unknown value for --spots-cloud: 'ibm'", "aws")],
)  # fmt: skip
def test_what_can_not_be_is_two_lines(tuna: Tuna, words: list[str], message: str, hint: str) -> None:
    said = tuna("show-gpus", *words, code=2).refusal
    assert message in said[0]
    assert hint in said[1]


def test_a_list_without_rows_is_no_error(tuna: Tuna) -> None:
    assert "no offer matches" in tuna("show-gpus", "--max-price", "0.001").out


def test_the_words_of_the_grammar_are_the_catalogue_s() -> None:
    assert tuple(kind.value for kind in OfferKind) == OFFER_KINDS
