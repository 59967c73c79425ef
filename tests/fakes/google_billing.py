"""Google's Cloud Billing catalogue: the SKUs of Cloud Run, as proto JSON, a few a page."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.pricelist import FakePrices

KEY = "the-test's-google-key"
PAGE = 3


def sku(
    words: str, unit: str, nanos: int, *regions: str, usage: str = "OnDemand", free: bool = False
) -> dict[str, Any]:
    def tier(start: float, nanos: int) -> dict[str, Any]:
        return {"startUsageAmount": start, "unitPrice": {"currencyCode": "USD", "units": "0", "nanos": nanos}}

    return {
        "name": f"services/152E-C115-5142/skus/{abs(hash(words)):x}",
        "description": words,
        "category": {
            "serviceDisplayName": "Cloud Run", "resourceFamily": "ApplicationServices", "resourceGroup": "Compute",
            "usageType": usage,
        },
        "serviceRegions": list(regions),
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit, "displayQuantity": 1, "baseUnit": "s",
                    "tieredRates": [*([tier(0, 0)] if free else []), tier(240000 if free else 0, nanos)],
                },
                "currencyConversionRate": 1,
                "effectiveTime": "2026-11-20T00:00:00Z",
            }
        ],
        "geoTaxonomy": {"type": "REGIONAL", "regions": list(regions)},
    }  # fmt: skip


def skus() -> list[dict[str, Any]]:
    cpu, memory = "Services CPU (Instance-based billing) in ", "Services Memory (Instance-based billing) in "
    return [
        sku("Requests", "count", 400, "global", free=True),
        sku("Services CPU (Request-based billing)", "s", 24000, "us-central1", free=True),
        sku("NVIDIA L4 GPU, no zonal redundancy, in us-central1", "s", 186700, "us-central1"),
        sku("NVIDIA L4 GPU, zonal redundancy, in us-central1", "s", 290900, "us-central1"),
        sku(f"{cpu}us-central1", "s", 18000, "us-central1", free=True),
        sku(f"{memory}us-central1", "GiBy.s", 2000, "us-central1", free=True),
        sku("Jobs NVIDIA L4 GPU in us-central1", "s", 999999, "us-central1"),
        sku("NVIDIA RTX PRO 6000 GPU, no zonal redundancy, in europe-west4", "s", 365220, "europe-west4"),
        # So it is spelt there.
        sku(f"{cpu}in asia-northeast1", "s", 23400, "asia-northeast1"),
        sku("NVIDIA L4 GPU, no zonal redundancy, in asia-northeast1", "s", 240000, "asia-northeast1"),
        sku("Commitment: NVIDIA L4 GPU in us-central1", "s", 100000, "us-central1", usage="Commit1Yr"),
        sku("NVIDIA Z9 GPU, no zonal redundancy, in us-central1", "s", 1, "us-central1"),
    ]


class FakeGoogleBilling(FakePrices):
    """skus: what it lists."""

    def __init__(self) -> None:
        super().__init__()
        self.skus = skus()

    def routes(self) -> list[BaseRoute]:
        return [Route("/v1/services/152E-C115-5142/skus", self._list, methods=["GET"])]

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        if request.headers.get("x-goog-api-key") != KEY:
            return problem(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        if not 0 < int(query.get("pageSize", "5000")) <= 5000 or query.get("currencyCode", "USD") != "USD":
            return problem(400, "INVALID_ARGUMENT", "Request contains an invalid argument.")
        start = int(query.get("pageToken") or 0)
        more = str(start + PAGE) if start + PAGE < len(self.skus) else ""
        return JSONResponse({"skus": self.skus[start : start + PAGE], "nextPageToken": more})


def problem(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": status, "message": message, "status": code}}, status)
