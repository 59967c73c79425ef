"""Clouds' machines from the catalogues that dstack's gpuhunt publishes, one source a provider.

gpuhunt's own loading takes all providers at once, keeps what is wrong with one to a log, and waits without end for
a server that does not answer. So the two files of one provider are fetched here, by the layout that gpuhunt itself
has (`<url>/<provider>/version`, then `<url>/<provider>/<version>/catalog.zip`), and gpuhunt reads and queries them.
`GPUHUNT_CATALOG_URL` and `GPUHUNT_CATALOG_DIR` mean what they mean to gpuhunt.
"""

from __future__ import annotations

import asyncio
import csv
import functools
import io
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from tuna_nb.catalog import gpus
from tuna_nb.catalog.offers import Offer, OfferKind, believable
from tuna_nb.catalog.rules import rule
from tuna_nb.catalog.sources import clouds, http
from tuna_nb.catalog.sources.base import MACHINES, Source, changed
from tuna_nb.errors import BackendError

PROVIDERS: Final = ("aws", "azure", "gcp", "lambdalabs", "nebius", "oci", "verda", "cloudrift", "runpod")
"""Those that gpuhunt publishes a catalogue of, by its names."""
_MARKETS: Final = frozenset({"runpod"})
"""Machines there are pods of a marketplace, not a cloud's."""
_COLUMNS: Final = frozenset(
    "instance_name location price cpu memory gpu_count gpu_name gpu_memory spot provider_data".split()
)
_NOT_SOLD_SINGLY: Final = frozenset({"gcp-dws-calendar-mode", "gcp-g4-preview", "runpod-cluster"})
"""Reserved ahead by the calendar, listed a second time for an old client, only in pairs and more."""
_SPOT_IS: Final = {"aws": "of its cheapest zone"}
"""What gpuhunt makes of the prices of a region's zones."""
_ZONE: Final = re.compile(r"([a-z]+-[a-z]+\d+)-[a-z0-9]+")
_VERSION: Final = re.compile(r"[\w.-]{1,64}")

logging.getLogger("gpuhunt").addHandler(logging.NullHandler())


