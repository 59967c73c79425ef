"""RunPod's REST API v2, as its OpenAPI description of 2026-08-20 has it: fields, limits, problem+json, worker states."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.platform import REFUSED, Replica, Service

KEY = "rpa_the-test's-key"
RATES = {"RateLimit": '"default";r=59;t=60', "RateLimit-Policy": '"default";q=60;w=60'}

TOP = {
    "name": str,
    "type": str,
    "image": str,
    "args": str,
    "disk": int,
    "ports": list,
    "env": dict,
    "registry": str,
    "gpu": dict,
    "cpu": list,
    "workers": dict,
    "scaling": dict,
    "timeout": int,
    "flashboot": str,
    "dataCenterIds": list,
    "networkVolumes": list,
    "templateId": str,
}
GPU = {"pools": list, "excludedTypes": list, "count": int, "minCudaVersion": str, "allowedCudaVersions": list}
WORKERS = {"min": int, "max": int, "idleTimeout": int}
STATUS = {"waiting": "THROTTLED", "booting": "INITIALIZING", "ready": "IDLE", "failed": "UNHEALTHY"}


def gpu(name: str, pool: str | None, memory: int, serverless: float | None) -> dict[str, Any]:
    price = {"secure": 0.5, "community": 0.4, **({"serverless": serverless} if serverless else {})}
    return {
        "id": name,
        "name": name.removeprefix("NVIDIA "),
        "pool": pool,
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": True,
        "community": True,
        "price": price,
        "maxCount": {"secure": 8, "community": 4},
    }


CATALOG = [
    gpu("NVIDIA L4", "AMPERE_24", 24, 0.684),
    gpu("NVIDIA RTX A5000", "AMPERE_24", 24, 0.684),
    gpu("NVIDIA GeForce RTX 3090", "AMPERE_24", 24, 0.684),
    gpu("NVIDIA GeForce RTX 4090", "ADA_24", 24, 1.116),
    gpu("NVIDIA A100 80GB PCIe", "AMPERE_80", 80, 2.736),
    gpu("NVIDIA A100-SXM4-80GB", "AMPERE_80", 80, 2.736),
    gpu("NVIDIA H100 80GB HBM3", "ADA_80_PRO", 80, 4.176),
    gpu("NVIDIA GeForce GTX 1080", None, 8, None),
]


class FakeRunpod(FakeCloud):
    """free_gpus: whether workers find a GPU at all. scale: a second of RunPod's takes so many real ones."""

    def __init__(self, *, scale: float = 0.03) -> None:
        super().__init__()
        self.free_gpus = True
        self.scale = scale
        self.bodies: list[dict[str, Any]] = []
        """Every body of a create, as it came."""
        self._endpoints: dict[str, tuple[dict[str, Any], Service | None]] = {}
        self.account: list[tuple[str, float, float]] = []
        """What has been billed: the endpoint's id, when (Unix seconds), USD for the GPU; a tenth more for the disk."""
        self.loses_records = self.ignores_filter = False
        self._number = 0
        self._endpoints["ep_foreign"] = (
            {**_defaults(), "id": "ep_foreign", "name": "tuna-salad", "createdAt": "2026-01-01T00:00:00Z"},
            None,
        )

    @property
    def names(self) -> list[str]:
        """Of all endpoints of the account, ours and others'."""
        return [endpoint["name"] for endpoint, _ in self._endpoints.values()]

    def routes(self) -> list[BaseRoute]:
        one = "/v2/serverless/{id}"
        return [
            Route("/v2/serverless", self._guarded(self._list), methods=["GET"]),
            Route("/v2/serverless", self._guarded(self._create), methods=["POST"]),
            Route(one, self._guarded(self._get), methods=["GET"]),
            Route(one, self._guarded(self._patch), methods=["PATCH"]),
            Route(one, self._guarded(self._delete), methods=["DELETE"]),
            Route(f"{one}/workers", self._guarded(self._workers), methods=["GET"]),
            Route(f"{one}/workers/{{worker}}/logs", self._guarded(self._logs), methods=["GET"]),
            Route("/v2/billing/serverless", self._guarded(self._billing), methods=["GET"]),
            Route("/v2/catalog/gpus", self._guarded(self._catalog), methods=["GET"]),
        ]

    def _guarded(self, handler: Any) -> Any:
        async def guarded(request: Request) -> Response:
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return problem(401, "Unauthorized", "invalid api key")
            answer: Response = await handler(request)
            answer.headers.update(RATES)
            return answer

        return guarded

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"endpoints": [self._shown(e, s) for e, s in self._endpoints.values()], "zzzNew": 1})

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        wrong = _wrong(body, TOP) or _wrong_create(body)
        if wrong:
            return problem(400, "Bad Request", "request body has an error", wrong)
        self._number += 1
        made = f"ep{self._number:08x}"
        endpoint = {**_defaults(), **body, "id": made, "createdAt": _now()}
        endpoint["workers"] = {**_defaults()["workers"], **body.get("workers", {})}
        service = Service(
            argv=["vllm", "serve", *shlex.split(body.get("args", ""))],
            env=body.get("env", {}),
            opens=lambda headers: None if headers.get("authorization") == f"Bearer {KEY}" else REFUSED,
            capacity=lambda: self.free_gpus,
        )
        self._endpoints[made] = (endpoint, service)
        self._scale(endpoint, service)
        await self.platform.start(service)
        return JSONResponse(self._shown(endpoint, service), 201)

    async def _get(self, request: Request) -> Response:
        found = self._endpoints.get(request.path_params["id"])
        return JSONResponse(self._shown(*found)) if found else missing()

    async def _patch(self, request: Request) -> Response:
        found = self._endpoints.get(request.path_params["id"])
        if found is None:
            return missing()
        body = await request.json()
        wrong = _wrong(body, {k: v for k, v in TOP.items() if k != "type"}) or _wrong_settings(body)
        if wrong:
            return problem(400, "Bad Request", "request body has an error", wrong)
        endpoint, service = found
        endpoint["workers"].update(body.pop("workers", {}))
        endpoint.update(body)
        assert service is not None
        self._scale(endpoint, service)
        return JSONResponse(self._shown(endpoint, service))

    async def _delete(self, request: Request) -> Response:
        found = self._endpoints.pop(request.path_params["id"], None)
        if found is None:
            return missing()
        if found[1] is not None:
            await self.platform.stop(found[1])
        return Response(status_code=204)

    async def _workers(self, request: Request) -> Response:
        found = self._endpoints.get(request.path_params["id"])
        if found is None:
            return missing()
        service = found[1]
        workers = [self._worker(found[0], r) for r in service.alive()] if service else []
        summary = {s.lower(): sum(w["status"] == s for w in workers) for s in ("RUNNING", *STATUS.values())}
        return JSONResponse(
            {"workers": workers, "summary": {**summary, "total": len(workers)}, "endpointVersion": 1}
        )

    async def _logs(self, request: Request) -> Response:
        found = self._endpoints.get(request.path_params["id"])
        worker = request.path_params["worker"]
        if found is None or found[1] is None or worker not in [r.id for r in found[1].replicas]:
            return missing()
        service, query = found[1], request.query_params
        after = 0.0
        if since := request.headers.get("last-event-id") or query.get("since"):
            try:
                after = datetime.fromisoformat(since.partition("/")[0]).timestamp()
            except ValueError:
                return problem(400, "Bad Request", f"{since!r} is no date-time")

        async def stream() -> Any:
            told = 0
            while not service.stopped:
                lines = [line for line in service.lines if line[1] == worker and line[0] > after]
                for at, _, text in lines[told:]:
                    stamp = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
                    data = {"ts": stamp, "source": "container", "line": text}
                    yield f"id: {stamp}/000000000042\ndata: {json.dumps(data)}\n\n"
                told = len(lines)
                await asyncio.sleep(0.01)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _catalog(self, request: Request) -> Response:
        return JSONResponse({"gpus": CATALOG})

    async def _billing(self, request: Request) -> Response:
        asked = dict(request.query_params)
        if extra := set(asked) - {"startTime", "endTime", "bucketSize", "lastN", "serverlessId"}:
            return problem(400, "Bad Request", f"unknown parameters {sorted(extra)}")
        step_s = {"hour": 3600, "day": 86400}[asked.get("bucketSize", "day")]
        since, until = (datetime.fromisoformat(asked[name]).timestamp() for name in ("startTime", "endTime"))
        since, until = since // step_s * step_s, -(-until // step_s) * step_s
        sums: dict[tuple[str, float], float] = {}
        for made, at, usd in self.account:
            if since <= at < until and (self.ignores_filter or asked.get("serverlessId") in (None, made)):
                bucket = made, at // step_s * step_s
                sums[bucket] = sums.get(bucket, 0.0) + usd
        records = [
            {
                "startTime": _now(at),
                "endTime": _now(at + step_s),
                "serverlessId": made,
                "totalAmount": round(usd * 1.1, 6),
                "gpuAmount": usd,
                "cpuAmount": 0,
                "diskAmount": round(usd * 0.1, 6),
                "feeAmount": 0,
            }
            for (made, at), usd in sorted(sums.items())
        ]
        amounts = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount", "feeAmount")
        metadata = {
            "query": {
                "startTime": _now(since),
                "endTime": _now(until),
                "bucketSize": asked.get("bucketSize", "day"),
                "serverlessId": asked.get("serverlessId"),
            },
            "recordCount": len(records),
            "uniqueServerlessCount": len({record["serverlessId"] for record in records}),
            "totals": {name: sum(float(str(record[name])) for record in records) for name in amounts},
        }
        return JSONResponse({"records": records[: -1 if self.loses_records else None], "metadata": metadata})

    def _scale(self, endpoint: dict[str, Any], service: Service) -> None:
        workers = endpoint["workers"]
        service.min, service.max = workers["min"], workers["max"]
        service.idle_s = workers["idleTimeout"] * self.scale

    def _shown(self, endpoint: dict[str, Any], service: Service | None) -> dict[str, Any]:
        base = service.url if service else f"https://{endpoint['id']}.api.runpod.ai"
        return {**endpoint, "requestUrls": {"base": base, "health": f"{base}/health"}, "zzzNew": {"a": [1]}}

    def _worker(self, endpoint: dict[str, Any], replica: Replica) -> dict[str, Any]:
        status = "RUNNING" if replica.state == "ready" and replica.in_flight else STATUS[replica.state]
        placed = status != "THROTTLED"
        return {
            "id": replica.id,
            "status": status,
            "isStale": False,
            "version": 1,
            "gpuCount": endpoint["gpu"].get("count", 1),
            "gpuTypeId": "NVIDIA L4" if placed else None,
            "dataCenterId": "US-KS-2" if placed else None,
            "uptimeSeconds": int(time.time() - replica.started_at) if placed else None,
            "startedAt": _now(replica.started_at) if placed else None,
            "image": endpoint["image"],
        }


