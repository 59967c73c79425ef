"""Baseten: the management API v1, the console's GraphQL as far as truss's push and our prices ask it, Amazon's S3
with real signatures, and the inference host, all on one port."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import re
import shlex
import tarfile
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.platform import Service

KEY = "the-test's-baseten-key"
CREDS = {"aws_access_key_id": "ASIATEST", "aws_secret_access_key": "s3cr3t", "aws_session_token": "lent-token"}
BUCKET, REGION = "baseten-user-models-test", "us-east-1"
PAGE = 3

TEAM = {"id": "team1", "name": "team", "default": True}
PUSHED = {
    "s3_key": str,
    "config": str,
    "semver_bump": str,
    "truss_user_env": str,
    "environment_name": str,
    "deploy_timeout_minutes": int,
    "user_deploy_metadata": str,
    "raw_config": str,
}
FIELDS: dict[str, dict[str, type]] = {
    "teams": {},
    "models": {"all": bool, "team_id": str},
    "truss_validation": {"truss_user_env": str, "config": str},
    "model_s3_upload_credentials": {},
    "listed_instances": {},
    "create_model_from_truss": {
        **PUSHED,
        "name": str,
        "allow_truss_download": bool,
        "version_name": str,
        "team_id": str,
    },
    "create_model_version_from_truss": {
        **PUSHED,
        "model_id": str,
        "name": str,
        "scale_down_old_production": bool,
        "preserve_env_instance_type": bool,
    },
}
"""Of GraphQL, with their arguments."""
SETTINGS = {
    "min_replica": (0, 1000),
    "max_replica": (1, 1000),
    "concurrency_target": (1, 10**6),
    "autoscaling_window": (10, 3600),
    "scale_down_delay": (0, 3600),
    "target_utilization_percentage": (1, 100),
}
INSTANCES = [
    {"name": "1x2", "gpu_count": 0, "gpu_type": None, "price": 0.00058, "limited_capacity": False},
    {"name": "L4x4x16", "gpu_count": 1, "gpu_type": "L4", "price": 0.015, "limited_capacity": False},
    {"name": "L4x8x32", "gpu_count": 1, "gpu_type": "L4", "price": 0.02, "limited_capacity": False},
    {"name": "L4:2x24x96", "gpu_count": 2, "gpu_type": "L4", "price": 0.041, "limited_capacity": False},
    {"name": "A100x12x144", "gpu_count": 1, "gpu_type": "A100", "price": 0.07, "limited_capacity": True},
]
STATUS = {"ready": "ACTIVE", "booting": "LOADING_MODEL", "waiting": "DEPLOYING", "failed": "UNHEALTHY"}


class Error(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class FakeBaseten(FakeCloud):
    """build_s: of an image, which is not built before it was looked at more than `build_looks` times. broken: why every build fails. scale: a second of Baseten's takes so many real ones."""

    def __init__(self, *, scale: float = 0.025) -> None:
        super().__init__()
        self.scale = scale
        self.build_s = 0.05
        self.build_looks = 0
        self.broken = ""
        self.free_gpus = True
        self.secrets: dict[str, str] = {}
        self.bodies: list[Any] = []
        """Of all calls but those that make secrets, and what was uploaded."""
        self.paths: list[str] = []
        self._models: dict[str, dict[str, Any]] = {}
        self._services: dict[str, Service] = {}
        self._objects: dict[str, bytes] = {}
        self.forgets_days = False
        self.account: list[tuple[str, str, float, str]] = []
        """What has been billed: a model's id and name, when (Unix seconds), and USD as decimal text."""
        self._number = 0
        theirs = {"id": "theirs00", "name": "tuna-salad", "created_at": now(), "began": 0.0, "config": {}}
        self._models["theirs00"] = theirs

    @property
    def labels(self) -> dict[str, dict[str, str]]:
        """Of each model's newest deployment, by the model's name."""
        return {model["name"]: model["labels"] for model in self._models.values() if "labels" in model}

    @property
    def names(self) -> list[str]:
        """Of all models of the workspace, ours and others'."""
        return [model["name"] for model in self._models.values()]

    def inference(self, model: str) -> str:
        return f"{self.url}/inference/{model}"

    def routes(self) -> list[BaseRoute]:
        one = "/v1/models/{model}"
        table = [
            ("GET", "/v1/models", self._list),
            ("GET", one, self._get),
            ("DELETE", one, self._delete),
            ("GET", f"{one}/deployments", self._deployments),
            ("POST", f"{one}/deployments/{{deployment}}/logs", self._logs),
            ("PATCH", f"{one}/environments/{{environment}}", self._patch),
            ("GET", "/v1/billing/usage_summary", self._usage_summary),
            ("GET", "/v1/secrets", self._list_secrets),
            ("POST", "/v1/secrets", self._put_secret),
            ("POST", "/graphql/{field}", self._graphql),
            ("POST", "/inference/{model}/environments/production/wake", self._wake),
        ]
        made: list[BaseRoute] = [Route(p, self._guarded(handler), methods=[m]) for m, p, handler in table]
        sync = "/inference/{model}/environments/production/sync/{rest:path}"
        made.append(Route(sync, self._guarded(self._sync), methods=["GET", "POST"]))
        made.append(Route("/s3/{bucket}/{key:path}", self._s3, methods=["PUT"]))
        return made

    def _guarded(self, handler: Any) -> Any:
        async def guarded(request: Request) -> Response:
            if request.headers.get("authorization") not in (f"Api-Key {KEY}", f"Bearer {KEY}"):
                return JSONResponse({"error": "invalid API key"}, 401)
            try:
                answer: Response = await handler(request)
                return answer
            except Error as error:
                return JSONResponse({"code": "VALIDATION_ERROR", "message": error.message}, error.status)

        return guarded

    async def _body(self, request: Request) -> Any:
        body = await request.json()
        self.bodies.append(body)
        return body

    # Models

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"models": [self._shown(m) for m in self._models.values()], "zzzNew": 1})

    async def _get(self, request: Request) -> Response:
        return JSONResponse(self._shown(self._model(request)))

    async def _usage_summary(self, request: Request) -> Response:
        asked = dict(request.query_params)
        if set(asked) != {"start_date", "end_date"}:
            raise Error(400, f"start_date and end_date are wanted, not {sorted(asked)}")
        start, end = (datetime.fromisoformat(asked[name]) for name in ("start_date", "end_date"))
        if start.tzinfo is None or end.tzinfo is None or not 0 < (end - start).total_seconds() <= 31 * 86400:
            raise Error(400, "The date range must be positive and must not exceed 31 days.")
        if start.year < 2026:
            raise Error(400, "There is no usage before 2026-01-01.")
        of: dict[tuple[str, str], dict[str, Decimal]] = {}
        for made, name, at, usd in self.account:
            # Days are told whole, the last one too.
            if start.timestamp() // 86400 <= at // 86400 <= end.timestamp() // 86400:
                days = of.setdefault((made, name), {})
                day = datetime.fromtimestamp(at, UTC).date().isoformat()
                days[day] = days.get(day, Decimal(0)) + Decimal(usd)
        items = [self._usage(made, name, days) for (made, name), days in of.items()]
        total = str(sum((Decimal(item["subtotal"]) for item in items), Decimal(0)))
        used = {"subtotal": "0", "credits_used": total, "total": total, "minutes": 1, "breakdown": items}
        return JSONResponse({"model_apis_usage": {"total": 5}, **({"dedicated_usage": used} if items else {})})

    def _usage(self, made: str, name: str, days: dict[str, Decimal]) -> dict[str, Any]:
        deployment = {"id": f"d-{made}", "kind": "MODEL_DEPLOYMENT", "name": "v1", "instance_type": "L4x4x16"}
        shown = [
            {"date": day, "subtotal": str(usd), "minutes": 10, "inference_requests": 1} for day, usd in days.items()
        ]
        # A number where the days are text: both are allowed.
        subtotal = float(sum(days.values(), Decimal(0)))
        return {
            "billable_resource": {**deployment, "model_id": made, "model_name": name},
            "subtotal": subtotal,
            "minutes": 10,
            "inference_requests": 1,
            "daily": [] if self.forgets_days else shown,
        }

    async def _s3(self, request: Request) -> Response:
        body = await request.body()
        wrong = signature_is_wrong(request, body)
        if wrong or request.path_params["bucket"] != BUCKET:
            return Response(f"<Error><Code>SignatureDoesNotMatch</Code><Message>{wrong}</Message></Error>", 403)
        self._objects[request.path_params["key"]] = body
        return Response(status_code=200)

    async def _push(self, arguments: dict[str, Any], model: dict[str, Any] | None) -> dict[str, Any]:
        """A new model, or a new deployment of one that is there."""
        config = self._checked(arguments["config"])
        if not 10 <= arguments.get("deploy_timeout_minutes", 10) <= 1440:
            raise Error(200, "deploy_timeout_minutes must be 10 to 1440")
        archive = self._objects.get(arguments["s3_key"])
        if archive is None:
            raise Error(200, "the archive was not uploaded")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            held = [member.name.removeprefix("./") for member in tar.getmembers() if member.isfile()]
            if held != ["config.yaml"]:
                raise Error(200, f"the archive holds {held}")
            raw = tar.extractfile("config.yaml").read()  # type: ignore[union-attr]
        told = yaml.safe_load(raw)
        self.bodies.append(told)
        if raw != base64.b64decode(arguments["raw_config"]):
            raise Error(200, "the archive's config is not the one that was sent")
        if told["docker_server"]["start_command"] != config["docker_server"]["start_command"]:
            raise Error(200, "the archive's config is not the deployment's")
        if model is None:
            self._number += 1
            model = {"id": f"m{self._number:07d}", "name": arguments["name"], "created_at": now(), "versions": 0}
            self._models[model["id"]] = model
        else:
            await self.platform.stop(self._services[model["id"]])
        model.update(
            began=time.time(),
            versions=model["versions"] + 1,
            labels=json.loads(arguments["user_deploy_metadata"]),
            environment=arguments.get("environment_name"),
            settings={"min_replica": 0, "max_replica": 1, "concurrency_target": 1, "scale_down_delay": 900},
        )
        argv, env = self._command(told)
        service = Service(
            argv=argv, env=env, opens=lambda headers: None, boot_s=0.02, capacity=lambda: self.free_gpus, max=1
        )
        self._services[model["id"]] = service
        await self.platform.start(service)
        service.idle_s = 900 * self.scale
        if not self.broken:
            # A new deployment starts a replica.
            self.platform.wake(service)
        oracle = {"id": model["id"], "name": model["name"], "hostname": f"model-{model['id']}.api.baseten.co"}
        instance = {"name": "L4x4x16"}
        return {"model_version": {"id": version(model), "oracle": oracle, "instance_type": instance}}

    def _command(self, config: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        """What the container runs, with its secrets mounted as files."""
        env = dict(config.get("environment_variables") or {})
        words = shlex.split(config["docker_server"]["start_command"])
        if words[:2] != ["sh", "-c"]:
            return words, env
        script = re.fullmatch(r'export HF_TOKEN="\$\(cat /secrets/([\w-]+)\)"; exec (.*)', words[2])
        if script is None:
            return ["sh", "-c", words[2]], env
        if script[1] in (config.get("secrets") or {}):
            env["HF_TOKEN"] = self.secrets.get(script[1], "")
        return shlex.split(script[2]), env

    async def _delete(self, request: Request) -> Response:
        model = self._model(request)
        if model["id"] in self._services:
            await self.platform.stop(self._services[model["id"]])
        del self._models[model["id"]]
        return JSONResponse({"id": model["id"], "deleted": True})

    async def _deployments(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse({"deployments": [self._deployment(model)] if "settings" in model else []})

    async def _patch(self, request: Request) -> Response:
        model = self._model(request)
        if request.path_params["environment"] != "production":
            raise Error(404, "no such environment")
        body = await self._body(request)
        known(body, {"autoscaling_settings": dict, "promotion_settings": dict})
        for name, value in body["autoscaling_settings"].items():
            if name not in SETTINGS:
                raise Error(400, f"autoscaling_settings.{name}: extra fields not permitted")
            least, most = SETTINGS[name]
            if not isinstance(value, int) or not least <= value <= most:
                raise Error(400, f"autoscaling_settings.{name}: must be {least} to {most}")
        settings = model["settings"]
        settings.update(body["autoscaling_settings"])
        service = self._services[model["id"]]
        service.min, service.max = settings["min_replica"], settings["max_replica"]
        service.idle_s = settings["scale_down_delay"] * self.scale
        return JSONResponse({"status": "ACCEPTED", "message": "being changed"})

    async def _logs(self, request: Request) -> Response:
        """The newest lines of the window, newest first, a few at a time."""
        model = self._model(request)
        body = await request.json()
        known(
            body,
            {
                "start_epoch_millis": int,
                "end_epoch_millis": int,
                "min_level": str,
                "replica": str,
                "request_id": str,
                "search_pattern": str,
                "includes": list,
                "excludes": list,
            },
        )
        start, end = body["start_epoch_millis"], body["end_epoch_millis"]
        if start >= end or end - start > 7 * 86400_000:
            raise Error(400, "the window is empty or longer than seven days")
        lines = list(self._services[model["id"]].lines)
        if self.broken:
            lines.append((model["began"] + self.build_s, "", f"build failed: {self.broken}"))
        chosen = sorted((line for line in lines if start <= line[0] * 1000 < end), reverse=True)
        shown = [
            {"timestamp": str(int(at * 1e9)), "message": text + "\n", "replica": r or None}
            for at, r, text in chosen
        ]
        return JSONResponse({"logs": shown[:PAGE]})

    # Secrets, prices, the inference host

    async def _list_secrets(self, request: Request) -> Response:
        return JSONResponse({"secrets": [{"name": name, "created_at": now()} for name in self.secrets]})

    async def _put_secret(self, request: Request) -> Response:
        body = await request.json()
        known(body, {"name": str, "value": str})
        self.secrets[body["name"]] = body["value"]
        return JSONResponse({"name": body["name"], "created_at": now()})

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        """A call of GraphQL is named by its field, for the faults."""
        if scope["path"] != "/graphql/":
            await super()._http(scope, receive, send)
            return
        message: dict[str, Any] = {"more_body": True}
        body = b""
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        field = re.search(r"\{\s*(\w+)", json.loads(body)["query"])
        whole = iter([{"type": "http.request", "body": body}])

        async def again() -> Any:
            return next(whole, None) or await receive()

        path = f"/graphql/{field[1] if field else ''}"
        await super()._http({**scope, "path": path, "raw_path": path.encode()}, again, send)

    async def _graphql(self, request: Request) -> Response:
        body = await self._body(request)
        known(body, {"query": str, "variables": dict})
        try:
            asked = Asked(body["query"], body.get("variables") or {})
            known(asked.arguments, FIELDS.get(asked.field, {}))
            if asked.field not in FIELDS or asked.mutates != asked.field.startswith("create_"):
                raise Error(400, f"Cannot query field {asked.field!r}")
            told = await getattr(self, f"_ask_{asked.field}")(asked.arguments)
            return JSONResponse({"data": {asked.field: chosen(told, asked.wanted)}})
        except Error as error:
            said: dict[str, Any] = {"message": error.message}
            return JSONResponse({"errors": [said], "data": None}, error.status)

    async def _ask_teams(self, arguments: dict[str, Any]) -> Any:
        return [TEAM]

    async def _ask_models(self, arguments: dict[str, Any]) -> Any:
        if not arguments.get("all") and arguments.get("team_id") != TEAM["id"]:
            raise Error(200, "no such team")
        return [{"id": m["id"], "name": m["name"], "team": TEAM} for m in self._models.values()]

    async def _ask_truss_validation(self, arguments: dict[str, Any]) -> Any:
        try:
            self._checked(arguments["config"])
        except Error as error:
            return {"success": False, "details": json.dumps({"errors": [error.message]})}
        return {"success": True, "details": "{}"}

    async def _ask_model_s3_upload_credentials(self, arguments: dict[str, Any]) -> Any:
        self._number += 1
        return {"s3_bucket": BUCKET, "s3_key": f"organizations/o/models/{self._number}/model.tgz", **CREDS}

    async def _ask_create_model_from_truss(self, arguments: dict[str, Any]) -> Any:
        if arguments["name"] in self.names:
            raise Error(200, "a model of this name is there already")
        if arguments["team_id"] != TEAM["id"]:
            raise Error(200, "no such team")
        return await self._push(arguments, None)

    async def _ask_create_model_version_from_truss(self, arguments: dict[str, Any]) -> Any:
        if arguments["model_id"] not in self._services:
            raise Error(200, "no such model")
        return await self._push(arguments, self._models[arguments["model_id"]])

    async def _ask_listed_instances(self, arguments: dict[str, Any]) -> Any:
        return INSTANCES

    async def _wake(self, request: Request) -> Response:
        model = self._model(request)
        self.platform.wake(self._services[model["id"]])
        return JSONResponse({}, 202)

    async def _sync(self, request: Request) -> Response:
        model = self._model(request)
        url = f"{self._services[model['id']].url}/{request.path_params['rest']}"
        async with httpx.AsyncClient(timeout=30) as http:
            kept = {n: v for n, v in request.headers.items() if n in ("content-type", "accept")}
            answer = await http.request(request.method, url, content=await request.body(), headers=kept)
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    # Its own parts

    def _model(self, request: Request) -> dict[str, Any]:
        found = self._models.get(request.path_params["model"])
        if found is None:
            raise Error(404, "Model not found")
        return found

    def _shown(self, model: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": model["id"],
            "name": model["name"],
            "created_at": model["created_at"],
            "deployments_count": model.get("versions", 1),
            "production_deployment_id": version(model),
            "instance_type_name": "L4x4x16",
            "team_name": "team",
            "futureThing": {"a": [1]},
        }

    def _deployment(self, model: dict[str, Any]) -> dict[str, Any]:
        service = self._services[model["id"]]
        states = [
            "failed" if replica.starts > 1 and replica.state != "ready" else replica.state
            for replica in service.alive()
        ]
        word = next((STATUS[s] for s in ("ready", "booting", "waiting", "failed") if s in states), "SCALED_TO_ZERO")
        model["looks"] = model.get("looks", 0) + 1
        built = time.time() - model["began"] >= self.build_s and model["looks"] > self.build_looks
        if not built:
            word = "BUILDING"
        elif self.broken:
            word = "BUILD_FAILED"
        return {
            "id": version(model),
            "created_at": model["created_at"],
            "name": f"deployment-{model['versions']}",
            "model_id": model["id"],
            "is_production": built and not self.broken,
            "is_development": False,
            "status": word,
            "active_replica_count": states.count("ready"),
            "autoscaling_settings": model["settings"],
            "environment": model["environment"],
            "instance_type_name": "L4x4x16",
            "zzzNew": 1,
        }

    def _checked(self, encoded: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(base64.b64decode(encoded))
        server = config["docker_server"]
        if server["server_port"] == 8080:
            raise Error(200, "port 8080 is reserved")
        if not re.fullmatch(r"[A-Z0-9_]+(:[1-8])?", config["resources"]["accelerator"]):
            raise Error(200, "unknown accelerator")
        if any(value is not None for value in (config.get("secrets") or {}).values()):
            raise Error(200, "a secret's value has no place in the config")
        missing = [name for name in config.get("secrets") or {} if name not in self.secrets]
        if missing:
            raise Error(200, f"the workspace has no secret {missing[0]}")
        return config


class Asked:
    """A document of GraphQL with one operation that asks for one field; anything else is an Error.

    Source: https://spec.graphql.org/October2021/#sec-Language, as far as truss writes it.
    """

    def __init__(self, text: str, variables: dict[str, Any]) -> None:
        self._tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[\w$-]+|[^\s,]', text)
        self._declared: dict[str, Any] = {}
        self.mutates = self._tokens[0] == "mutation"
        if self._tokens[0] in ("query", "mutation"):
            self._next()
            if self._tokens[0] not in "{(":
                self._next()
            if self._tokens[0] == "(":
                self._declare(variables)
        if set(variables) != set(self._declared):
            raise Error(400, f"variables {sorted(variables)} and those declared differ")
        self._next("{")
        self.field = self._next()
        self.arguments: dict[str, Any] = {}
        if self._tokens[0] == "(":
            self._next("(")
            while self._tokens[0] != ")":
                name = self._next()
                self._next(":")
                if (value := self._value()) is not None:
                    self.arguments[name] = value
            self._next(")")
        self.wanted = self._selection()
        self._next("}")
        if self._tokens:
            raise Error(400, f"Syntax Error: unexpected {self._tokens[0]}")

    def _next(self, expected: str = "") -> str:
        if not self._tokens or (expected and self._tokens[0] != expected):
            raise Error(400, f"Syntax Error: expected {expected or 'more'}")
        return self._tokens.pop(0)

    def _declare(self, variables: dict[str, Any]) -> None:
        self._next("(")
        while self._tokens[0] != ")":
            name = self._next().removeprefix("$")
            self._next(":")
            if self._next() not in ("String", "JSONString"):
                raise Error(400, "Unknown type")
            value = variables.get(name)
            if value is not None and not isinstance(value, str):
                raise Error(400, f"Variable {name} is no string")
            self._declared[name] = value
        self._next(")")

    def _value(self) -> Any:
        word = self._next()
        if word.startswith("$"):
            if word[1:] not in self._declared:
                raise Error(400, f"Variable {word} is not defined")
            return self._declared[word[1:]]
        return json.loads(word)

    def _selection(self) -> dict[str, Any]:
        self._next("{")
        wanted: dict[str, Any] = {}
        while self._tokens[0] != "}":
            name = self._next()
            wanted[name] = self._selection() if self._tokens[0] == "{" else {}
        self._next("}")
        return wanted


def chosen(value: Any, wanted: dict[str, Any]) -> Any:
    """What was asked for of it, and nothing else."""
    if isinstance(value, list):
        return [chosen(one, wanted) for one in value]
    if not isinstance(value, dict):
        return value
    if missing := [name for name in wanted if name not in value]:
        raise Error(400, f"Cannot query field {missing[0]!r}")
    return {name: chosen(value[name], below) for name, below in wanted.items()}


def version(model: dict[str, Any]) -> str:
    """The id of its newest deployment."""
    return f"d{model.get('versions', 1)}-{model['id']}"


def known(body: dict[str, Any], fields: dict[str, type]) -> None:
    for key, value in body.items():
        if key not in fields:
            raise Error(400, f"{key}: extra fields not permitted")
        if value is not None and not isinstance(value, fields[key]):
            raise Error(400, f"{key}: not a {fields[key].__name__}")


def signature_is_wrong(request: Request, body: bytes) -> str:
    """AWS's signature version 4, computed anew from what came; empty where it is right.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html.
    """
    told = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, "
        r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
        request.headers.get("authorization", ""),
    )
    if told is None:
        return "no signature"
    access, day, region, names, signature = told.groups()
    if access != CREDS["aws_access_key_id"] or region != REGION:
        return "not the credentials that were lent"
    if request.headers.get("x-amz-security-token") != CREDS["aws_session_token"]:
        return "no session token"
    digest = request.headers.get("x-amz-content-sha256", "")
    if digest not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
        return "another body"
    lines = "".join(f"{name}:{request.headers[name].strip()}\n" for name in names.split(";"))
    canonical = f"PUT\n{request.url.path}\n{request.url.query}\n{lines}\n{names}\n{digest}"
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + CREDS["aws_secret_access_key"].encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    right = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return "" if right == signature else "the signature does not match"


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
