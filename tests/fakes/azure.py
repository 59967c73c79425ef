"""Azure Resource Manager with Container Apps, api-version 2026-07-01, as Azure's SDK meets it: long operations, tiny
pages, ids that change their case, states that take time, limits on probes and shapes, and the Retail Prices API."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.platform import Replica, Service

SUBSCRIPTION = "5ab5c01e-0000-4000-8000-00000000face"
GROUP = "tuna-rg"
REGION = "swedencentral"
TOKEN = "arm-token-of-the-test"
APP_TOKEN = "app-token-of-the-test"
API = "2026-07-01"
PAGE = 1

GPU_PROFILES = {"Consumption-GPU-NC8as-T4": (8, "56Gi"), "Consumption-GPU-NC24-A100": (24, "220Gi")}

LEAF: dict[str, Any] = {}
PROBE = {
    "type": str,
    "httpGet": {"path": str, "port": int, "scheme": str, "host": str, "httpHeaders": list},
    "tcpSocket": {"port": int, "host": str},
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "timeoutSeconds": int,
    "failureThreshold": int,
    "successThreshold": int,
}
SCALE = {
    "minReplicas": int,
    "maxReplicas": int,
    "cooldownPeriod": int,
    "pollingInterval": int,
    "rules": [{"name": str, "http": {"metadata": dict, "auth": list}, "custom": dict}],
}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "secretRef": str}],
    "resources": {"cpu": float, "memory": str},
    "probes": [PROBE],
    "volumeMounts": list,
}
APP = {
    "location": str,
    "tags": dict,
    "properties": {
        "managedEnvironmentId": str,
        "workloadProfileName": str,
        "configuration": {
            "activeRevisionsMode": str,
            "secrets": [{"name": str, "value": str, "keyVaultUrl": str, "identity": str}],
            "ingress": {
                "external": bool,
                "targetPort": int,
                "transport": str,
                "allowInsecure": bool,
                "ipSecurityRestrictions": list,
                "traffic": list,
            },
            "registries": list,
        },
        "template": {"containers": [CONTAINER], "scale": SCALE, "revisionSuffix": str, "volumes": list},
    },
}
ENVIRONMENT = {
    "location": str,
    "tags": dict,
    "properties": {
        "workloadProfiles": [{"name": str, "workloadProfileType": str, "minimumCount": int, "maximumCount": int}],
        "appLogsConfiguration": {"destination": str},
        "zoneRedundant": bool,
    },
}
MOST_FAILURES = {"Startup": 240, "Readiness": 48, "Liveness": 30}


def meter(name: str, unit: str, price: float, region: str = REGION) -> dict[str, Any]:
    return {
        "meterName": name,
        "skuName": name.partition(" ")[0],
        "unitOfMeasure": unit,
        "retailPrice": price,
        "unitPrice": price,
        "serviceName": "Azure Container Apps",
        "armRegionName": region,
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "zzzNew": 1,
    }


METERS = [
    meter("Standard vCPU Active Usage", "1 Second", 0.00003),
    meter("Standard vCPU Idle Usage", "1 Second", 0.000003),
    meter("Standard Memory Active Usage", "1 GiB Second", 0.000004),
    meter("Standard Requests", "1M", 0.4),
    meter("Consumption GPU T4 Usage", "1 Hour", 0.30),
    meter("Consumption GPU A100 Usage", "1 Second", 0.0006),
    meter("Standard vCPU Active Usage", "1 Second", 9.0, "eastus"),
]


class Error(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class FakeAzure(FakeCloud):
    """free_gpus: whether a replica finds a machine. scale: a second of Azure's takes so many real ones.

    registered: of Microsoft.App; quota: GPUs allowed. broken: why every app's provisioning fails. cut_logs: whether
    log streams break off.
    """

    def __init__(self, *, scale: float = 0.03) -> None:
        super().__init__()
        self.free_gpus = True
        self.scale = scale
        self.registered = True
        self.quota = 4
        self.broken = ""
        self.cut_logs = False
        self.offers = dict(GPU_PROFILES)
        self.environment_s = 0.15
        self.bodies: list[dict[str, Any]] = []
        """Every body of a create, without what is in its secrets."""
        self.registrations = 0
        self._apps: dict[str, tuple[dict[str, Any], Service | None]] = {}
        self._environments: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, Any] = {}
        self._environments["theirs"] = self._made(
            "managedEnvironments",
            "theirs",
            {
                "location": "Sweden Central",
                "tags": {"team": "theirs"},
                "properties": {"provisioningState": "Succeeded", "workloadProfiles": [], "defaultDomain": "x"},
            },
        )
        theirs = {
            "location": "Sweden Central",
            "properties": {
                "provisioningState": "Succeeded",
                "managedEnvironmentId": self._environments["theirs"]["id"],
                "configuration": None,
                "template": {"containers": [], "scale": None},
            },
        }
        self._apps["tuna-salad"] = (self._made("containerApps", "tuna-salad", theirs), None)

    @property
    def names(self) -> list[str]:
        """Of all apps and environments of the subscription, ours and others'."""
        return [*self._apps, *self._environments]

    def environment(self, name: str, **change: Any) -> None:
        """One that is there already."""
        profiles = [{"name": f"p-{kind[-3:]}", "workloadProfileType": kind} for kind in GPU_PROFILES]
        made = {
            "location": "Sweden Central",
            "tags": {},
            "properties": {"provisioningState": "Succeeded", "workloadProfiles": profiles},
        }
        self._environments[name] = self._made("managedEnvironments", name, {**made, **change})

    def routes(self) -> list[BaseRoute]:
        base = "/subscriptions/{sub}"
        group = base + "/resourceGroups/{group}/providers/Microsoft.App"
        app, env = group + "/containerApps/{name}", group + "/managedEnvironments/{name}"
        where = base + "/providers/Microsoft.App/locations/{region}"
        revisions = app + "/revisions"
        table = [
            ("GET", base, self._subscription, "2022-12-01"),
            ("GET", base + "/providers/{namespace}", self._provider, "2021-04-01"),
            ("POST", base + "/providers/{namespace}/register", self._register, "2016-02-01"),
            ("GET", base + "/resourcegroups/{group}", self._group, "2021-04-01"),
            ("GET", where + "/availableManagedEnvironmentsWorkloadProfileTypes", self._offers, API),
            ("GET", where + "/usages", self._usages, API),
            ("GET", base + "/providers/Microsoft.App/containerApps", self._list_apps, API),
            ("GET", base + "/providers/Microsoft.App/managedEnvironments", self._list_environments, API),
            ("GET", group + "/managedEnvironments", self._list_environments, API),
            ("GET", env, self._get_environment, API),
            ("PUT", env, self._put_environment, API),
            ("DELETE", env, self._delete_environment, API),
            ("GET", app, self._get_app, API),
            ("PUT", app, self._put_app, API),
            ("PATCH", app, self._patch_app, API),
            ("DELETE", app, self._delete_app, API),
            ("POST", app + "/listSecrets", self._secrets, API),
            ("POST", app + "/getAuthtoken", self._auth_token, API),
            ("GET", revisions, self._revisions, API),
            ("GET", revisions + "/{revision}/replicas", self._replicas, API),
            ("GET", where + "/operations/{operation}", self._operation, API),
        ]
        made: list[BaseRoute] = [
            Route(path, self._guarded(handler, version), methods=[method])
            for method, path, handler, version in table
        ]
        made.append(Route("/logstream/{name}/{replica}", self._logstream, methods=["GET"]))
        made.append(Route("/api/retail/prices", self._prices, methods=["GET"]))
        return made

    def _guarded(self, handler: Any, version: str) -> Any:
        async def guarded(request: Request) -> Response:
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                answer = refused(Error(401, "InvalidAuthenticationToken", "The access token is invalid."))
                answer.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
                return answer
            told = request.query_params.get("api-version")
            try:
                if request.path_params["sub"] != SUBSCRIPTION:
                    raise Error(404, "SubscriptionNotFound", "The subscription could not be found.")
                if told != version:
                    raise Error(400, "InvalidApiVersionParameter", f"The api-version '{told}' is invalid.")
                if not self.registered and "Microsoft.App/" in request.url.path:
                    message = "The subscription is not registered to use namespace 'Microsoft.App'."
                    raise Error(409, "MissingSubscriptionRegistration", message)
                answered: Response = await handler(request)
                return answered
            except Error as error:
                return refused(error)

        return guarded

    # The subscription

    async def _subscription(self, request: Request) -> Response:
        return JSONResponse({"subscriptionId": SUBSCRIPTION, "displayName": "Pay as you go", "state": "Enabled"})

    async def _provider(self, request: Request) -> Response:
        state = "Registered" if self.registered else "NotRegistered"
        return JSONResponse({"namespace": request.path_params["namespace"], "registrationState": state})

    async def _register(self, request: Request) -> Response:
        self.registrations += 1
        self.registered = True
        return JSONResponse({"registrationState": "Registering"})

    async def _group(self, request: Request) -> Response:
        name = request.path_params["group"]
        if name.lower() != GROUP:
            raise Error(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        return JSONResponse({"name": GROUP, "location": "swedencentral"})

    async def _offers(self, request: Request) -> Response:
        shown = [{"name": "D4", "properties": {"cores": 4}}]
        shown += [{"name": kind, "properties": {"gpus": 1, "cores": cpu}} for kind, (cpu, _) in self.offers.items()]
        return self._page(request, shown)

    async def _usages(self, request: Request) -> Response:
        shown = [
            {
                "unit": "Count",
                "currentValue": 1,
                "limit": limit,
                "name": {"value": name.replace(" ", ""), "localizedValue": name},
            }
            for name, limit in (
                ("Managed Environment Count", 20),
                ("Managed Environment Consumption T4 Gpus", self.quota),
                ("Managed Environment Consumption NCA100 Gpus", self.quota),
            )
        ]
        return self._page(request, shown)

    # Environments

    async def _list_environments(self, request: Request) -> Response:
        return self._page(request, [copy.deepcopy(e) for e in self._environments.values()])

    async def _get_environment(self, request: Request) -> Response:
        return JSONResponse(self._an_environment(request))

    async def _put_environment(self, request: Request) -> Response:
        name, body = request.path_params["name"], await request.json()
        shape(body, ENVIRONMENT)
        for profile in body["properties"]["workloadProfiles"]:
            kind = profile["workloadProfileType"]
            if kind != "Consumption" and kind not in self.offers:
                raise Error(400, "WorkloadProfileTypeNotSupported", f"{kind} is not supported in this region.")
            if kind.startswith("Consumption") and "minimumCount" in profile:
                raise Error(400, "WorkloadProfileCountsNotAllowed", "Consumption profiles have no counts.")
        if name in self._environments:
            raise Error(409, "ManagedEnvironmentOperationInProgress", "The environment has an active operation.")
        self.bodies.append(body)
        body["properties"]["provisioningState"] = "InfrastructureSetupInProgress"
        made = self._environments[name] = self._made("managedEnvironments", name, body)

        def over() -> None:
            made["properties"]["provisioningState"] = "Succeeded"

        return self._begun(made, self.environment_s, over, 201)

    async def _delete_environment(self, request: Request) -> Response:
        found = self._an_environment(request)
        used = {a["properties"]["managedEnvironmentId"].lower() for a, _ in self._apps.values()}
        if found["id"].lower() in used:
            raise Error(409, "ManagedEnvironmentHasContainerApps", "The environment still has container apps.")
        found["properties"]["provisioningState"] = "ScheduledForDelete"
        return self._begun(None, 0.1, lambda: self._environments.pop(found["name"], None), 202)

    def _an_environment(self, request: Request) -> dict[str, Any]:
        self._known_group(request)
        return found(self._environments, request.path_params["name"], "managedEnvironments")

    # Apps

    async def _list_apps(self, request: Request) -> Response:
        return self._page(request, [self._shown(app) for app, _ in self._apps.values()])

    async def _get_app(self, request: Request) -> Response:
        return JSONResponse(self._shown(self._an_app(request)[0]))

    async def _put_app(self, request: Request) -> Response:
        self._known_group(request)
        name, body = request.path_params["name"], await request.json()
        kept = copy.deepcopy(body)
        shape(body, APP)
        for secret in kept["properties"]["configuration"].get("secrets", []):
            secret.pop("value", None)
        self.bodies.append(kept)
        if not re.fullmatch(r"[a-z](?:-?[a-z0-9])*", name) or len(name) > 32:
            raise Error(400, "ContainerAppInvalidName", f"Invalid ContainerApp name '{name}'.")
        if name in self._apps:
            raise Error(409, "ContainerAppOperationInProgress", "An operation is in progress on this app.")
        environment = next(
            (e for e in self._environments.values() if e["id"] == body["properties"]["managedEnvironmentId"]), None
        )
        if environment is None or environment["properties"]["provisioningState"] != "Succeeded":
            raise Error(400, "ManagedEnvironmentNotReady", "The environment does not exist or is not ready.")
        self._checked(body["properties"], environment)
        body["properties"]["provisioningState"] = "InProgress"
        properties = body["properties"]
        container = properties["template"]["containers"][0]
        secrets = {s["name"]: s["value"] for s in properties["configuration"].get("secrets", [])}
        variables = {e["name"]: secrets.get(e.get("secretRef"), e.get("value", "")) for e in container["env"]}
        service = Service(
            argv=[*container["command"], *container["args"]],
            env=variables,
            opens=lambda headers: None,
            capacity=lambda: self.free_gpus,
        )
        made = self._made("containerApps", name, body)
        made["zzzRevision"], made["zzzSecrets"] = 1, secrets
        self._apps[name] = (made, service)
        self._scaled(made, service)
        await self.platform.start(service)
        properties["configuration"]["ingress"]["fqdn"] = service.url.removeprefix("http://")

        def over() -> None:
            properties["provisioningState"] = "Failed" if self.broken else "Succeeded"

        return self._begun(self._shown(made), 0.06, over, 201, self.broken)

    async def _patch_app(self, request: Request) -> Response:
        app, service = self._an_app(request)
        body = await request.json()
        shape(body, APP)
        self._idle(app)
        scale = body["properties"]["template"]["scale"]
        check_scale(scale)
        app["properties"]["template"]["scale"].update(scale)
        app["zzzRevision"] += 1
        app["properties"]["provisioningState"] = "InProgress"
        assert service is not None
        self._scaled(app, service)

        def over() -> None:
            app["properties"]["provisioningState"] = "Succeeded"

        return self._begun(self._shown(app), 0.05, over, 202)

    async def _delete_app(self, request: Request) -> Response:
        self._known_group(request)
        if request.path_params["name"].lower() not in self._apps:
            return Response(status_code=204)
        app, service = self._an_app(request)
        self._idle(app)
        app["properties"]["provisioningState"] = "Deleting"
        if service is not None:
            await self.platform.stop(service)
        return self._begun(None, 0.05, lambda: self._apps.pop(app["name"], None), 202)

    async def _secrets(self, request: Request) -> Response:
        secrets = self._an_app(request)[0]["zzzSecrets"]
        return JSONResponse({"value": [{"name": n, "value": v} for n, v in secrets.items()]})

    async def _auth_token(self, request: Request) -> Response:
        app, _ = self._an_app(request)
        return JSONResponse(
            {"location": app["location"], "properties": {"token": APP_TOKEN, "expires": now(time.time() + 3600)}}
        )

    async def _revisions(self, request: Request) -> Response:
        app, service = self._an_app(request)
        assert service is not None
        shown = []
        for number in range(1, app["zzzRevision"] + 1):
            latest = number == app["zzzRevision"]
            alive = service.alive() if latest else []
            states = {r.state for r in alive}
            running = next(
                (
                    word
                    for state, word in (
                        ("ready", "Running"),
                        ("booting", "Activating"),
                        ("waiting", "Activating"),
                        ("failed", "Degraded"),
                    )
                    if state in states
                ),
                "ScaledToZero" if latest else "Stopped",
            )
            properties = {
                "createdTime": now(time.time() - 1000 + number),
                "active": latest,
                "replicas": len(alive),
                "healthState": "Healthy" if running == "Running" else "None",
                "provisioningState": "Provisioned",
                "runningState": running,
                "fancy": {"new": True},
            }
            if self.broken and latest and app["properties"]["provisioningState"] == "Failed":
                properties |= {"provisioningState": "Failed", "runningState": "Failed"}
            shown.append({"name": f"{app['name']}--{number:07d}", "properties": properties})
        return self._page(request, shown)

    async def _replicas(self, request: Request) -> Response:
        app, service = self._an_app(request)
        latest = f"{app['name']}--{app['zzzRevision']:07d}"
        assert service is not None
        alive = service.alive() if request.path_params["revision"] == latest else []
        return JSONResponse({"value": [self._replica(app, latest, r) for r in alive]})

    def _replica(self, app: dict[str, Any], revision: str, replica: Replica) -> dict[str, Any]:
        properties: dict[str, Any] = {
            "createdTime": now(replica.started_at or time.time()),
            "runningState": "NotRunning",
        }
        if replica.state == "waiting":
            return {
                "name": f"{revision}-{replica.id}",
                "properties": properties | {"runningStateDetails": "AssigningReplica", "containers": []},
            }
        ready = replica.state == "ready"
        properties["runningState"] = "Running"
        properties["containers"] = [
            {
                "name": "engine",
                "containerId": f"containerd://{replica.id}",
                "ready": ready,
                "started": ready,
                "restartCount": replica.starts - 1,
                "runningState": "Waiting" if replica.state == "failed" else "Running",
                "runningStateDetails": "CrashLoopBackOff" if replica.state == "failed" else "",
                "logStreamEndpoint": f"{self.url}/logstream/{app['name']}/{replica.id}",
            }
        ]
        return {"name": f"{revision}-{replica.id}", "properties": properties}

    async def _logstream(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {APP_TOKEN}":
            return Response("Unauthorized", 401)
        query = request.query_params
        if query.get("output") != "json" or not 0 <= int(query.get("tailLines", "20")) <= 300:
            return Response("bad query", 400)
        service = self._apps[request.path_params["name"]][1]
        assert service is not None
        follow = query.get("follow") == "true"

        async def stream() -> Any:
            told = 0
            yield json.dumps({"TimeStamp": now(), "Log": "Connecting to the container 'engine'..."}) + "\n"
            while not service.stopped and not self.cut_logs:
                lines = [line for line in service.lines if line[1] == request.path_params["replica"]]
                for at, _, text in lines[told:]:
                    stamp = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "7+00:00")
                    yield json.dumps({"TimeStamp": stamp, "Log": text}) + "\n"
                told = len(lines)
                if not follow:
                    return
                await asyncio.sleep(0.01)

        return StreamingResponse(stream(), media_type="text/plain")

    def _checked(self, properties: dict[str, Any], environment: dict[str, Any]) -> None:
        """What Azure refuses of an app."""
        profiles = {p["name"]: p["workloadProfileType"] for p in environment["properties"]["workloadProfiles"]}
        kind = profiles.get(properties.get("workloadProfileName"))
        if kind not in GPU_PROFILES:
            raise Error(400, "WorkloadProfileNotFound", "The workload profile is not in the environment.")
        [container] = properties["template"]["containers"]
        resources = container["resources"]
        if (resources["cpu"], resources["memory"]) != GPU_PROFILES[kind]:
            raise Error(400, "ContainerAppInvalidResourceTotal", f"{resources} is no shape of {kind}.")
        secrets = [s["name"] for s in properties["configuration"].get("secrets", [])]
        for name in secrets:
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
                raise Error(400, "ContainerAppSecretInvalidName", f"Invalid secret name '{name}'.")
        for variable in container["env"]:
            if "secretRef" in variable and variable["secretRef"] not in secrets:
                raise Error(400, "ContainerAppSecretRefNotFound", f"SecretRef '{variable['secretRef']}' not found.")
        for probe in container["probes"]:
            if not 1 <= probe.get("failureThreshold", 3) <= MOST_FAILURES[probe["type"]]:
                raise Error(
                    400, "ContainerAppProbeFailureThresholdOutOfRange", f"{probe['type']} probe's threshold"
                )
            if not 1 <= probe.get("periodSeconds", 10) <= 240 or not 1 <= probe.get("timeoutSeconds", 1) <= 240:
                raise Error(400, "ContainerAppProbePeriodOutOfRange", f"{probe['type']} probe's period")
        check_scale(properties["template"]["scale"])

    def _scaled(self, app: dict[str, Any], service: Service) -> None:
        scale = app["properties"]["template"]["scale"]
        service.min, service.max = scale["minReplicas"], scale["maxReplicas"]
        service.idle_s = scale.get("cooldownPeriod", 300) * self.scale

    def _an_app(self, request: Request) -> tuple[dict[str, Any], Service | None]:
        self._known_group(request)
        return found(self._apps, request.path_params["name"], "containerApps")

    def _idle(self, app: dict[str, Any]) -> None:
        if app["properties"]["provisioningState"] in ("InProgress", "Deleting"):
            raise Error(
                409,
                "ContainerAppOperationInProgress",
                "Cannot modify a container app because there is an active provisioning operation in progress.",
            )

    def _shown(self, app: dict[str, Any]) -> dict[str, Any]:
        """Without what its secrets are, and with fields of tomorrow."""
        shown = {k: v for k, v in copy.deepcopy(app).items() if not k.startswith("zzz")}
        configuration = shown["properties"].get("configuration") or {}
        for secret in configuration.get("secrets", []):
            secret.pop("value", None)
        shown["properties"]["futureThing"] = {"a": [1]}
        return shown

    # ARM

    def _known_group(self, request: Request) -> None:
        name = request.path_params["group"]
        if name.lower() != GROUP:
            raise Error(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")

    def _made(self, kind: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """ARM shows a region by its title, and groups in its own case."""
        where = {"swedencentral": "Sweden Central", "eastus": "East US"}
        made_id = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/{kind}/{name}"
        location = where.get(body["location"], body["location"])
        return {**body, "id": made_id, "name": name, "type": f"Microsoft.App/{kind}", "location": location}

    def _begun(self, body: Any, takes_s: float, over: Any, status: int, error: str = "") -> Response:
        """A long operation."""
        number = f"op{len(self._operations) + 1}"
        self._operations[number] = ("InProgress", error)

        async def run() -> None:
            await asyncio.sleep(takes_s)
            over()
            self._operations[number] = ("Failed" if error else "Succeeded", error)

        self._operations[number + "-task"] = asyncio.create_task(run())
        path = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.App/locations/{REGION}/operations/{number}"
        url = f"{self.url}{path}?api-version={API}"
        header = "Azure-AsyncOperation" if status == 201 else "Location"
        headers = {header: url, "Retry-After": "0"}
        return (
            Response(status_code=status, headers=headers) if body is None else JSONResponse(body, status, headers)
        )

    async def _operation(self, request: Request) -> Response:
        state, error = self._operations[request.path_params["operation"]]
        body = {"status": state}
        if state == "Failed":
            body["error"] = {"code": "ContainerAppOperationError", "message": error}
        return JSONResponse(body)

    def _page(self, request: Request, items: list[dict[str, Any]]) -> Response:
        begin = int(request.query_params.get("$skipToken", "0"))
        body: dict[str, Any] = {"value": items[begin : begin + PAGE]}
        if begin + PAGE < len(items):
            query = f"api-version={request.query_params['api-version']}&$skipToken={begin + PAGE}"
            body["nextLink"] = f"{self.url}{request.url.path}?{query}"
        return JSONResponse(body)

    async def _prices(self, request: Request) -> Response:
        query = request.query_params
        asked = re.search(r"armRegionName eq '([^']*)'", query.get("$filter", ""))
        if "serviceName eq 'Azure Container Apps'" not in query.get("$filter", "") or asked is None:
            return JSONResponse({"Error": {"Code": "BadRequest", "Message": "Invalid OData parameters"}}, 400)
        items = [m for m in METERS if m["armRegionName"] == asked[1]]
        begin = int(query.get("$skip", "0"))
        link = f"{self.url}/api/retail/prices?$filter={query['$filter']}&$skip={begin + 2}"
        return JSONResponse(
            {
                "Items": items[begin : begin + 2],
                "NextPageLink": link if begin + 2 < len(items) else None,
                "Count": len(items[begin : begin + 2]),
            }
        )


def refused(error: Error) -> Response:
    return JSONResponse({"error": {"code": error.code, "message": error.message}}, error.status)


def found(known: dict[str, Any], name: str, kind: str) -> Any:
    if name.lower() not in known:
        raise Error(404, "ResourceNotFound", f"The Resource 'Microsoft.App/{kind}/{name}' was not found.")
    return known[name.lower()]


def shape(body: Any, wanted: Any, where: str = "$") -> None:
    """Raises for a field that Azure does not know or that has another type."""
    if isinstance(wanted, dict):
        if not isinstance(body, dict):
            raise Error(400, "InvalidRequestContent", f"{where} is no object")
        for key, value in body.items():
            if key not in wanted:
                raise Error(400, "InvalidRequestContent", f"Could not find member '{key}' on object at '{where}'.")
            shape(value, wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        if not isinstance(body, list):
            raise Error(400, "InvalidRequestContent", f"{where} is no list")
        for item in body:
            shape(item, wanted[0], f"{where}[]")
    elif wanted is float:
        if not isinstance(body, (int, float)):
            raise Error(400, "InvalidRequestContent", f"{where} is no number")
    elif not isinstance(body, wanted) or (wanted is int and isinstance(body, bool)):
        raise Error(400, "InvalidRequestContent", f"{where} is no {wanted.__name__}")


def check_scale(scale: dict[str, Any]) -> None:
    least, most = scale.get("minReplicas", 0), scale.get("maxReplicas", 10)
    if not 0 <= least <= most <= 1000 or most < 1:
        raise Error(400, "ContainerAppInvalidScaleSpec", "minReplicas and maxReplicas are out of range.")
    for rule in scale.get("rules", []):
        told = rule.get("http", {}).get("metadata", {}).get("concurrentRequests")
        if not isinstance(told, str) or int(told) < 1:
            raise Error(400, "ContainerAppInvalidScaleRule", "concurrentRequests is a string of a number.")


def now(at: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat().replace("+00:00", "Z")
