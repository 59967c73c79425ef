"""The sources of prices that Tuna knows, adapters' own apart."""

from __future__ import annotations

from tuna_nb.catalog.sources.base import Source
from tuna_nb.catalog.sources.google import GoogleBillingSource
from tuna_nb.catalog.sources.gpuhunt import PROVIDERS, GpuhuntSource
from tuna_nb.catalog.sources.skypilot import SkyPilotFiles
from tuna_nb.catalog.sources.tensordock import TensorDockSource
from tuna_nb.catalog.sources.vast import VastSource


def market_sources() -> list[Source]:
    """All of them, live ones and this machine's files."""
    return [
        VastSource(),
        TensorDockSource(),
        GoogleBillingSource(),
        *(GpuhuntSource(provider) for provider in PROVIDERS),
        SkyPilotFiles(),
    ]
