"""Baseten: vLLM's own image behind a Truss config that truss pushes, all the rest by the management REST API.

One model per deployment, told by its name; its first deployment is pushed to the environment `production`, whose
address never changes. Replicas bill by the minute from the start of deploying on; a new model starts one replica,
and only then goes down to zero, by half of what is too much after each scale-down delay.

Source: https://docs.baseten.co/reference/management-api/overview.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

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
from tuna_nb.backends.baseten import account, child, prices, push
from tuna_nb.backends.baseten.push import ENVIRONMENT
from tuna_nb.backends.lifecycle import create_once, until_gone
from tuna_nb.backends.names import deployment_of
from tuna_nb.backends.rest import TIMEOUT_S, Api
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.errors import BackendError, CredentialsError, NotFoundError, UnclearError
from tuna_nb.secrets import hugging_face_token

URL: Final = "https://api.baseten.co"
APP_URL: Final = "https://app.baseten.co"
INFERENCE: Final = "https://model-{model}.api.baseten.co"
KEY: Final = "BASETEN_API_KEY"
_SIGN_IN: Final = f"export {KEY}=<a key from https://app.baseten.co/settings/api_keys>"
_LOOK: Final = "https://app.baseten.co/models shows it"
_INSTALL: Final = "pip install 'tuna-nb[baseten]'"

STATES: Final[Mapping[str, State]] = {
    "BUILDING": State.STARTING,
    "DEPLOYING": State.STARTING,
    "LOADING_MODEL": State.STARTING,
    "WAKING_UP": State.STARTING,
    "ACTIVE": State.READY,
    "UPDATING": State.READY,
    "SCALED_TO_ZERO": State.IDLE,
    "UNHEALTHY": State.FAILED,
    "BUILD_FAILED": State.FAILED,
    "BUILD_STOPPED": State.FAILED,
    "DEPLOY_FAILED": State.FAILED,
    "FAILED": State.FAILED,
    "DEACTIVATING": State.STOPPING,
    # A request does not wake it: it gets 404.
    "INACTIVE": State.FAILED,
}
_BILLS: Final = frozenset({"DEPLOYING", "LOADING_MODEL", "WAKING_UP", "UNHEALTHY", "DEACTIVATING"})
"""States that bill a replica which Baseten does not count as active. Building an image is billed too, as a workload
of its own whose price nobody tells."""
_BUILD_S: Final = 3600.0
_GONE_S: Final = 120.0
_POLL_S: Final = 5.0
_OLDEST_S: Final = 7 * 86400 - 60
"""Baseten's log windows end after seven days."""
_OVERLAP_S: Final = 60.0
_MOST_PAGES: Final = 200
_WORDS: Final = 3
_LIVE: Final = "Baseten's list of instances"