def problem(status: int, title: str, detail: str, errors: list[str] | None = None) -> Response:
    body = {"title": title, "status": status, "detail": detail, **({"errors": errors} if errors else {})}
    return JSONResponse(body, status, media_type="application/problem+json")


def missing() -> Response:
    return problem(404, "Not Found", "endpoint not found")


def _defaults() -> dict[str, Any]:
    return {
        "type": "LOAD_BALANCER",
        "image": "example/other:1",
        "gpu": {"pools": ["ADA_24"], "count": 1},
        "workers": {"min": 0, "max": 3, "idleTimeout": 10},
        "scaling": {"type": "REQUEST_COUNT", "requestCount": 4},
        "dataCenterIds": [],
        "networkVolumes": [],
        "timeout": 300000,
        "flashboot": "OFF",
    }


def _now(at: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat().replace("+00:00", "Z")


def _wrong(body: dict[str, Any], known: dict[str, type], where: str = "$") -> list[str]:
    extra = [f"{where}: additional properties '{key}' not allowed" for key in body if key not in known]
    return extra + [
        f"{where}.{key}: got {type(value).__name__}, want {known[key].__name__}"
        for key, value in body.items()
        if key in known and (not isinstance(value, known[key]) or isinstance(value, bool))
    ]


def _wrong_create(body: dict[str, Any]) -> list[str]:
    wrong = [f"$: missing property '{key}'" for key in ("name", "type", "scaling") if key not in body]
    if "image" not in body and "templateId" not in body:
        wrong.append("$: missing property 'image'")
    if ("gpu" in body) == ("cpu" in body):
        wrong.append("$: exactly one of gpu and cpu")
    if body.get("type") == "LOAD_BALANCER" and body.get("scaling", {}).get("type") != "REQUEST_COUNT":
        wrong.append("$.scaling: load-balancing endpoints scale on REQUEST_COUNT")
    if body.get("type") not in ("LOAD_BALANCER", "QUEUE"):
        wrong.append("$.type: unknown")
    return wrong or _wrong_settings(body)


def _wrong_settings(body: dict[str, Any]) -> list[str]:
    wrong = _wrong(body.get("workers", {}), WORKERS, "$.workers")
    wrong += _wrong(body.get("scaling", {}), {"type": str, "requestCount": int}, "$.scaling")
    if body.get("scaling", {}).get("requestCount", 1) < 1:
        wrong.append("$.scaling.requestCount: minimum 1")
    if not 1 <= body.get("workers", {}).get("idleTimeout", 1) <= 3600:
        wrong.append("$.workers.idleTimeout: must be 1 to 3600")
    if body.get("flashboot", "OFF") not in ("OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"):
        wrong.append("$.flashboot: unknown")
    if any(not isinstance(v, str) for v in body.get("env", {}).values()):
        wrong.append("$.env: values are strings")
    gpu_asked = body.get("gpu")
    if gpu_asked is not None:
        wrong += _wrong(gpu_asked, GPU, "$.gpu")
        pools = gpu_asked.get("pools", [])
        known = {g["pool"] for g in CATALOG}
        wrong += [f"$.gpu.pools: unknown pool '{pool}'" for pool in pools if pool not in known]
        in_pools = {g["id"] for g in CATALOG if g["pool"] in pools}
        excluded = set(gpu_asked.get("excludedTypes", []))
        wrong += [f"$.gpu.excludedTypes: '{t}' is in none of the pools" for t in sorted(excluded - in_pools)]
        if in_pools and not in_pools - excluded:
            wrong.append("$.gpu: nothing is left of the pools")
        if not re.fullmatch(r"\d+\.\d+", gpu_asked.get("minCudaVersion", "1.0")):
            wrong.append("$.gpu.minCudaVersion: not major.minor")
    return wrong
