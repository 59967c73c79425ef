"""The catalogues that gpuhunt publishes, laid out as its third version has them and written by gpuhunt itself."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from gpuhunt import AcceleratorVendor, CatalogItem
from gpuhunt._internal import storage
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.pricelist import FakePrices

VERSION = "20261120"


def item(
    name: str, gpu: str | None, memory: float | None, count: int, usd: float, *, place: str, spot: bool = False,
    flags: list[str] | None = None, provider: str = "aws",
) -> CatalogItem:  # fmt: skip
    return CatalogItem(
        provider=provider, instance_name=name, location=place, price=usd, cpu=8 * max(1, count), memory=32.0,
        gpu_vendor=AcceleratorVendor.NVIDIA if count else None, gpu_count=count, gpu_name=gpu, gpu_memory=memory,
        spot=spot, disk_size=None, flags=flags or [],
    )  # fmt: skip


ITEMS: dict[str, list[CatalogItem]] = {
    "aws": [
        item("p5.48xlarge", "H100", 80.0, 8, 55.04, place="us-east-1"),
        item("p5.48xlarge", "H100", 80.0, 8, 22.10, place="us-east-1", spot=True),
        item("g6.xlarge", "L4", 24.0, 1, 0.8048, place="us-east-1"),
        item("g6.xlarge", "L4", 24.0, 1, 0.8048, place="us-east-1", spot=True),
        item("g6.xlarge", "L4", 24.0, 1, 0.9, place="us-west-2"),
        item("g6.xlarge", "L4", 24.0, 1, 1.2, place="us-west-2", spot=True),
        item("g6f.large", "L4", 3.0, 1, 0.2, place="us-east-1"),
        item("p4d.24xlarge", "A100", 40.0, 8, 32.77, place="us-east-1"),
        item("p4de.24xlarge", "A100", 80.0, 8, 40.96, place="us-east-1"),
        item("m6i.xlarge", None, None, 0, 0.192, place="us-east-1"),
        item("x1.large", "XPU9", 12.0, 1, 1.0, place="us-east-1"),
    ],
    "gcp": [
        item("g2-standard-4", "L4", 24.0, 1, 0.71, place="us-central1-a", provider="gcp"),
        item("a3-megagpu-8g", "H100", 80.0, 8, 60.0, place="us-central1-a", flags=["gcp-dws-calendar-mode"], provider="gcp"),
    ],
    "runpod": [
        item("NVIDIA L4", "L4", 24.0, 1, 0.44, place="US-GA-1", provider="runpod"),
        item("NVIDIA H100", "H100", 80.0, 8, 16.0, place="US-GA-1", flags=["runpod-cluster"], provider="runpod"),
    ],
    "lambdalabs": [item("gpu_1x_a10", "A10", 24.0, 1, 0.75, place="us-east-1", provider="lambdalabs")],
}  # fmt: skip
"""In no order, as gpuhunt answers."""


class FakeGpuhunt(FakePrices):
    """tables: a provider's CSV. version: of all of them. zipped: sent in the place of every zip file. member: what
    the table is called in it, in the place of its name."""

    def __init__(self) -> None:
        super().__init__()
        self.version = VERSION
        self.zipped: bytes | None = None
        self.member: str | None = None
        self.tables = {provider: table(items) for provider, items in ITEMS.items()}

    @property
    def catalog_url(self) -> str:
        """As GPUHUNT_CATALOG_URL has it."""
        return f"{self.url}/v3"

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v3/{provider}/version", self._version, methods=["GET"]),
            Route("/v3/{provider}/{version}/catalog.zip", self._zip, methods=["GET"]),
        ]

    async def _version(self, request: Request) -> Response:
        known = request.path_params["provider"] in self.tables
        return PlainTextResponse(f"{self.version}\n") if known else no_such_key()

    async def _zip(self, request: Request) -> Response:
        provider = request.path_params["provider"]
        if provider not in self.tables or request.path_params["version"] != self.version:
            return no_such_key()
        if self.zipped is not None:
            return Response(self.zipped)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(self.member or f"{provider}.csv", self.tables[provider])
        return Response(packed.getvalue(), media_type="application/zip")


def table(items: list[CatalogItem]) -> str:
    """The CSV that gpuhunt writes of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        storage.dump(items, str(path))
        return path.read_text()


def no_such_key() -> Response:
    """As the bucket says it."""
    return Response(
        "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", 403, media_type="application/xml"
    )


def without(column: str, text: str) -> str:
    """The table without one of its columns."""
    import csv

    rows = list(csv.DictReader(io.StringIO(text)))
    out = io.StringIO()
    writer: Any = csv.DictWriter(out, [name for name in rows[0] if name != column], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
