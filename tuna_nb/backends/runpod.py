"""RunPod serverless: load-balancing endpoints with vLLM's own image, by the REST API v2.

An endpoint has no tags: it is told by its name. Its workers are asked for one by one; one that is THROTTLED waits
for a free GPU and costs nothing, every other one bills from its start to its end, a crash-looping one too.

Source: RunPod's OpenAPI description, version 2.0.0 of 2026-08-20.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from tuna_nb.backends import account
from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import (
    Auth,
    Backend,
    Charge,
    Check,
    Door,
    Endpoint,
    Kind,
    LogLine,
    Plan,
    PlannedResource,
    Progress,
    Quote,
    Ref,
    Replica,
    ServerlessScaling,
    ServiceRequest,
    SpotScaling,
    State,
    Status,
)
from tuna_nb.backends.lifecycle import create_once, knock, until_gone
from tuna_nb.backends.names import deployment_of
from tuna_nb.backends.options import known, whole
from tuna_nb.backends.rest import TIMEOUT_S, Api
from tuna_nb.backends.tailing import merged, until_quiet
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.errors import BackendError, CredentialsError, NotFoundError, RequestError, did_you_mean

URL: Final = "https://api.runpod.io"
KEY: Final = "RUNPOD_API_KEY"
_SIGN_IN: Final = f"export {KEY}=<a key from https://www.runpod.io/console/user/settings>"
_LOOK: Final = "https://www.runpod.io/console/serverless shows it"

TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "L4": ("NVIDIA L4",),
    "RTX3090": ("NVIDIA GeForce RTX 3090",),
    "RTX4090": ("NVIDIA GeForce RTX 4090",),
    "RTX5090": ("NVIDIA GeForce RTX 5090",),
    "L40": ("NVIDIA L40",),
    "L40S": ("NVIDIA L40S",),
    "A40": ("NVIDIA A40",),
    "RTXA4000": ("NVIDIA RTX A4000",),
    "RTXA5000": ("NVIDIA RTX A5000",),
    "RTXA6000": ("NVIDIA RTX A6000",),
    "RTX6000ADA": ("NVIDIA RTX 6000 Ada Generation",),
    "A100_80GB": ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"),
    "H100": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"),
    "H200": ("NVIDIA H200",),
    "B200": ("NVIDIA B200",),
}
"""Our GPU to RunPod's type ids."""

_LIVE: Final = "RunPod's catalog"
_TOKEN: Final = "hf_secret"  # noqa: S105 - an option's name
_STOCK: Final = ("NONE", "LOW", "MEDIUM", "HIGH")
_QUIET_S: Final = 1.5
"""A worker's log goes on for ever: after so long without a line, all that was kept has been told."""
_RESTARTS: Final = 3
_GONE_S: Final = 120.0


