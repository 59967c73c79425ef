"""Google Cloud as Cloud Run needs it: Admin API v2, long operations, tokens, log, instance counts, secrets, quota.

Bodies are read by the SDK's own protos, strictly. Tokens are real: a service account's assertions are verified, ID
tokens are signed and verified at a service's door. Creating a service starts an instance, and ends when it is ready.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt
from google.cloud import run_v2
from google.protobuf.json_format import ParseError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.platform import Service

PROJECT = "tuna-test"
EMAIL = "tuna@tuna-test.iam.gserviceaccount.com"
L4 = ("asia-southeast1", "asia-south1", "europe-west1", "europe-west4", "us-east4", "us-central1")
PRO = ("asia-southeast1", "asia-south2", "europe-west4", "us-central1")
CARDS = {"nvidia-l4": (L4, 4, 16), "nvidia-rtx-pro-6000": (PRO, 20, 80)}
"""Regions, least cores, least GiB."""
QUOTA = "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion"
FORBIDDEN = (403, b"<html><title>403 Forbidden</title>Your client does not have permission to get URL</html>")
UNAUTHORIZED = (401, b"<html><title>401 Unauthorized</title></html>")


@functools.cache
def keys(whose: str) -> tuple[str, str]:
    """A private and a public key, as PEM."""
    key = rsa.generate_private_key(65537, 2048)
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


@dataclass
class Deployed:
    shown: run_v2.Service
    container: Service | None = None


@dataclass
class FakeCloudRun(FakeCloud):
    """idle_s: real seconds until an idle instance ends."""

    idle_s: float = 1.5
    enabled: bool = True
    monitored: bool = True
    gpu_quota: int = 3
    unreachable: tuple[str, ...] = ()
    secrets: dict[str, str] = field(default_factory=lambda: {"hf-token": "hf_kept-by-google"})
    bodies: list[Any] = field(default_factory=list)
    """Every body of a create or change, as it came."""

    def __post_init__(self) -> None:
        super().__init__()
        self._access: set[str] = set()
        self._number = 0
        self._operations: dict[str, dict[str, Any]] = {}
        self._services: dict[str, Deployed] = {}
        for region, name in (("us-east4", "tuna-salad"), ("us-east4", "web"), ("europe-west4", "tuna-fish")):
            whole = f"projects/{PROJECT}/locations/{region}/services/{name}"
            self._services[whole] = Deployed(run_v2.Service(name=whole, labels={"team": "kitchen"}))

    @property
    def names(self) -> list[str]:
        return [name.rpartition("/")[2] for name in self._services]

    def key_file(self, whose: str = "ours") -> dict[str, str]:
        """A service account's key file, with the place where its tokens are made."""
        return {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "k1",
            "private_key": keys(whose)[0],
            "client_email": EMAIL,
            "client_id": "100",
            "token_uri": f"{self.url}/token",
        }

    def routes(self) -> list[BaseRoute]:
        services = f"/v2/projects/{PROJECT}/locations/{{region}}/services"
        quotas = f"/v1/projects/{PROJECT}/locations/global/services/run.googleapis.com/quotaInfos/{QUOTA}"
        return [
            Route("/token", self._token, methods=["POST"]),
            Route("/impersonated/{who}", self._guarded(self._impersonated), methods=["POST"]),
            Route(services, self._guarded(self._list), methods=["GET"]),
            Route(services, self._guarded(self._create), methods=["POST"]),
            Route(f"{services}/{{name}}", self._guarded(self._get), methods=["GET"]),
            Route(f"{services}/{{name}}", self._guarded(self._patch), methods=["PATCH"]),
            Route(f"{services}/{{name}}", self._guarded(self._delete), methods=["DELETE"]),
            Route(f"/v2/projects/{PROJECT}/locations/{{region}}/operations/{{id}}", self._guarded(self._operation)),
            Route("/v2/entries:list", self._guarded(self._entries), methods=["POST"]),
            Route(f"/v3/projects/{PROJECT}/timeSeries", self._guarded(self._series)),
            Route(f"/v1/projects/{PROJECT}/secrets/{{name}}", self._guarded(self._secret)),
            Route(quotas, self._guarded(self._quota)),
        ]

    # Who one is

    def _guarded(self, handler: Any) -> Any:
        async def guarded(request: Request) -> Response:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme != "Bearer" or not (token in self._access or self._self_signed(token)):
                return wrong(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
            if not self.enabled and request.url.path.startswith("/v2/projects"):
                said = f"Cloud Run Admin API has not been used in project {PROJECT} before or it is disabled."
                info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED"}
                return wrong(403, "PERMISSION_DENIED", said, [{**info, "domain": "googleapis.com"}])
            answered: Response = await handler(request)
            return answered

        return guarded

    def _self_signed(self, token: str) -> bool:
        """A JWT that a service account signed itself, which Google takes in place of an access token."""
        claims = verified(token, keys("ours")[1])
        if claims is None or claims.get("iss") != EMAIL:
            return False
        return claims.get("aud") == "https://run.googleapis.com/" or "cloud-platform" in claims.get("scope", "")

    async def _token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        claims = verified(form.get("assertion", ""), keys("ours")[1])
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" or claims is None:
            return JSONResponse({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, 400)
        if audience := claims.get("target_audience"):
            return JSONResponse({"id_token": id_token(audience)})
        self._number += 1
        made = f"ya29.{self._number}"
        self._access.add(made)
        return JSONResponse({"access_token": made, "expires_in": 3599, "token_type": "Bearer"})

    async def _impersonated(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"token": id_token(body["audience"], email=request.path_params["who"])})

    # Services

    async def _list(self, request: Request) -> Response:
        """A service a page."""
        region = request.path_params["region"]
        if region == "-":
            return wrong(400, "INVALID_ARGUMENT", "location '-' is not supported")
        found = [self._json(s) for n, s in self._services.items() if f"/locations/{region}/" in n]
        begin = int(request.query_params.get("pageToken") or 0)
        page: dict[str, Any] = {"services": found[begin : begin + 1], "zzzNew": 1}
        if begin + 1 < len(found):
            page["nextPageToken"] = str(begin + 1)
        if region in self.unreachable:
            page["unreachable"] = [f"projects/{PROJECT}/locations/{region}"]
        return JSONResponse(page)

    async def _create(self, request: Request) -> Response:
        region, short = request.path_params["region"], request.query_params.get("serviceId", "")
        body = await request.json()
        self.bodies.append(body)
        try:
            asked = run_v2.Service.from_json(json.dumps(body), ignore_unknown_fields=False)
        except ParseError as mistake:
            return wrong(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {mistake}")
        name = f"projects/{PROJECT}/locations/{region}/services/{short}"
        mistake = refused(asked, short, region)
        if not mistake and not self.gpu_quota:
            mistake = "You do not have quota for using GPUs without zonal redundancy."
        if mistake:
            return wrong(400, "INVALID_ARGUMENT", mistake)
        if name in self._services:
            return wrong(409, "ALREADY_EXISTS", f"Resource '{short}' already exists.")
        asked.name, asked.reconciling = name, True
        asked.create_time = asked.update_time = datetime.now(UTC)
        asked.latest_created_revision = f"{name}/revisions/{short}-00001-abc"
        asked.terminal_condition = condition("CONDITION_RECONCILING", "")
        made = self._services[name] = Deployed(asked)
        operation = self._operate(region, name)
        self.platform._run(self._starts(made, operation))
        return JSONResponse(operation)

    async def _starts(self, made: Deployed, operation: dict[str, Any]) -> None:
        shown, container = made.shown, made.shown.template.containers[0]
        short = shown.name.rpartition("/")[2]
        env = {one.name: one.value for one in container.env}
        for one in container.env:
            if secret := one.value_source.secret_key_ref.secret:
                if secret not in self.secrets:
                    self._ends(made, operation, f"Secret projects/{PROJECT}/secrets/{secret} was not found")
                    return
                env[one.name] = self.secrets[secret]

        def opens(headers: Any) -> Any:
            if shown.invoker_iam_disabled:
                return None
            token = headers.get("authorization", "").removeprefix("Bearer ")
            if not token:
                return FORBIDDEN
            claims = verified(token, keys("google")[1])
            return None if claims and claims["aud"] == shown.uri else UNAUTHORIZED

        words = [*container.command, *container.args]
        service = Service(argv=words, env=env, opens=opens, idle_s=self.idle_s)
        service.min, service.max = shown.scaling.min_instance_count, shown.scaling.max_instance_count
        made.container = await self.platform.start(service)
        shown.uri = service.url
        self.platform.wake(service)
        while not any(r.state == "ready" for r in service.replicas):
            if service.stopped:
                return
            if any(r.starts > 1 for r in service.replicas):
                await self.platform.stop(service)
                self._ends(
                    made,
                    operation,
                    f"Revision '{short}-00001-abc' is not ready and cannot serve traffic. The user-provided container "
                    "failed the configured startup probe checks.",
                )
                return
            await asyncio.sleep(0.01)
        self._ends(made, operation, "")

    def _ends(self, made: Deployed, operation: dict[str, Any], mistake: str) -> None:
        shown = made.shown
        shown.reconciling = False
        shown.terminal_condition = condition("CONDITION_FAILED" if mistake else "CONDITION_SUCCEEDED", mistake)
        operation["done"] = True
        if mistake:
            operation["error"] = {"code": 9, "message": mistake}
        else:
            shown.latest_ready_revision = shown.latest_created_revision
            operation["response"] = {"@type": "type.googleapis.com/google.cloud.run.v2.Service", **self._json(made)}

    async def _get(self, request: Request) -> Response:
        found = self._services.get(self._name(request))
        return JSONResponse(self._json(found)) if found else missing(request)

    async def _patch(self, request: Request) -> Response:
        found = self._services.get(self._name(request))
        if found is None or found.container is None:
            return missing(request)
        body = await request.json()
        self.bodies.append(body)
        mask = request.query_params.get("updateMask", "").split(",")
        if set(mask) != {"scaling.minInstanceCount", "scaling.maxInstanceCount"} or set(body) - {"name", "scaling"}:
            return wrong(400, "INVALID_ARGUMENT", f"this fake changes scaling only, not {mask} with {sorted(body)}")
        found.shown.scaling = run_v2.Service.from_json(json.dumps(body)).scaling
        found.shown.update_time = datetime.now(UTC)
        found.container.min = found.shown.scaling.min_instance_count
        found.container.max = found.shown.scaling.max_instance_count
        operation = self._operate(request.path_params["region"], found.shown.name)
        self._ends(found, operation, "")
        return JSONResponse(operation)

    async def _delete(self, request: Request) -> Response:
        name = self._name(request)
        found = self._services.get(name)
        if found is None:
            return missing(request)
        operation = self._operate(request.path_params["region"], name)
        found.shown.delete_time, found.shown.reconciling = datetime.now(UTC), True

        async def goes() -> None:
            if found.container is not None:
                await self.platform.stop(found.container)
            await asyncio.sleep(0.05)
            if self._services.get(name) is found:
                del self._services[name]
            self._ends(found, operation, "")

        self.platform._run(goes())
        return JSONResponse(operation)

    async def _operation(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/v2/")
        return JSONResponse(self._operations[name]) if name in self._operations else missing(request)

    def _operate(self, region: str, target: str) -> dict[str, Any]:
        self._number += 1
        name = f"projects/{PROJECT}/locations/{region}/operations/{self._number:08x}"
        about = {"@type": "type.googleapis.com/google.cloud.run.v2.Service", "name": target}
        self._operations[name] = {"name": name, "metadata": about, "done": False}
        return self._operations[name]

    def _name(self, request: Request) -> str:
        return (
            f"projects/{PROJECT}/locations/{request.path_params['region']}/services/{request.path_params['name']}"
        )

    def _json(self, made: Deployed) -> dict[str, Any]:
        shown = json.loads(run_v2.Service.to_json(made.shown, use_integers_for_enums=False))
        return {**shown, "zzzNew": {"a": [1]}}

    # What else Google tells

    async def _entries(self, request: Request) -> Response:
        """A line a page, after an empty page, as the real one has them too."""
        body = await request.json()
        unknown = set(body) - {"resourceNames", "filter", "orderBy", "pageSize", "pageToken"}
        asked = re.fullmatch(
            r'resource\.type="cloud_run_revision" AND resource\.labels\.service_name="([^"]+)"'
            r' AND resource\.labels\.location="([^"]+)" AND timestamp>="([^"]+)"',
            body.get("filter", ""),
        )
        if unknown or asked is None or body.get("orderBy") != "timestamp asc":
            return wrong(400, "INVALID_ARGUMENT", f"Unparseable filter or unknown field: {body}")
        if body.get("resourceNames") != [f"projects/{PROJECT}"]:
            return wrong(403, "PERMISSION_DENIED", "The caller does not have permission")
        short, region, since = asked.groups()
        after = datetime.fromisoformat(since).timestamp()
        found = self._services.get(f"projects/{PROJECT}/locations/{region}/services/{short}")
        lines = found.container.lines if found and found.container else []
        told = [(n, line) for n, line in enumerate(lines) if round(line[0], 6) >= after]
        token = body.get("pageToken")
        if token is None:
            return JSONResponse({"nextPageToken": "0"} if told else {})
        page = told[int(token) : int(token) + 1]
        answered: dict[str, Any] = {"entries": [_entry(n, line, short, region) for n, line in page]}
        if int(token) + 1 < len(told):
            answered["nextPageToken"] = str(int(token) + 1)
        return JSONResponse(answered)

    async def _series(self, request: Request) -> Response:
        query = request.query_params
        asked = re.fullmatch(
            r'metric\.type="run\.googleapis\.com/container/instance_count" AND resource\.labels\.service_name="([^"]+)"'
            r' AND resource\.labels\.location="([^"]+)"',
            query.get("filter", ""),
        )
        if not self.monitored:
            return wrong(403, "PERMISSION_DENIED", "Permission monitoring.timeSeries.list denied")
        if asked is None or not query.get("interval.endTime") or query.get("view") != "FULL":
            return wrong(400, "INVALID_ARGUMENT", f"bad query {dict(query)}")
        found = self._services.get(f"projects/{PROJECT}/locations/{asked[2]}/services/{asked[1]}")
        ready = [r for r in found.container.replicas if r.state == "ready"] if found and found.container else []
        count = {"active": sum(bool(r.in_flight) for r in ready), "idle": sum(not r.in_flight for r in ready)}
        series = [
            {
                "metric": {"type": "run.googleapis.com/container/instance_count", "labels": {"state": state}},
                "resource": {"type": "cloud_run_revision", "labels": {"service_name": asked[1]}},
                "metricKind": "GAUGE",
                "valueType": "INT64",
                "points": [
                    {"interval": _interval(0), "value": {"int64Value": str(number)}},
                    {"interval": _interval(60), "value": {"int64Value": "7"}},
                ],
            }
            for state, number in count.items()
        ]
        return JSONResponse({"timeSeries": series, "unit": "1"} if ready else {})

    async def _secret(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.secrets:
            return wrong(404, "NOT_FOUND", f"Secret [projects/{PROJECT}/secrets/{name}] not found.")
        return JSONResponse({"name": f"projects/{PROJECT}/secrets/{name}", "replication": {"automatic": {}}})

    async def _quota(self, request: Request) -> Response:
        details = {"value": str(self.gpu_quota)}
        info = {"dimensions": {"region": "us-east4"}, "details": details, "applicableLocations": ["us-east4"]}
        return JSONResponse({"quotaId": QUOTA, "service": "run.googleapis.com", "dimensionsInfos": [info]})


def id_token(audience: str, lasts_s: float = 3600, email: str = EMAIL) -> str:
    """As Google signs it."""
    now = int(time.time())
    claims = {"iss": "https://accounts.google.com", "aud": audience, "email": email, "iat": now}
    signer = crypt.RSASigner.from_string(keys("google")[0], "g1")
    return jwt.encode(signer, {**claims, "exp": now + int(lasts_s)}).decode()


def verified(token: str, public: str) -> dict[str, Any] | None:
    """The claims of a token that was signed with the other half of that key, and has not ended."""
    try:
        claims: dict[str, Any] = jwt.decode(token, certs=public)
    except ValueError:
        return None
    return claims


def refused(asked: run_v2.Service, short: str, region: str) -> str:
    """Why Google would refuse such a service; empty where it would not."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,47}[a-z0-9])?", short):
        return f"service_id: '{short}' must be lower-case letters, digits and dashes, at most 49"
    if asked.name:
        return "service.name: must be empty on create"
    template = asked.template
    if len(template.containers) != 1 or not template.containers[0].image:
        return "template.containers: image is required"
    container = template.containers[0]
    regions, cpu, memory = CARDS.get(template.node_selector.accelerator, ((), 0, 0))
    if region not in regions:
        return f"template.node_selector.accelerator: not available in {region}"
    limits = dict(container.resources.limits)
    if set(limits) != {"cpu", "memory", "nvidia.com/gpu"} or limits["nvidia.com/gpu"] != "1":
        return f"resources.limits: {limits}"
    if int(limits["cpu"]) < cpu or int(limits["memory"].removesuffix("Gi")) < memory:
        return f"resources.limits: this GPU needs at least {cpu} CPU and {memory}Gi"
    if not template.gpu_zonal_redundancy_disabled:
        return "You do not have quota for using GPUs with zonal redundancy."
    probe = container.startup_probe
    if not 1 <= probe.timeout_seconds <= probe.period_seconds <= 240 or probe.initial_delay_seconds > 240:
        return "startup_probe: timeout must be at most the period, and that at most 240"
    if probe.period_seconds * probe.failure_threshold > 1800:
        return "startup_probe: period_seconds * failure_threshold can't exceed 1800"
    if [port.container_port for port in container.ports] != [probe.http_get.port]:
        return "ports: exactly one"
    if (
        not 0 < template.timeout.total_seconds() <= 3600
        or not 1 <= template.max_instance_request_concurrency <= 1000
    ):
        return "template: timeout or concurrency out of range"
    if any(not re.fullmatch(r"[a-z0-9_-]{0,63}", value) for value in asked.labels.values()):
        return "labels: bad value"
    if any(one.name == "PORT" for one in container.env):
        return "env: PORT is reserved"
    return ""


def condition(state: str, message: str) -> run_v2.Condition:
    return run_v2.Condition(type_="Ready", state=run_v2.Condition.State[state], message=message)


def wrong(status: int, name: str, message: str, details: list[Any] | None = None) -> Response:
    error = {"code": status, "message": message, "status": name, **({"details": details} if details else {})}
    return JSONResponse({"error": error}, status)


def missing(request: Request) -> Response:
    return wrong(
        404, "NOT_FOUND", f"Resource '{request.url.path.rpartition('/')[2]}' of kind 'SERVICE' does not exist."
    )


def _entry(number: int, line: tuple[float, str, str], short: str, region: str) -> dict[str, Any]:
    at, instance, text = line
    labels = {"service_name": short, "location": region, "revision_name": f"{short}-00001-abc"}
    payload: dict[str, Any] = (
        {"textPayload": text} if number % 2 else {"jsonPayload": {"message": text, "level": "i"}}
    )
    return {
        "insertId": f"i{number}",
        "logName": f"projects/{PROJECT}/logs/run.googleapis.com%2Fstderr",
        "timestamp": _time(at),
        "labels": {"instanceId": f"00a1b2c3d4{instance}"},
        "resource": {"type": "cloud_run_revision", "labels": labels},
        **payload,
    }


def _interval(ago_s: float) -> dict[str, str]:
    at = _time(time.time() - ago_s)
    return {"startTime": at, "endTime": at}


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
