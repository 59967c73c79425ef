"""Vast.ai's search for offers, as its documentation and its own client of 2026-08 have it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.pricelist import FakePrices

KEY = "the-test's-vast-key"
OPERATORS = {"eq", "neq", "gt", "lt", "gte", "lte", "in", "notin"}

RECORDED = {
    "id": 5006600, "gpu_name": "RTX 3090", "num_gpus": 1, "gpu_ram": 24576, "gpu_frac": 0.25, "cpu_ram": 128556,
    "cpu_cores": 16, "cpu_cores_effective": 4, "disk_space": 49.75, "dph_base": 0.32, "min_bid": 0.1438056,
    "storage_cost": 0.2, "storage_total_cost": 0.00277777777777778, "dph_total": 0.322777777777778,
    "geolocation": "Norway", "reliability2": 0.9993718, "verification": "verified", "rentable": True, "rented": False,
    "external": False, "inet_up_cost": 0.03, "inet_down_cost": 0.03, "cuda_max_good": 11.7, "duration": 688168.0,
}  # fmt: skip
"""An offer that somebody noted down, found with 10 GB of disk."""


def offer(number: int, gpu: str, ram_mb: float | None, count: int = 1, **other: Any) -> dict[str, Any]:
    return {
        **RECORDED, "id": number, "gpu_name": gpu, "gpu_ram": ram_mb, "num_gpus": count, "disk_space": 500.0,
        "dph_base": 0.4 * count, "min_bid": 0.2 * count, "storage_cost": 0.15, "reliability2": 0.98,
        "geolocation": "Texas, US", **other,
    }  # fmt: skip


OFFERS = [
    RECORDED,
    offer(2, "RTX 4090", 24564, geolocation="Quebec, CA"),
    offer(
        3, "H100 SXM", 81559, 8, dph_base=16.0, min_bid=8.8, reliability2=None, reliability=1.02, geolocation=", CN"
    ),
    offer(4, "RTX 5090", 32607, cpu_cores=None, cpu_cores_effective=None, geolocation=None),
    offer(5, "A100 SXM4", 81920, dph_base=0.76, min_bid=0.76),
    offer(6, "A100 SXM4", 40960, min_bid=None, storage_cost=None, geolocation=""),
    offer(7, "RTX 4090", 49140, dph_base=0.1),
    offer(8, "RTX 9999", 99999),
    offer(9, "L40S", 46068, dph_base=None, min_bid=0.3),
    offer(10, "RTX 3090", 24576, rentable=False),
    offer(11, "L40S", 46068, only="bid"),
    offer(12, "L40S", 46068, only="ondemand"),
]
"""A bid as dear as the machine itself (5), no bid at all (6), a card with twice its memory (7), one that nobody knows
(8), nulls wherever they were seen, machines that are sold in one way only."""


class FakeVast(FakePrices):
    """offers: what is for rent. bodies: every search, as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.offers = [dict(o) for o in OFFERS]
        self.bodies: list[dict[str, Any]] = []

    def routes(self) -> list[BaseRoute]:
        return [Route("/api/v0/bundles/", self._search, methods=["POST"])]

    async def _search(self, request: Request) -> Response:
        key = request.headers.get("authorization")
        if key not in (None, f"Bearer {KEY}"):
            return JSONResponse({"success": False, "error": "auth_error", "msg": "Invalid user key"}, 404)
        body = await request.json()
        self.bodies.append(body)
        disk, kind = body.pop("allocated_storage", 8), body.pop("type", "ondemand")
        order, limit = body.pop("order", []), body.pop("limit", 64)
        if kind not in ("ondemand", "on-demand", "bid", "reserved"):
            return JSONResponse({"success": False, "error": "invalid_args", "msg": f"type {kind}"}, 400)
        for name, rule in body.items():
            if not isinstance(rule, dict) or not set(rule) <= OPERATORS:
                return JSONResponse({"success": False, "error": "invalid_args", "msg": f"{name}: {rule}"}, 400)
        found = [o for o in self.offers if o["rentable"] == body.get("rentable", {}).get("eq", o["rentable"])]
        found = [self._shown(o, kind, disk) for o in found if o.get("only", kind) == kind]
        for name, way in reversed(order):
            found.sort(key=lambda o, name=name: (o.get(name) is None, o.get(name)), reverse=way == "desc")
        return JSONResponse({"offers": found[:limit], "success": True})

    def _shown(self, offer: dict[str, Any], kind: str, disk: float) -> dict[str, Any]:
        shown = {**offer, "is_bid": kind == "bid"}
        shown.pop("only", None)
        if offer.get("dph_base") is not None and offer.get("storage_cost") is not None:
            shown["storage_total_cost"] = disk * offer["storage_cost"] / 30 / 24
            shown["dph_total"] = offer["dph_base"] + shown["storage_total_cost"]
        return shown
