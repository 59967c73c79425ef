"""Acme Cloud, which there is not: the provider of the worked example in `tests/plugins`."""

from __future__ import annotations

import itertools
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.platform import REFUSED, Service

KEY = "acme-test-key"
FIELDS = {"name", "labels", "gpu", "image", "command", "env", "scaling"}
STATES = {"booting": "starting", "ready": "ready", "failed": "failed"}


class FakeAcme(FakeCloud):
    """Pages of two; tokens of a service are numbered, and all that were given open it."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self._tokens: dict[str, set[str]] = {}
        self._services: dict[str, tuple[dict[str, Any], Service]] = {}
        for number in range(3):
            body = {"name": f"theirs-{number}", "labels": {}, "scaling": {"min": 0, "max": 1, "idle_s": 60}}
            self._services[body["name"]] = (body, Service([], {}, lambda _: REFUSED, url="http://127.0.0.1:9"))

    @property
    def names(self) -> list[str]:
        return list(self._services)

    def routes(self) -> list[BaseRoute]:
        one = "/services/{name}"
        return [
            Route("/services", self._guarded(self._list), methods=["GET"]),
            Route("/services", self._guarded(self._create), methods=["POST"]),
            Route(one, self._guarded(self._one), methods=["GET", "PATCH", "DELETE"]),
            Route(f"{one}/{{action}}", self._guarded(self._action), methods=["GET", "POST"]),
        ]

    def _guarded(self, handler: Any) -> Any:
        async def guarded(request: Request) -> Response:
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return JSONResponse({"message": "unknown key"}, 401)
            answer: Response = await handler(request)
            return answer

        return guarded

    async def _list(self, request: Request) -> Response:
        first = int(request.query_params.get("page") or 0)
        shown = [self._shown(*found) for found in self._services.values()]
        further = str(first + 2) if len(shown) > first + 2 else None
        return JSONResponse({"services": shown[first : first + 2], "next": further})

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if set(body) != FIELDS:
            return JSONResponse({"message": f"fields: {sorted(set(body) ^ FIELDS)}"}, 400)
        if body["name"] in self._services:
            return JSONResponse({"message": "the name is taken"}, 409)
        tokens = self._tokens.setdefault(body["name"], set())
        service = Service(
            body["command"],
            body["env"],
            lambda headers: None if headers.get("authorization", "").removeprefix("Bearer ") in tokens else REFUSED,
        )
        self._services[body["name"]] = (body, service)
        self._scale(body, service)
        await self.platform.start(service)
        return JSONResponse(self._shown(body, service), 201)

    async def _one(self, request: Request) -> Response:
        found = self._services.get(request.path_params["name"])
        if found is None:
            return JSONResponse({"message": "no such service"}, 404)
        if request.method == "DELETE":
            del self._services[found[0]["name"]]
            await self.platform.stop(found[1])
            return Response(status_code=204)
        if request.method == "PATCH":
            found[0].update(await request.json())
            self._scale(*found)
        return JSONResponse(self._shown(*found))

    async def _action(self, request: Request) -> Response:
        found = self._services.get(request.path_params["name"])
        if found is None:
            return JSONResponse({"message": "no such service"}, 404)
        body, service = found
        action = request.path_params["action"]
        if action == "wake":
            self.platform.wake(service)
            return Response(status_code=202)
        if action == "token":
            token = f"{body['name']}-{next(self._numbers)}"
            self._tokens[body["name"]].add(token)
            return JSONResponse({"token": token, "expires_in": 600})
        return JSONResponse({"lines": [{"at": at, "container": c, "text": t} for at, c, t in service.lines]})

    @staticmethod
    def _scale(body: dict[str, Any], service: Service) -> None:
        scaling = body["scaling"]
        service.min, service.max, service.idle_s = scaling["min"], scaling["max"], scaling["idle_s"] * 0.03

    @staticmethod
    def _shown(body: dict[str, Any], service: Service) -> dict[str, Any]:
        containers = [
            {"id": r.id, "state": STATES.get(r.state, "starting"), "started_at": r.started_at or time.time()}
            for r in service.alive()
        ]
        return {**body, "url": service.url, "containers": containers, "new": True}