class GpuhuntSource(Source):
    """provider: one of `PROVIDERS`. environ: where gpuhunt's own variables are looked up."""

    kinds: ClassVar[frozenset[OfferKind]] = MACHINES
    fresh_s: ClassVar[float] = 3600.0
    timeout_s: ClassVar[float] = 20.0

    def __init__(self, provider: str, *, environ: Mapping[str, str] | None = None) -> None:
        self.name = f"gpuhunt-{provider}"
        self.sellers = frozenset({clouds.named(provider)})
        self._provider = provider
        self._env = os.environ if environ is None else environ

    async def fetch(self) -> list[Offer]:
        folder = self._env.get("GPUHUNT_CATALOG_DIR")
        if folder:
            version, table = "", await asyncio.to_thread(self._file, Path(folder) / f"{self._provider}.csv")
        else:
            version, zipped = await self._fetch_zip()
            table = await asyncio.to_thread(self._unzip, zipped)
        return await asyncio.to_thread(self._offers, version, table)

    async def _fetch_zip(self) -> tuple[str, bytes]:
        """The latest version and its zip file."""
        told: str = self._env.get("GPUHUNT_CATALOG_URL", "") or await asyncio.to_thread(_published_at)
        base = f"{told.rstrip('/')}/{self._provider}"
        said = await self._get(f"{base}/version")
        version = said.decode("utf-8", "replace").strip()
        if not _VERSION.fullmatch(version) or set(version) <= {"."}:
            raise http.not_what(self.name, base, said, "version")
        return version, await self._get(f"{base}/{version}/catalog.zip")

    async def _get(self, url: str) -> bytes:
        if url.startswith("file:"):
            from urllib.parse import urlsplit
            from urllib.request import url2pathname

            return await asyncio.to_thread(self._file, Path(url2pathname(urlsplit(url).path)))
        return await http.ask_bytes(self.name, url, timeout_s=self.timeout_s)

    def _file(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as exc:
            raise BackendError(
                f"{self.name}: can't read {path}: {exc.strerror}", "mend GPUHUNT_CATALOG_DIR"
            ) from None

    def _unzip(self, zipped: bytes) -> bytes:
        import zipfile

        try:
            with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
                return archive.read(f"{self._provider}.csv")
        except zipfile.BadZipFile:
            raise http.not_what(self.name, self._env.get("GPUHUNT_CATALOG_URL") or "", zipped, "zip file") from None
        except KeyError:
            raise changed(self.name, f"its zip file has no {self._provider}.csv") from None

    def _offers(self, version: str, table: bytes) -> list[Offer]:
        rows = table.decode("utf-8", "replace")
        lacking = _COLUMNS - set(next(csv.reader(rows.splitlines()[:1]), ()))
        if lacking:
            raise changed(self.name, f"it has no column {', '.join(sorted(lacking))}")
        now = time.time()
        items = [item for item in self._query(version, rows) if not _NOT_SOLD_SINGLY & set(item.flags)]
        # Spot and on-demand are rows of their own, in no order.
        on_demand = {(item.instance_name, item.location): item.price for item in items if not item.spot}
        found = (
            self._offer(item, on_demand.get((item.instance_name, item.location)), version, now) for item in items
        )
        offers = [offer for offer in found if offer is not None]
        if not offers:
            raise changed(self.name, f"none of its {max(0, rows.count(chr(10)) - 1)} rows could be read")
        return offers

    def _query(self, version: str, rows: str) -> list[Any]:
        """What gpuhunt makes of the file."""
        try:
            from gpuhunt import Catalog
            from gpuhunt._internal import storage
            from gpuhunt._internal.catalog import ProviderCatalog

            catalog = Catalog(auto_reload=False)
            items = list(storage.load(io.StringIO(rows, newline=""), provider=self._provider))
            catalog.catalog[self._provider] = ProviderCatalog(version=version, items=items)
            catalog.loaded_at = time.monotonic()
            return list(catalog.query(provider=self._provider, min_gpu_count=1))
        except (ImportError, AttributeError, TypeError) as exc:
            raise BackendError(
                f"{self.name}: the installed gpuhunt is not as tuna-nb knows it: {exc}",
                "pip install 'gpuhunt==0.1.34'",
            ) from exc

    def _offer(self, item: Any, on_demand: float | None, version: str, now: float) -> Offer | None:
        """None for a GPU that nobody here knows, and for a slice of one."""
        gpu = _gpu(item.gpu_name, item.gpu_memory) if item.gpu_name else None
        if gpu is None:
            return None
        price, note = believable(item.price, on_demand) if item.spot else (item.price, "")
        if item.spot and price is not None:
            note = _SPOT_IS.get(self._provider, "")
        if price is not None and price <= 0:
            price, note = None, "no price"
        provider = clouds.named(self._provider)
        market = self._provider in _MARKETS
        zone = _ZONE.fullmatch(item.location) if self._provider == "gcp" else None
        if item.spot:
            kind = OfferKind.INTERRUPTIBLE if market else OfferKind.SPOT
        else:
            kind = OfferKind.DEDICATED if market else OfferKind.ON_DEMAND
        return Offer(
            provider=provider,
            kind=kind,
            gpu=gpu.name,
            price_per_hour_usd=None if price is None else price / item.gpu_count,
            region=zone[1] if zone else item.location,
            observed_at=now,
            source=f"gpuhunt {version}".strip(),
            gpu_count=item.gpu_count,
            zone=item.location if zone else None,
            machine=item.instance_name,
            vcpus=item.cpu,
            memory_gib=item.memory,
            billing=rule(provider, kind).billing,
            note=note,
        )


@functools.lru_cache(1024)
def _gpu(name: str, memory_gb: float | None) -> gpus.Gpu | None:
    return gpus.identify_whole(name, memory_gb)


def _published_at() -> str:
    """Where the installed gpuhunt has its catalogues from."""
    from gpuhunt._internal.catalog import CATALOG_URL

    return str(CATALOG_URL)
