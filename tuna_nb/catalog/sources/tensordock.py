"""TensorDock's market: GPUs by place, with vCPUs, memory and disk priced apart.

Its list of what is free is known to be long out of date: of machines that were ordered from it, two thirds never
came up. https://dashboard.tensordock.com/api/docs, read on 2026-11-21.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from tuna_nb.catalog import gpus
from tuna_nb.catalog.offers import MONTH_HOURS, Lines, Offer, OfferKind
from tuna_nb.catalog.rules import rule
from tuna_nb.catalog.sources import http
from tuna_nb.catalog.sources.base import MACHINES, Source, changed
from tuna_nb.errors import BackendError

URL: Final = "https://dashboard.tensordock.com/api/v2"
KEYS: Final = ("TENSORDOCK_API_TOKEN", "TENSORDOCK_API_KEY")
SIGN_IN: Final = f"export {KEYS[0]}=<a token of its dashboard>, or unset it: prices need none"
CONFIDENCE: Final = 0.3
"""That a GPU which is listed as free can be had."""

_MEMORY: Final = re.compile(r"-(\d+)gb$")


class TensorDockSource(Source):
    """environ: where the token is looked up."""

    name = "tensordock"
    sellers = frozenset({"tensordock"})
    kinds: ClassVar[frozenset[OfferKind]] = MACHINES
    fresh_s: ClassVar[float] = 300.0

    def __init__(self, url: str | None = None, *, environ: Mapping[str, str] | None = None) -> None:
        self._env = os.environ if environ is None else environ
        self._url = url

    async def fetch(self) -> list[Offer]:
        token = next((self._env[name] for name in KEYS if self._env.get(name, "").strip()), None)
        key = http.key_of(self.name, token, SIGN_IN)
        said = await http.ask_json(
            self.name,
            (self._url or self._env.get("TENSORDOCK_URL") or URL).rstrip("/") + "/locations",
            timeout_s=self.timeout_s,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            sign_in=SIGN_IN,
        )
        self._check(said, key)
        now = time.time()
        listed = [
            (place, gpu)
            for place in http.records(self.name, http.field(self.name, said, "data"), "locations")
            for gpu in http.records(self.name, place, "gpus")
        ]
        offers = [offer for place, gpu in listed if (offer := self._offer(place, gpu, now)) is not None]
        if not offers:
            raise changed(self.name, "none of its GPUs could be read" if listed else "there are no GPUs")
        return offers

    def _check(self, said: object, key: str | None) -> None:
        """Errors come with HTTP 200 too, and say so in the body."""
        if not isinstance(said, dict) or said.get("data"):
            return
        status, errors = said.get("status"), said.get("errors")
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            said = errors[0]
            status = said.get("status", status)
        if isinstance(status, str) and status.isdecimal():
            status = int(status)
        if isinstance(status, int) and status >= 400:
            why = said.get("error") or said.get("detail") or said.get("title") or ""
            raise http.refusal(self.name, status, str(why), SIGN_IN, key)
        if errors or said.get("error"):
            raise BackendError(f"{self.name}: it answered with an error", "try again later")

    def _offer(self, place: Mapping[str, Any], sold: Mapping[str, Any], now: float) -> Offer | None:
        """None for a GPU that nobody here knows."""
        name = http.text(self.name, sold, "v0Name")
        memory = _MEMORY.search(name) if name else None
        gpu = gpus.identify_whole(name, float(memory[1]) if memory else None, "tensordock") if name else None
        price, free = http.number(self.name, sold, "price_per_hr"), http.number(self.name, sold, "max_count")
        if gpu is None:
            return None
        where = (http.text(self.name, place, part) for part in ("city", "stateprovince", "country"))
        return Offer(
            provider="tensordock",
            kind=OfferKind.DEDICATED,
            gpu=gpu.name,
            price_per_hour_usd=price if price and price > 0 else None,
            region=", ".join(part for part in where if part) or None,
            observed_at=now,
            source="TensorDock locations",
            zone=http.text(self.name, place, "id"),
            machine=name,
            most_gpus=int(free) if free else None,
            lines=self._lines(http.field(self.name, sold, "pricing")),
            billing=rule("tensordock", OfferKind.DEDICATED).billing,
            stock=None if free is None else f"{free:g} free",
            confidence=None if free is None else CONFIDENCE if free else 0.0,
            note="" if price and price > 0 else "no price",
        )

    def _lines(self, pricing: Any) -> Lines:
        if pricing is None:
            return Lines(None, None, None)
        vcpu, memory, disk = (
            http.number(self.name, pricing, name) for name in ("per_vcpu_hr", "per_gb_ram_hr", "per_gb_storage_hr")
        )
        return Lines(vcpu, memory, None if disk is None else disk * MONTH_HOURS)