class BasetenBackend(Backend):
    """Baseten's serverless side.

    url: of the management API, by default BASETEN_REST_URL or Baseten's own. app_url: of the console, which takes
    pushes and tells prices. s3_url: in place of AWS's own. inference_url: a model's base URL by its id, by default
    BASETEN_INFERENCE_URL with {model} in it, or Baseten's own. pace: of its waits.
    """

    name: ClassVar[str] = "baseten"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    options: ClassVar[Mapping[str, str]] = push.OPTIONS
    # A request may take ten minutes, and so long it is parked while a replica starts.
    door: ClassVar[Door] = Door(first_byte_s=600, answer_s=600)

    def __init__(
        self,
        url: str | None = None,
        *,
        app_url: str | None = None,
        s3_url: str | None = None,
        inference_url: Callable[[str], str] | None = None,
        timeout_s: float = TIMEOUT_S,
        pace: float = 1.0,
    ) -> None:
        base = url or os.environ.get("BASETEN_REST_URL") or URL
        self._api = Api("baseten", base, self._headers, _SIGN_IN, timeout_s=timeout_s, pace=pace)
        self._app_url = (app_url or APP_URL).rstrip("/")
        self._prices = prices.Prices(Api("baseten", self._app_url, self._headers, _SIGN_IN, pace=pace))
        self._s3_url = s3_url
        template = os.environ.get("BASETEN_INFERENCE_URL") or INFERENCE
        self._inference = inference_url or (lambda model: template.format(model=model))
        self._pace = pace
        self._first_seen: dict[str, float] = {}
        """When each replica was first counted: Baseten does not tell since when it runs."""

    def configured(self) -> bool:
        return bool(os.environ.get(KEY)) and _installed()

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        rows = [Check("package", True, "truss is installed")]
        if not _installed():
            rows = [Check("package", False, "truss is not installed", _INSTALL)]
        if not os.environ.get(KEY):
            return [*rows, Check("key", False, f"{KEY} is not set", _SIGN_IN)]
        try:
            listed = await self._models()
        except CredentialsError as exc:
            return [*rows, Check("key", False, exc.message, exc.hint)]
        rows.append(Check("key", True, f"{KEY} is accepted; the workspace has {len(listed)} models"))
        if request is not None:
            rows.append(await self._gpu_row(request))
            if request.engine.gated:
                rows.append(await self._secret_row(request))
        return rows

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = push.checked(request)
        offer = prices.shipped(request.gpu, request.gpu_count)
        each = None if offer is None else offer.sum()[0]
        quote = Quote.of(offer)
        if os.environ.get(KEY):
            try:
                live = prices.cheapest(await self._prices.instances(), request.gpu, request.gpu_count)
                if live is not None:
                    each, quote = live, Quote(time.time(), _LIVE)
            except BackendError as exc:
                quote = Quote.of(offer, exc.message)
        notes = [
            "Baseten bills by the minute, deploying and waking included; a new model starts one replica at once",
            "an answer must end within 600 s",
        ]
        if request.public:
            notes.append("Baseten always asks for a key: --public changes nothing at Baseten itself")
        if request.engine.gated:
            notes.append(
                f"the Hugging Face token is Baseten's secret {push.secret_name(request)}, which outlives the model"
            )
        worst = None if each is None else each * scaling.workers_max
        what = f"Baseten model, at most {scaling.workers_max} replicas"
        return Plan(request, (PlannedResource(what, request.name, worst),), each, tuple(notes), quote)

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request
        settings = push.settings(push.checked(request), request.options)
        made: list[str] = []

        async def create() -> dict[str, Any]:
            if request.engine.gated:
                await self._secret(request, progress)
            account = child.Account(self._app_url, self._key(), self._s3_url, _SIGN_IN)
            made.append(request.name)
            model_id = await child.run(request, account, progress, self._pace)
            try:
                found: dict[str, Any] = await self._api.get(f"/v1/models/{model_id}", request.name)
            except (BackendError, NotFoundError) as exc:
                # It is made: to be looked for by its name.
                raise UnclearError(exc.message, exc.hint) from exc
            return found

        model = await create_once(lambda: self._find(request.name), create, pace=self._pace)
        progress(f"{request.name} is model {model['id']}", None)
        try:
            await self._scale(model, settings)
            await self._built(model, progress)
        except BackendError:
            if made:
                # The first error is the one that counts; what is left then is found by its name.
                with contextlib.suppress(BackendError):
                    await self.destroy(_ref(model))
            raise
        return Endpoint(_ref(model), self._url(model))

    async def status(self, ref: Ref) -> Status:
        try:
            model = await self._model(ref)
            deployment = await self._deployment(model)
        except NotFoundError:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        if deployment is None:
            return Status(
                _ref(model), State.STARTING, (), False, time.time(), "no deployment yet", self._url(model)
            )
        word = str(deployment["status"])
        replicas = self._replicas(deployment)
        state = STATES.get(word, State.STARTING)
        if state is State.READY and not replicas:
            state = State.STARTING
        detail = "deactivated: `Activate` in the console brings it back" if word == "INACTIVE" else word
        return Status(
            _ref(model),
            state,
            replicas,
            billing=bool(replicas),
            observed_at=time.time(),
            detail=detail,
            endpoint_url=self._url(model),
        )

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        model = await self._model(ref)
        oldest = max(_unix(model["created_at"]), time.time() - _OLDEST_S)
        start = oldest if since is None else max(since, oldest)
        told: set[tuple[str, str, str]] = set()
        while True:
            deployment = await self._deployment(model)
            if deployment is not None:
                for line in await self._log(model, deployment, start, told):
                    if since is None or line.at >= since:
                        yield line
            if not follow:
                return
            # Lines come late and out of order: the last minute is asked for again, what was told is left out.
            start = max(start, time.time() - _OVERLAP_S)
            await asyncio.sleep(self.poll_s * self._pace)

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        assert isinstance(scaling, ServerlessScaling)
        settings = push.settings(scaling)
        await self._scale(await self._model(ref), settings)

    async def wake(self, ref: Ref) -> None:
        model = await self._model(ref)
        api = Api("baseten", self._inference(model["id"]), self._headers, _SIGN_IN, pace=self._pace)
        await api.call("POST", f"/environments/{ENVIRONMENT}/wake", f"wake of {ref.name}")

    async def destroy(self, ref: Ref) -> None:
        try:
            model = await self._model(ref)
            await self._api.call("DELETE", f"/v1/models/{model['id']}", ref.name)
        except NotFoundError:
            return

        async def is_there() -> bool:
            return any(one["id"] == model["id"] for one in await self._models())

        await until_gone(is_there, f"baseten: {ref.name}", within_s=_GONE_S, poll_s=self._pace, hint=_LOOK)

    async def list_owned(self) -> list[Ref]:
        return [_ref(one) for one in await self._models() if deployment_of(str(one["name"])) is not None]

    async def auth(self, ref: Ref) -> Auth:
        await self._model(ref)
        return Auth(self._headers())

    async def prices(self) -> list[Offer]:
        shipped = snapshot.of(self.name)
        if not os.environ.get(KEY):
            return list(shipped)
        listed, now, like = await self._prices.instances(), time.time(), shipped[0]
        return [
            Offer(
                self.name,
                OfferKind.SERVERLESS,
                ours,
                float(one["price"]) * 60 / int(one["gpu_count"]),
                None,
                now,
                _LIVE,
                gpu_count=int(one["gpu_count"]),
                machine=str(one["name"]),
                lines=like.lines,
                billing=like.billing,
                stock="limited" if one.get("limited_capacity") else None,
            )
            for one in listed
            if one.get("price") and one.get("gpu_count") and (ours := push.ours(one.get("gpu_type"))) is not None
        ]

    # Its own parts

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Api-Key {self._key()}"}

    def _key(self) -> str:
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise CredentialsError(f"baseten: {KEY} is not set", _SIGN_IN)
        return key

    async def charges(self, ref: Ref, since: float, until: float) -> list[Charge]:
        """A model's days in Baseten's usage summary, all its deployments together. Nothing before 2026-01-01."""
        return await account.charges(self._api, ref, since, until)

    async def _models(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = (await self._api.get("/v1/models", "the list of models"))["models"]
        return listed

    async def _find(self, name: str) -> dict[str, Any] | None:
        """Of several with our name the first made is ours."""
        ours = [one for one in await self._models() if one["name"] == name]
        return min(ours, key=lambda one: str(one["created_at"])) if ours else None

    async def _model(self, ref: Ref) -> dict[str, Any]:
        """Raises NotFoundError."""
        if ref.id is not None:
            found: dict[str, Any] = await self._api.get(f"/v1/models/{ref.id}", ref.name)
            return found
        by_name = await self._find(ref.name)
        if by_name is None:
            raise NotFoundError(f"baseten: there is no model {ref.name}")
        return by_name

    async def _deployment(self, model: Mapping[str, Any]) -> dict[str, Any] | None:
        """The one in production, else the newest; None where the model has none yet."""
        path = f"/v1/models/{model['id']}/deployments"
        listed = (await self._api.get(path, f"deployments of {model['name']}"))["deployments"]
        published = [one for one in listed if not one.get("is_development")]
        return max(
            published, key=lambda one: (bool(one.get("is_production")), str(one["created_at"])), default=None
        )

    async def _scale(self, model: Mapping[str, Any], settings: Mapping[str, int]) -> None:
        path = f"/v1/models/{model['id']}/environments/{ENVIRONMENT}"
        await self._api.call("PATCH", path, str(model["name"]), body={"autoscaling_settings": dict(settings)})

    async def _built(self, model: Mapping[str, Any], progress: Progress) -> None:
        """Return when the image is built. Raises BackendError with the log's last words."""
        began, last = time.monotonic(), ""
        while True:
            deployment = await self._deployment(model)
            word = str(deployment["status"]) if deployment is not None else "BUILDING"
            if word != last:
                progress(f"{model['name']}: {word.lower().replace('_', ' ')}", None)
                last = word
            if STATES.get(word) is State.FAILED and deployment is not None:
                lines = await self._log(model, deployment, _unix(model["created_at"]), set())
                said = " / ".join(line.text for line in lines[-_WORDS:])
                raise BackendError(f"baseten: {model['name']} is {word}: {said or 'its log is empty'}", _LOOK)
            if word != "BUILDING":
                return
            if time.monotonic() - began > _BUILD_S:
                raise BackendError(f"baseten: {model['name']} is still building after an hour", _LOOK)
            await asyncio.sleep(_POLL_S * self._pace)

    async def _log(
        self, model: Mapping[str, Any], deployment: Mapping[str, Any], start: float, told: set[tuple[str, str, str]]
    ) -> list[LogLine]:
        """Lines from `start` on that are not in `told`, oldest first; they are in it then.

        An answer is the newest part of its window, so the window's end goes back until nothing new comes.
        """
        path = f"/v1/models/{model['id']}/deployments/{deployment['id']}/logs"
        end, lines = time.time(), []
        for _ in range(_MOST_PAGES):
            if start >= end:
                break
            window = {"start_epoch_millis": int(start * 1000), "end_epoch_millis": int(end * 1000) + 1}
            page = (await self._api.call("POST", path, f"log of {model['name']}", body=window))["logs"]
            fresh = 0
            for one in page:
                mark = (str(one["timestamp"]), str(one["message"]), str(one.get("replica") or ""))
                if mark not in told:
                    told.add(mark)
                    fresh += 1
                    text = mark[1].rstrip("\n")
                    lines.append(LogLine(int(mark[0]) / 1e9, mark[2] or str(deployment["id"]), text))
            if not fresh:
                break
            end = min(int(one["timestamp"]) for one in page) / 1e9
        return sorted(lines, key=lambda line: line.at)

    def _replicas(self, deployment: Mapping[str, Any]) -> tuple[Replica, ...]:
        """Baseten only counts them; what starts and is not counted yet is one more."""
        word, count = str(deployment["status"]), int(deployment.get("active_replica_count") or 0)
        state = STATES.get(word, State.STARTING)
        count = max(count, 1) if word in _BILLS else count
        names = [f"{deployment['id']}-{number}" for number in range(1, count + 1)]
        now = time.time()
        for gone in [name for name in self._first_seen if name.startswith(deployment["id"]) and name not in names]:
            del self._first_seen[gone]
        return tuple(
            Replica(name, state, self._first_seen.setdefault(name, now), None, word, start_told=False)
            for name in names
        )

    async def _gpu_row(self, request: ServiceRequest) -> Check:
        if request.gpu not in push.ACCELERATORS:
            fix = f"choose one of {', '.join(push.ACCELERATORS)}"
            return Check("gpu", False, f"Baseten has no {request.gpu}", fix)
        try:
            price = prices.cheapest(await self._prices.instances(), request.gpu, request.gpu_count)
        except BackendError as exc:
            return Check("gpu", True, f"truss knows {request.gpu}; Baseten's list can't be read: {exc.message}")
        if price is None:
            said = f"Baseten lists no instance with {request.gpu_count} x {request.gpu} for this workspace"
            return Check("gpu", False, said, "choose another GPU, or ask support@baseten.co for it")
        return Check("gpu", True, f"Baseten has {request.gpu_count} x {request.gpu} for ${price:.2f}/h")

    async def _secret_row(self, request: ServiceRequest) -> Check:
        name = push.secret_name(request)
        if name in await self._secrets():
            return Check("model", True, f"{request.engine.model} is gated: Baseten's secret {name} is used")
        if hugging_face_token() is None:
            return Check(
                "model", False, f"{request.engine.model} is gated and there is no token", "export HF_TOKEN=hf_..."
            )
        return Check("model", True, f"{request.engine.model} is gated: your token becomes Baseten's secret {name}")

    async def _secrets(self) -> list[str]:
        listed = (await self._api.get("/v1/secrets", "the list of secrets"))["secrets"]
        return [str(one["name"]) for one in listed]

    async def _secret(self, request: ServiceRequest, progress: Progress) -> None:
        """See that there is one; a secret that is there is the workspace's and is left as it is."""
        name, token = push.secret_name(request), hugging_face_token()
        if name in await self._secrets():
            progress(f"Baseten's secret {name} is used", None)
            return
        if token is None:
            raise CredentialsError(
                f"baseten: {request.engine.model} is gated and the workspace has no secret {name}",
                "export HF_TOKEN=hf_..., or add the secret at https://app.baseten.co/settings/secrets",
            )
        await self._api.call("POST", "/v1/secrets", f"secret {name}", body={"name": name, "value": token})
        progress(f"your Hugging Face token is Baseten's secret {name} now", None)

    def _url(self, model: Mapping[str, Any]) -> str:
        return f"{self._inference(model['id']).rstrip('/')}/environments/{ENVIRONMENT}/sync"


def _installed() -> bool:
    return importlib.util.find_spec("truss") is not None


def _ref(model: Mapping[str, Any]) -> Ref:
    name = str(model["name"])
    return Ref("baseten", Kind.SERVERLESS, name, str(model["id"]), deployment_of(name))


def _unix(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
