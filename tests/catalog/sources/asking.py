"""How tests open a source of prices on its fake, and what a fault of it must look like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.fakes.google_billing import KEY as GOOGLE_KEY
from tests.fakes.google_billing import FakeGoogleBilling
from tests.fakes.gpuhunt_catalog import FakeGpuhunt
from tests.fakes.pricelist import FakePrices
from tests.fakes.tensordock import TOKEN, FakeTensorDock
from tests.fakes.vast import KEY as VAST_KEY
from tests.fakes.vast import FakeVast
from tuna_nb.catalog.offers import Offer
from tuna_nb.catalog.sources.base import Source
from tuna_nb.catalog.sources.google import GoogleBillingSource
from tuna_nb.catalog.sources.gpuhunt import GpuhuntSource
from tuna_nb.catalog.sources.tensordock import TensorDockSource
from tuna_nb.catalog.sources.vast import VastSource
from tuna_nb.errors import BackendError


@dataclass(frozen=True)
class Kind:
    """at: the source that asks at a URL, with a key. key: the right one, None for a source that has none."""

    fake: Callable[[], FakePrices]
    at: Callable[[str, str], Source]
    key: str | None = None


def vast(url: str, **env: str) -> VastSource:
    return VastSource(environ={"VAST_URL": url, "HOME": "/nonexistent", **env})


def tensordock(url: str, **env: str) -> TensorDockSource:
    return TensorDockSource(environ={"TENSORDOCK_URL": url, **env})


def google(url: str, **env: str) -> GoogleBillingSource:
    return GoogleBillingSource(environ={"TUNA_GOOGLE_BILLING_URL": url, **env})


def gpuhunt(url: str, provider: str = "aws") -> GpuhuntSource:
    return GpuhuntSource(provider, environ={"GPUHUNT_CATALOG_URL": f"{url}/v3"})


LIVE = {
    "vast": Kind(FakeVast, lambda url, key: vast(url, VAST_API_KEY=key), VAST_KEY),
    "tensordock": Kind(FakeTensorDock, lambda url, key: tensordock(url, TENSORDOCK_API_TOKEN=key), TOKEN),
    "google": Kind(FakeGoogleBilling, lambda url, key: google(url, GOOGLE_API_KEY=key), GOOGLE_KEY),
    "gpuhunt-aws": Kind(FakeGpuhunt, lambda url, key: gpuhunt(url)),
}


def offers(source: Source) -> list[Offer]:
    return asyncio.run(source.fetch())


def fault(source: Source) -> BackendError:
    """What it raises; it names the source."""
    with pytest.raises(BackendError) as raised:
        offers(source)
    assert str(raised.value).startswith(f"{source.name}: ")
    assert raised.value.hint
    return raised.value
