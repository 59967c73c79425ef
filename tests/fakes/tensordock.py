"""TensorDock's list of places and of what is free there, API v2."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.pricelist import FakePrices

TOKEN = "the-test's-tensordock-token"
PRICING = {"per_vcpu_hr": 0.003, "per_gb_ram_hr": 0.002, "per_gb_storage_hr": 0.00005}


def gpu(name: str, usd: float | None, free: int | None, pricing: Any = PRICING) -> dict[str, Any]:
    return {
        "v0Name": name,
        "displayName": name.replace("-", " ").upper(),
        "max_count": free,
        "price_per_hr": usd,
        "resources": {"max_vcpus": 56, "max_ram_gb": 331, "max_storage_gb": 30200},
        "pricing": None if pricing is None else dict(pricing),
        "network_features": {
            "dedicated_ip_available": True,
            "port_forwarding_available": True,
            "network_storage_available": False,
        },
    }


def places() -> list[dict[str, Any]]:
    return [
        {
            "id": "8dd95ff0-dff9-489c-9b02-b38a366b6ab1", "city": "Chubbuck", "stateprovince": "Idaho",
            "country": "United States", "tier": 1,
            "gpus": [gpu("geforcertx4090-pcie-24gb", 0.3966, 4), gpu("geforcegtx1080-pcie-8gb", 0.05, 2)],
        },
        {
            "id": "austin-1", "city": "Austin", "stateprovince": "", "country": "United States", "tier": 3,
            "gpus": [
                gpu("h100-sxm5-80gb", 2.2, 8),
                gpu("l40s-pcie-48gb", None, 1),
                gpu("a100-pcie-80gb", 1.1, 0),
                gpu("rtxa6000-pcie-48gb", 0.4, None, None),
            ],
        },
    ]  # fmt: skip


class FakeTensorDock(FakePrices):
    """places: what it lists."""

    def __init__(self) -> None:
        super().__init__()
        self.places = places()

    def routes(self) -> list[BaseRoute]:
        return [Route("/locations", self._locations, methods=["GET"])]

    async def _locations(self, request: Request) -> Response:
        if request.headers.get("authorization") not in (None, f"Bearer {TOKEN}"):
            return JSONResponse({"status": 401, "error": "Invalid token"})
        return JSONResponse({"data": {"locations": self.places}})
