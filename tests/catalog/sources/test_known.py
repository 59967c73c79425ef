"""The sources of the market, as a list."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.google_billing import KEY, FakeGoogleBilling
from tests.fakes.gpuhunt_catalog import ITEMS, FakeGpuhunt
from tests.fakes.pricelist import HTML
from tests.fakes.tensordock import FakeTensorDock
from tests.fakes.vast import FakeVast
from tuna_nb.catalog.listing import Answer
from tuna_nb.catalog.market import Market
from tuna_nb.catalog.sources.known import market_sources


def test_each_has_a_name_of_its_own_that_can_be_a_files() -> None:
    names = [source.name for source in market_sources()]
    assert len(set(names)) == len(names) == 13
    assert all(name.replace("-", "").isalnum() for name in names)


def test_only_googles_catalogue_can_not_be_asked_without_a_key() -> None:
    lacking = {source.name for source in market_sources() if not source.local and source.lacks()}
    assert lacking <= {"google"}


def test_listing_them_loads_nothing_heavy() -> None:
    code = "import sys; from tuna_nb.catalog.sources.known import market_sources; market_sources(); print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert not {"httpx", "gpuhunt", "sky", "pandas", "requests"} & set(loaded.split())


def test_a_market_asks_all_of_them_and_the_ones_that_fail_take_no_other_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeVast() as vast, FakeTensorDock() as dock, FakeGoogleBilling() as google, FakeGpuhunt() as hunt:
        dock.instead = HTML
        for name, value in {
            "VAST_URL": vast.url,
            "TENSORDOCK_URL": dock.url,
            "TUNA_GOOGLE_BILLING_URL": google.url,
            "GOOGLE_API_KEY": KEY,
            "GPUHUNT_CATALOG_URL": hunt.catalog_url,
            "SKY_RUNTIME_DIR": str(tmp_path),
            "HOME": str(tmp_path),
        }.items():
            monkeypatch.setenv(name, value)
        answers = asyncio.run(Market(tmp_path / "prices").ask(market_sources(), live=True, patience_s=30))
    how = {report.name: report for report in answers.reports}
    good = {"vast", "google", *(f"gpuhunt-{provider}" for provider in ITEMS)}
    assert {name for name, report in how.items() if report.answer is Answer.FRESH} == good
    assert "HTML" in how["tensordock"].why
    assert how["gpuhunt-oci"].answer is Answer.FAILED
    assert how["skypilot"].answer is Answer.KEPT
    sellers = {offer.provider for offer in answers.offers if not offer.snapshot}
    assert sellers == {"vast", "cloudrun", "aws", "gcp", "runpod", "lambda"}
