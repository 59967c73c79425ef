"""Baseten: the management API v1 with the push that its documents describe, Amazon's S3 with real signatures, the
console's GraphQL for prices, and the inference host, all on one port."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import io
import re
import shlex
import tarfile
import time
from datetime import UTC, datetime
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
BUCKET, REGION = "baseten-user-models-test", "us-west-2"
PAGE = 3

DEPLOYMENT = {
    "config": dict,
    "raw_config": str,
    "user_env": dict,
    "environment_name": str,
    "preserve_env_instance_type": bool,
    "deploy_timeout_minutes": int,
    "deployment_name": str,
    "labels": dict,
    "is_development": bool,
}
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
    """build_s: of an image. broken: why every build fails. scale: a second of Baseten's takes so many real ones."""

    def __init__(self, *, scale: float = 0.005) -> None:
        super().__init__()
        self.scale = scale
        self.build_s = 0.05
        self.broken = ""
        self.free_gpus = True
        self.secrets: dict[str, str] = {}
        self.bodies: list[Any] = []
        """Of all calls but those that make secrets, and what was uploaded."""
        self.paths: list[str] = []
        self._models: dict[str, dict[str, Any]] = {}
        self._services: dict[str, Service] = {}
        self._objects: dict[str, bytes] = {}
        self._number = 0
        theirs = {"id": "theirs00", "name": "tuna-salad", "created_at": now(), "began": 0.0, "config": {}}
        self._models["theirs00"] = theirs

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
            ("POST", "/v1/models", self._create),
            ("POST", "/v1/prepare_model_upload", self._prepare),
            ("GET", one, self._get),
            ("DELETE", one, self._delete),
            ("GET", f"{one}/deployments", self._deployments),
            ("POST", f"{one}/deployments/{{deployment}}/logs", self._logs),
            ("PATCH", f"{one}/environments/{{environment}}", self._patch),
            ("GET", "/v1/secrets", self._list_secrets),
            ("POST", "/v1/secrets", self._put_secret),
            ("POST", "/graphql/", self._graphql),
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

    async def _prepare(self, request: Request) -> Response:
        body = await self._body(request)
        known(body, {"name": str, "deployment": dict, "model_id": str, "team_id": str, "dry_run": bool})
        if ("name" in body) == ("model_id" in body):
            raise Error(400, "Exactly one of name or model_id is required")
        self._checked(body["deployment"])
        self._number += 1
        key = f"organizations/o/models/{self._number}/model.tgz"
        return JSONResponse({"creds": CREDS, "s3_bucket": BUCKET, "s3_key": key, "s3_region": REGION})

    async def _s3(self, request: Request) -> Response:
        body = await request.body()
        wrong = signature_is_wrong(request, body)
        if wrong or request.path_params["bucket"] != BUCKET:
            return Response(f"<Error><Code>SignatureDoesNotMatch</Code><Message>{wrong}</Message></Error>", 403)
        self._objects[request.path_params["key"]] = body
        return Response(status_code=200)

    async def _create(self, request: Request) -> Response:
        body = await self._body(request)
        known(body, {"source": dict})
        source = body["source"]
        fields = {"kind": str, "name": str, "deployment": dict, "s3_key": str, "disable_archive_download": bool}
        known(source, fields)
        if source.get("kind") != "model_archive":
            raise Error(400, "source.kind is unknown")
        self._checked(source["deployment"])
        archive = self._objects.get(source["s3_key"])
        if archive is None:
            raise Error(400, "the archive was not uploaded")
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
            told = yaml.safe_load(tar.extractfile("config.yaml").read())  # type: ignore[union-attr]
        self.bodies.append(told)
        config = source["deployment"]["config"]
        if told["docker_server"]["start_command"] != config["docker_server"]["start_command"]:
            raise Error(400, "the archive's config is not the deployment's")
        self._number += 1
        made = {
            "id": f"m{self._number:07d}",
            "name": source["name"],
            "created_at": now(),
            "began": time.time(),
            "config": config,
            "environment": source["deployment"].get("environment_name"),
            "settings": {"min_replica": 0, "max_replica": 1, "concurrency_target": 1, "scale_down_delay": 900},
        }
        self._models[made["id"]] = made
        argv, env = self._command(config)
        service = Service(
            argv=argv, env=env, opens=lambda headers: None, boot_s=0.02, capacity=lambda: self.free_gpus, max=1
        )
        self._services[made["id"]] = service
        await self.platform.start(service)
        service.idle_s = 900 * self.scale
        if not self.broken:
            # A new deployment starts a replica.
            self.platform.wake(service)
        deployment = self._deployment(made)
        return JSONResponse({"model": self._shown(made), "deployment": deployment})

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

    async def _graphql(self, request: Request) -> Response:
        body = await self._body(request)
        if "listed_instances" not in body["query"]:
            return JSONResponse({"errors": [{"message": "unknown query"}]})
        return JSONResponse({"data": {"listed_instances": INSTANCES}})

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
            "deployments_count": 1,
            "production_deployment_id": f"d-{model['id']}",
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
        built = time.time() - model["began"] >= self.build_s
        if not built:
            word = "BUILDING"
        elif self.broken:
            word = "BUILD_FAILED"
        return {
            "id": f"d-{model['id']}",
            "created_at": model["created_at"],
            "name": "deployment-1",
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

    def _checked(self, deployment: dict[str, Any]) -> None:
        known(deployment, DEPLOYMENT)
        if not 10 <= deployment.get("deploy_timeout_minutes", 10) <= 1440:
            raise Error(400, "deploy_timeout_minutes must be 10 to 1440")
        config = deployment["config"]
        server = config["docker_server"]
        if server["server_port"] == 8080:
            raise Error(400, "port 8080 is reserved")
        if not re.fullmatch(r"[A-Z0-9_]+(:[1-8])?", config["resources"]["accelerator"]):
            raise Error(400, "unknown accelerator")
        if any(value is not None for value in (config.get("secrets") or {}).values()):
            raise Error(400, "a secret's value has no place in the config")
        missing = [name for name in config.get("secrets") or {} if name not in self.secrets]
        if missing:
            raise Error(400, f"the workspace has no secret {missing[0]}")


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
    canonical = f"PUT\n{request.url.path}\n\n{lines}\n{names}\n{digest}"
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + CREDS["aws_secret_access_key"].encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    right = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return "" if right == signature else "the signature does not match"


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