class RunpodBackend(Backend):
    """RunPod's serverless side. url: of the API, by default RUNPOD_REST_URL or RunPod's own. pace: of its waits."""

    name: ClassVar[str] = "runpod"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    options: ClassVar[Mapping[str, str]] = {
        "disk_gb": "container disk in GB for image and weights (default 60)",
        "data_centers": "RunPod data centres to choose from, e.g. US-KS-2,EU-RO-1 (default: any)",
        "network_volume": "id of a network volume that keeps the weights (default: none)",
        "min_cuda": "lowest CUDA version of a worker's driver (default 12.9, which the pinned image needs)",
        _TOKEN: "name of the RunPod secret with your Hugging Face token, for a gated model (default hf_token)",
        "flashboot": "off turns FlashBoot off (default on)",
    }
    # A request waits two minutes for a worker, and may take five and a half in all.
    door: ClassVar[Door] = Door(first_byte_s=130, answer_s=330)

    def __init__(self, url: str | None = None, *, timeout_s: float = TIMEOUT_S, pace: float = 1.0) -> None:
        base = url or os.environ.get("RUNPOD_REST_URL") or URL
        self._api = Api("runpod", base, self._headers, _SIGN_IN, timeout_s=timeout_s, pace=pace)
        self._pace = pace
        self._starts: dict[str, set[str]] = {}
        """When each worker was seen to start: one that starts again and again is crash-looping."""

    def configured(self) -> bool:
        return bool(os.environ.get(KEY))

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        if not self.configured():
            return [Check("key", False, f"{KEY} is not set", _SIGN_IN)]
        try:
            listed = await self._api.get("/v2/serverless", "the list of endpoints")
        except CredentialsError as exc:
            return [Check("key", False, exc.message, exc.hint)]
        rows = [Check("key", True, f"{KEY} is accepted; the account has {len(listed['endpoints'])} endpoints")]
        if request is not None:
            rows.append(await self._gpu_row(request))
            if request.engine.gated:
                secret = request.options.get(_TOKEN, "hf_token")
                rows.append(
                    Check("model", True, f"{request.engine.model} is gated: RunPod secret {secret!r} is used")
                )
        return rows

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = _checked(request)
        offer = snapshot.rates(self.name).get(request.gpu)
        price = None if offer is None else offer.price_per_hour_usd
        quote = Quote.of(offer)
        if self.configured():
            try:
                price, quote = await self._live_price(request.gpu), Quote(time.time(), _LIVE)
            except BackendError as exc:
                quote = Quote.of(offer, exc.message)
        each = None if price is None else price * request.gpu_count
        worst = None if each is None else each * scaling.workers_max
        what = f"RunPod endpoint, at most {scaling.workers_max} workers"
        notes = ["workers bill from their start, the loading of weights included"]
        if request.public:
            notes.append("RunPod endpoints always ask for a key: --public changes nothing at RunPod itself")
        if request.engine.command is not None:
            notes.append("RunPod hands the engine command to the image's own entrypoint")
        return Plan(request, (PlannedResource(what, request.name, worst),), each, tuple(notes), quote)

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request

        async def create() -> dict[str, Any]:
            progress(f"creating RunPod endpoint {request.name}", None)
            body = endpoint_body(request, await self._catalog())
            made: dict[str, Any] = await self._api.call(
                "POST", "/v2/serverless", request.name, body=body, creates=True
            )
            return made

        found = await create_once(lambda: self._find(request.name), create, pace=self._pace)
        progress(f"{request.name} is endpoint {found['id']}", 1.0)
        return Endpoint(_ref(found), _base(found))

    async def status(self, ref: Ref) -> Status:
        try:
            found = await self._endpoint(ref)
            workers = await self._api.get(f"/v2/serverless/{found['id']}/workers", f"workers of {ref.name}")
        except NotFoundError:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        replicas = tuple(self._replica(worker) for worker in workers["workers"])
        state, detail = _judge(replicas)
        billing = any(r.state is not State.WAITING for r in replicas)
        return Status(_ref(found), state, replicas, billing, time.time(), detail, _base(found))

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        found = await self._endpoint(ref)
        workers = (await self._api.get(f"/v2/serverless/{found['id']}/workers", f"workers of {ref.name}"))[
            "workers"
        ]
        lines = [self._log(found["id"], worker["id"], since, follow) for worker in workers]
        async for line in merged(
            [line if follow else until_quiet(line, _QUIET_S) for line in lines], follow=follow
        ):
            if since is None or line.at >= since:
                yield line

    async def _log(
        self, endpoint: str, worker: str, since: float | None, follow: bool
    ) -> AsyncGenerator[LogLine, None]:
        """One worker's, which RunPod keeps open; a connection that was lost goes on after the last line."""
        path = f"/v2/serverless/{endpoint}/workers/{worker}/logs"
        params: dict[str, str | int] = {"tail": 5000} if since is None else {"since": _rfc3339(since)}
        last: dict[str, str] = {}
        while True:
            async with self._api.events(path, f"log of {worker}", params, last) as events:
                async for number, data in events:
                    last = {"Last-Event-ID": number}
                    said = json.loads(data)
                    yield LogLine(datetime.fromisoformat(said["ts"]).timestamp(), worker, said["line"])
            if not follow:
                return
            await asyncio.sleep(self.poll_s * self._pace)

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        assert isinstance(scaling, ServerlessScaling)
        found = await self._endpoint(ref)
        body = {"workers": _workers(scaling), "scaling": _scaling(scaling), "timeout": _timeout_ms(scaling)}
        await self._api.call("PATCH", f"/v2/serverless/{found['id']}", ref.name, body=body)

    async def wake(self, ref: Ref) -> None:
        found = await self._endpoint(ref)
        await knock(f"{_base(found)}/health", (await self.auth(ref)).headers)

    async def destroy(self, ref: Ref) -> None:
        try:
            found = await self._endpoint(ref)
            await self._api.call("DELETE", f"/v2/serverless/{found['id']}", ref.name)
        except NotFoundError:
            return

        async def is_there() -> bool:
            return await self._find(ref.name) is not None

        await until_gone(is_there, f"runpod: {ref.name}", within_s=_GONE_S, poll_s=self._pace, hint=_LOOK)

    async def list_owned(self) -> list[Ref]:
        return [_ref(e) for e in await self._endpoints() if deployment_of(_name(e)) is not None]

    async def auth(self, ref: Ref) -> Auth:
        await self._endpoint(ref)
        return Auth({"Authorization": f"Bearer {self._key()}"})

    async def prices(self) -> list[Offer]:
        shipped = snapshot.rates(self.name)
        if not self.configured():
            return list(shipped.values())
        now, catalog = time.time(), await self._catalog()
        any_other = next(iter(shipped.values()))
        return [
            Offer(
                self.name,
                OfferKind.SERVERLESS,
                gpu,
                usd,
                None,
                now,
                _LIVE,
                lines=any_other.lines,
                billing=any_other.billing,
                stock=_stock(gpu, catalog),
                most_gpus=_most(gpu, catalog),
                note=any_other.note,
            )
            for gpu in TYPES
            if (usd := _price(gpu, catalog)) is not None
        ]

    async def charges(self, ref: Ref, since: float, until: float) -> list[Charge]:
        """An endpoint's hours in RunPod's billing history; of a destroyed one by its id alone."""
        try:
            made = ref.id or str((await self._endpoint(ref))["id"])
        except NotFoundError as exc:
            raise account.nameless(self.name, ref.name) from exc
        what = f"the bill of {ref.name}"
        told = await self._api.get(
            "/v2/billing/serverless",
            what,
            startTime=_rfc3339(account.down_to(since, account.HOUR_S).timestamp()),
            endTime=_rfc3339(account.up_to(until, account.HOUR_S).timestamp()),
            bucketSize="hour",
            serverlessId=made,
        )
        with account.understood(self.name, what):
            records = told["records"]
            if (count := told["metadata"]["recordCount"]) != len(records):
                raise ValueError(f"{len(records)} of {count} records")
            found = [_charge(one) for one in records if one["serverlessId"] == made]
        return account.within(found, since, until)

    # Its own parts

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key()}"}

    def _key(self) -> str:
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise CredentialsError(f"runpod: {KEY} is not set", _SIGN_IN)
        return key

    async def _catalog(self) -> list[dict[str, Any]]:
        gpus: list[dict[str, Any]] = (await self._api.get("/v2/catalog/gpus", "the GPU catalog"))["gpus"]
        return gpus

    async def _live_price(self, gpu: str) -> float | None:
        return _price(gpu, await self._catalog())

    async def _gpu_row(self, request: ServiceRequest) -> Check:
        try:
            selection(request.gpu, request.gpu_count, await self._catalog())
        except RequestError as exc:
            return Check("gpu", False, exc.message, exc.hint)
        return Check("gpu", True, f"RunPod offers {request.gpu}")

    async def _endpoints(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = (await self._api.get("/v2/serverless", "the list of endpoints"))["endpoints"]
        return listed

    async def _find(self, name: str) -> dict[str, Any] | None:
        """Of several with our name the first made is ours."""
        ours = [e for e in await self._endpoints() if _name(e) == name]
        return min(ours, key=lambda e: str(e["createdAt"])) if ours else None

    async def _endpoint(self, ref: Ref) -> dict[str, Any]:
        """Raises NotFoundError."""
        if ref.id is not None:
            found: dict[str, Any] = await self._api.get(f"/v2/serverless/{ref.id}", ref.name)
            return found
        by_name = await self._find(ref.name)
        if by_name is None:
            raise NotFoundError(f"runpod: there is no endpoint {ref.name}")
        return by_name

    def _replica(self, worker: Mapping[str, Any]) -> Replica:
        started = worker.get("startedAt")
        starts = self._starts.setdefault(worker["id"], set())
        if started:
            starts.add(started)
        up_s = worker.get("uptimeSeconds") or 0
        state = {
            "RUNNING": State.READY,
            "IDLE": State.READY,
            "INITIALIZING": State.STARTING,
            "THROTTLED": State.WAITING,
        }.get(worker["status"], State.STARTING)
        # vLLM takes no connections while it loads, which RunPod calls unhealthy.
        if state is State.STARTING and (len(starts) >= _RESTARTS or up_s > engines.START_S):
            state = State.FAILED
        detail = str(worker["status"]).lower()
        if state is State.FAILED:
            detail = f"unhealthy after {len(starts)} starts, and billing"
        at = datetime.fromisoformat(started).timestamp() if started else time.time()
        return Replica(worker["id"], state, at, worker.get("dataCenterId"), detail)


def endpoint_body(request: ServiceRequest, catalog: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of `POST /v2/serverless`. The Hugging Face token is named, never sent. Raises RequestError."""
    scaling = _checked(request)
    engine, options = request.engine, request.options
    words = engines.command(engine)
    if engine.command is None:
        # The image's entrypoint is `vllm serve`.
        words = words[2:]
    env = engines.environment(engine)
    env |= {"PORT": str(engines.PORT), "PORT_HEALTH": str(engines.PORT), "HEALTH_CHECK_PATH": engine.health_path}
    if engine.gated or _TOKEN in options:
        env["HF_TOKEN"] = f"{{{{ RUNPOD_SECRET_{options.get(_TOKEN, 'hf_token')} }}}}"
    body: dict[str, Any] = {
        "name": request.name,
        "type": "LOAD_BALANCER",
        "image": engines.image(engine),
        "args": shlex.join(words),
        "disk": _disk_gb(options),
        "ports": [f"{engines.PORT}/http"],
        "env": env,
        "gpu": {
            **selection(request.gpu, request.gpu_count, catalog),
            "minCudaVersion": options.get("min_cuda", "12.9"),
        },
        "workers": _workers(scaling),
        "scaling": _scaling(scaling),
        "timeout": _timeout_ms(scaling),
        "flashboot": "OFF" if options.get("flashboot") == "off" else "FLASHBOOT",
    }
    if centers := options.get("data_centers"):
        body["dataCenterIds"] = [center.strip() for center in centers.split(",")]
    if volume := options.get("network_volume"):
        body["networkVolumes"] = [volume]
    return body


def selection(gpu: str, count: int, catalog: list[dict[str, Any]]) -> dict[str, Any]:
    """The pools that hold this GPU, less every other card in them. Raises RequestError where RunPod has none."""
    wanted = TYPES[gpu]
    pools = sorted({item["pool"] for item in catalog if item["id"] in wanted and item.get("pool")})
    if not pools:
        raise RequestError(
            f"runpod: no serverless pool has {gpu} now", "`tuna check --provider runpod` shows what there is"
        )
    others = sorted(item["id"] for item in catalog if item.get("pool") in pools and item["id"] not in wanted)
    return {"pools": pools, "excludedTypes": others, "count": count}


def _checked(request: ServiceRequest) -> ServerlessScaling:
    """What can never work is said before anything exists. Raises RequestError."""
    known("runpod", request.options, RunpodBackend.options)
    if request.gpu not in TYPES:
        raise RequestError(f"runpod has no serverless {request.gpu}", did_you_mean(request.gpu, TYPES))
    scaling = request.scaling
    if not isinstance(scaling, ServerlessScaling):
        raise RequestError("runpod: only serverless GPUs", "choose another --spots-cloud")
    if not 1 <= scaling.scaledown_window <= 3600:
        raise RequestError(
            f"runpod: serverless.scaledown_window is {scaling.scaledown_window:g}", "RunPod takes 1 to 3600 seconds"
        )
    if not re.fullmatch(r"\d+\.\d+", request.options.get("min_cuda", "12.9")):
        raise RequestError(f"runpod: option min_cuda is {request.options['min_cuda']!r}", "for example 12.9")
    _disk_gb(request.options)
    engines.command(request.engine)
    return scaling


def _disk_gb(options: Mapping[str, str]) -> int:
    return whole(options, "disk_gb", 60, least=20, most=2000)


def _workers(scaling: ServerlessScaling) -> dict[str, int]:
    return {
        "min": scaling.workers_min,
        "max": scaling.workers_max,
        "idleTimeout": max(1, round(scaling.scaledown_window)),
    }


def _scaling(scaling: ServerlessScaling) -> dict[str, Any]:
    return {"type": "REQUEST_COUNT", "requestCount": scaling.concurrency}


def _timeout_ms(scaling: ServerlessScaling) -> int:
    return round(scaling.timeout * 1000)


def _price(gpu: str, catalog: list[dict[str, Any]]) -> float | None:
    """The dearest of its types: whichever is free is what one gets."""
    prices = [item["price"]["serverless"] for item in catalog if item["id"] in TYPES[gpu] and item.get("pool")]
    return max(prices) if prices else None


def _stock(gpu: str, catalog: list[dict[str, Any]]) -> str | None:
    """RunPod's word for the best of its types; None where it says none."""
    said = [str(i["availability"]) for i in catalog if i["id"] in TYPES[gpu] and i.get("availability")]
    return max(said, key=lambda word: _STOCK.index(word) if word in _STOCK else -1, default=None)


def _most(gpu: str, catalog: list[dict[str, Any]]) -> int | None:
    """GPUs in the largest machine that RunPod has of its types."""
    told = [i["maxCount"].get("secure") for i in catalog if i["id"] in TYPES[gpu] and i.get("maxCount")]
    return max((count for count in told if isinstance(count, int)), default=None)


def _judge(replicas: tuple[Replica, ...]) -> tuple[State, str]:
    states = {r.state for r in replicas}
    for state in (State.READY, State.STARTING):
        if state in states:
            return state, ""
    if State.FAILED in states:
        return State.FAILED, next(r.detail for r in replicas if r.state is State.FAILED)
    if State.WAITING in states:
        return State.WAITING, "RunPod has no such GPU free: its workers are throttled"
    return State.IDLE, ""


def _ref(endpoint: Mapping[str, Any]) -> Ref:
    name = _name(endpoint)
    return Ref("runpod", Kind.SERVERLESS, name, endpoint["id"], deployment_of(name))


def _charge(record: Mapping[str, Any]) -> Charge:
    parts = {part: record[f"{part}Amount"] for part in ("gpu", "cpu", "disk", "fee")}
    started, ended = (datetime.fromisoformat(record[f"{end}Time"]).timestamp() for end in ("start", "end"))
    return Charge(started, ended, account.usd(record["totalAmount"]), account.lines(parts) or "no part of it told")


def _name(endpoint: Mapping[str, Any]) -> str:
    """RunPod has been seen to add a suffix where FlashBoot is on."""
    return str(endpoint["name"]).removesuffix(" -fb")


def _base(endpoint: Mapping[str, Any]) -> str:
    return str(endpoint["requestUrls"]["base"]).rstrip("/")


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
