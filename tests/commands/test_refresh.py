"""The shipped prices beside the live ones: the difference is shown, written on request, and nothing else touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.catalog.offering import NOW, offer
from tests.fakes.runpod import CATALOG, KEY, FakeRunpod
from tuna_nb.backends import registry
from tuna_nb.backends.runpod import RunpodBackend
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import OfferKind
from tuna_nb.commands.refresh import compare, differs, main, renewed

TABLE = [
    offer("modal", OfferKind.SERVERLESS, usd=0.8, snapshot=True),
    offer("aws", OfferKind.SPOT, usd=0.3, region="r", zone="use1-az1", machine="g6", snapshot=True),
    offer("aws", OfferKind.SPOT, usd=0.3, region="other", machine="g6", snapshot=True),
]


def test_a_changed_price_is_found_whatever_the_zone_is_called() -> None:
    live = offer("aws", OfferKind.SPOT, usd=0.4, region="r", zone="us-east-1a", machine="g6")
    cheaper = replace(live, price_per_hour_usd=0.2, zone="us-east-1b")
    again = offer("modal", OfferKind.SERVERLESS, usd=0.8)
    told = compare(TABLE, [live, cheaper, again])
    assert told == [(TABLE[0], again), (TABLE[1], cheaper)]
    assert [differs(change) for change in told] == [False, True]
    made = renewed(TABLE, told)
    assert [o.price_per_hour_usd for o in made] == [0.8, 0.2, 0.3]
    assert (made[1].zone, made[1].snapshot, made[1].observed_at) == ("use1-az1", True, NOW)
    assert made[2] == TABLE[2], "what no source tells stays"


def test_no_quote_changes_nothing() -> None:
    assert compare(TABLE[:1], [offer("modal", OfferKind.SERVERLESS, usd=None)]) == []


def test_it_writes_a_table_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeRunpod() as cloud:
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        registry.put(RunpodBackend(cloud.url, pace=0.01))
        monkeypatch.setitem(next(g for g in CATALOG if "4090" in g["id"])["price"], "serverless", 1.2276)
        assert main(["--write"], tmp_path / "new.csv") == 1, "others can't be reached here, and that is told"
    said = capsys.readouterr().out
    assert "runpod serverless 1x RTX4090: 1.116 -> 1.2276 (+10.0%); RunPod's catalog" in said
    assert "azure: " in said
    table = snapshot.read((tmp_path / "new.csv").read_text().splitlines())
    assert len(table) == len(snapshot.offers())
    now = {o.gpu: o for o in table if o.provider == "runpod"}
    assert now["L4"].source == "RunPod's catalog"
    assert [o for o in table if o.provider == "modal"] == list(snapshot.of("modal"))
    assert KEY not in said


def test_a_wrong_word_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--wirte"]) == 2
    assert capsys.readouterr().err.splitlines()[1].startswith("hint: ")
