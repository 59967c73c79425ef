"""Making a plan real, so that a crash at any line leaves nothing that can't be found.

The records come first, then each resource is marked `creating` before its provider is asked and `created`
after. Serverless comes up first, so that the endpoint answers within seconds; the spot side beside it. Every
step looks for what is already there, so applying again finishes what a crash left half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tuna_nb import tls
from tuna_nb.backends.base import Backend, Endpoint, Plan, Ref, State
from tuna_nb.deployments.destroy import destroy
from tuna_nb.deployments.keeping import companion
from tuna_nb.deployments.keeping.watch import resource_ref
from tuna_nb.deployments.plan import ROUTER, SERVERLESS, SPOT, DeploymentPlan, near
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.router_hosts.base import ALSO, PROCESS, is_moving
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, CancelledError, EngineError, TunaError
from tuna_nb.jobs import Report
from tuna_nb.records import DeploymentRecord, ResourceRecord
from tuna_nb.secrets import new_key

if TYPE_CHECKING:
    import httpx

ANSWER_TIMEOUT_S = 1800
"""The longest a first answer may take: a big model's weights on a cold container."""
ASKING = "serverless on "
FIRST_ANSWER = "first answer"
"""Steps, as they are reported: the serverless provider is being asked; it has answered, and the engine is asked."""
LAST_LINES = 20
"""Of an engine's log, shown when it can't start."""


async def apply(
    workspace: Workspace, plan: DeploymentPlan, report: Report, *, until_spot: bool = True
) -> DeploymentRecord:
    """Bring the deployment up and return its record once its endpoint has generated a token.

    until_spot: wait for the first spot replica too. A failed or cancelled attempt is taken down again, whole,
    before the error is raised; only a spot side that can't be had leaves the endpoint up, served by serverless.
    """
    store = workspace.store
    name = plan.request.service_name
    record = store.live_deployment(name)
    if record is None:
        report.step("recording the plan", 0.0)
        record = store.add_deployment(
            name, plan.request.to_json(), plan.to_json(), plan.records(), plan.deployment_id
        )
    keep_limits(workspace, plan, record)
    attempt = _Apply(workspace, plan, record, report)
    served_before = record.endpoint_url is not None
    try:
        await attempt.build(until_spot)
    except asyncio.CancelledError:
        if served_before:
            raise CancelledError(
                f"{name}: stopped waiting; the deployment goes on", f"`tuna destroy --service-name {name}` ends it"
            ) from None
        await attempt.undo("destroyed", "cancelled")
        raise CancelledError(f"{name}: deploy was cancelled; everything it had created is gone") from None
    except TunaError as e:
        # What has served before is somebody's endpoint: a repair that fails must not take it down.
        if served_before:
            store.update_deployment(record.id, state="running", error=e.message)
        else:
            await attempt.undo("failed", e.message)
        raise
    return store.deployment(name)


def keep_limits(workspace: Workspace, plan: DeploymentPlan, record: DeploymentRecord) -> None:
    """The budget and the rule for silence that came with the plan, recorded before anything is created."""
    if plan.budget is not None:
        b = plan.budget
        workspace.store.budgets.put(
            record.id, b.limit_usd, b.per, b.warn, b.action, webhook=b.webhook, now=record.created_at
        )
        workspace.store.add_event(record.id, f"budget: {b.limit_usd:g} USD, {b.per}, {b.action}")
    if plan.quiet is not None:
        workspace.store.budgets.put_quiet(replace(plan.quiet, deployment_id=record.id))


class _Apply:
    """One attempt at one deployment."""

    def __init__(
        self, workspace: Workspace, plan: DeploymentPlan, record: DeploymentRecord, report: Report
    ) -> None:
        self._workspace = workspace
        self._store = workspace.store
        self._plan = plan
        self._record = record
        self._report = report
        self._by_role = {r.role: r for r in self._store.resources(record.id)}
        self._sides: list[tuple[str, Endpoint]] = []
        self._url = ""
        """Of the endpoint."""
        self._interim: str | None = None
        """URL of a router here, for the minutes that the machine of the other one takes to come up."""

    async def build(self, until_spot: bool) -> None:
        self._store.update_deployment(self._record.id, state="deploying", error=None)
        # From here on somebody looks at what it costs, whatever becomes of this process.
        await companion.ensure(self._workspace.settings, self._record.id)
        spot: asyncio.Task[Endpoint | None] | None = None
        try:
            if self._plan.spot is not None:
                spot = asyncio.create_task(self._create_spot(self._plan.spot))
            await self._serve()
            if self._interim is not None:
                if self._beside_spot and spot is not None:
                    self._report.step("the spot side's controller, which the router goes to", 0.45)
                    self._know_spot(await spot)
                await self._settle()
            if spot is not None:
                await self._join_spot(await spot, until_spot)
        finally:
            if spot is not None and not spot.done():
                spot.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await spot

    async def undo(self, state: str, why: str) -> None:
        """Take down what this attempt built; cancelling the undoing does not stop it half way."""
        self._report.step("rolling back", 0.0)
        record = self._store.live_deployment(self._record.name)
        if record is None:
            return
        task = asyncio.create_task(destroy(self._workspace, record, self._report, final_state=state, error=why))
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if (error := task.exception()) is not None:
            message = getattr(error, "message", str(error))
            raise TunaError(
                f"{self._record.name}: {why}; and taking it down failed: {message}",
                f"`tuna destroy --service-name {self._record.name}` tries again",
            ) from error

    async def _serve(self) -> None:
        """Serverless up, the router before it, and one real answer through both."""
        request = self._plan.request
        self._report.step(f"{ASKING}{request.serverless_provider}", 0.1)
        serverless = await self._create(SERVERLESS, self._plan.serverless)
        self._sides = [(SERVERLESS, serverless)]
        if self._plan.router_host is None:
            url = serverless.url
            headers = dict((await self._backend(SERVERLESS).auth(serverless.ref)).headers)
        else:
            self._report.step("router", 0.3)
            resource = self._by_role[ROUTER]
            # Where it serves already it is mended: one here would not help who has its address.
            serves = resource.url is not None and resource.url == self._record.endpoint_url
            settled = resource.state == "created" and (serves or not is_moving(resource))
            if self._workspace.router_host(resource.provider).takes_minutes and not settled:
                url = self._interim = await self._start_router(PROCESS)
            else:
                url = await self._start_router(resource.provider)
                self._tell_of_its_place()
            headers = self._headers()
        self._report.step(FIRST_ANSWER, 0.4)
        await self._first_answer(url, headers)
        self._serves_at(url)

    def _serves_at(self, url: str) -> None:
        self._url = url
        self._store.update_deployment(self._record.id, state="running", endpoint_url=url)
        self._store.add_event(self._record.id, f"serving at {url}")
        self._report.fact("endpoint", f"{url}/v1")

    def _tell_of_its_place(self) -> None:
        for note in self._plan.router.notes if self._plan.router else ():
            self._report.note(f"router: {note}")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key('api_key')}"}

    async def _settle(self) -> None:
        """The router where it is to stay. The one here goes on beside it, for who has its address already.

        Where it can't be there, the one here stays: an endpoint that serves is not taken down for its place.
        """
        resource = self._by_role[ROUTER]
        self._report.step(f"router on {resource.provider}", 0.5)
        try:
            url = await self._start_router(resource.provider)
            await self._first_answer(url, self._headers())
        except TunaError as e:
            self._store.update_resource(resource.id, error=e.message)
            self._report.note(f"the router stays on this machine: {e.message}")
            self._report.note(f"`tuna router move --service-name {self._record.name} --to ...` tries another place")
            with contextlib.suppress(TunaError):
                await self._workspace.router_host(resource.provider).stop(self._record.id)
            self._store.update_resource(
                resource.id,
                provider=PROCESS,
                provider_id=self._record.id,
                url=self._interim,
                price_per_hour_usd=0.0,
            )
            self._interim = None
            self._by_role = {r.role: r for r in self._store.resources(self._record.id)}
            return
        self._serves_at(url)
        self._report.note(f"{self._interim} answers too, as long as this machine is awake")
        self._tell_of_its_place()

    async def _create(self, role: str, plan: Plan) -> Endpoint:
        resource = self._by_role[role]
        backend = self._backend(role)
        self._store.update_resource(resource.id, state="creating", error=None, gone_at=None)
        endpoint = await backend.deploy(plan, lambda text, _fraction: self._report.note(f"{role}: {text}"))
        self._store.update_resource(resource.id, state="created", provider_id=endpoint.ref.id, url=endpoint.url)
        return endpoint

    async def _create_spot(self, plan: Plan) -> Endpoint | None:
        """None where the provider has no spot GPU for us: serverless then carries the traffic alone."""
        resource = self._by_role[SPOT]
        try:
            endpoint = await self._create(SPOT, plan)
            # A fleet that may scale to zero starts at zero; the first replica is wanted now.
            await self._backend(SPOT).wake(endpoint.ref)
        except BackendError as e:
            self._store.update_resource(resource.id, state="failed", error=e.message)
            self._report.note(f"spot: {e.message}")
            return None
        return endpoint

    async def _start_router(self, name: str) -> str:
        """On the host of that name. One that is not the router's own is recorded as a second, before it starts."""
        resource, host = self._by_role[ROUTER], self._workspace.router_host(name)
        known = self._record.id
        if name != resource.provider or self._interim is not None:
            known = ALSO + (name if name != resource.provider else PROCESS)
        elif is_moving(resource):
            known = resource.provider_id or known
        self._store.update_resource(resource.id, state="creating", error=None, provider_id=known)
        request = self._plan.request
        config = await self._router_config(beside_spot=host.beside_spot)
        url = await host.start(self._record.id, config, request.port, request.public, near(request))
        self._store.update_resource(resource.id, state="created", url=url)
        return url

    @property
    def _beside_spot(self) -> bool:
        return (
            self._plan.router_host is not None and self._workspace.router_host(self._plan.router_host).beside_spot
        )

    async def _router_config(self, *, beside_spot: bool) -> dict[str, Any]:
        return {
            "backends": await self._router_backends(beside_spot=beside_spot),
            "api_key_sha256": [] if self._plan.request.public else [_sha256(self._key("api_key"))],
            "admin_key_sha256": [_sha256(self._key("admin_key"))],
        }

    async def _router_backends(self, *, beside_spot: bool) -> list[dict[str, Any]]:
        return [await self._router_backend(role, endpoint, beside_spot) for role, endpoint in self._sides]

    async def _router_backend(self, role: str, endpoint: Endpoint, beside_spot: bool) -> dict[str, Any]:
        backend = self._backend(role)
        auth = await backend.auth(endpoint.ref)
        return {
            "name": role,
            "first_byte_timeout_s": backend.door.first_byte_s,
            "answer_limit_s": backend.door.answer_s,
            "redirects": backend.door.redirects,
            "kind": role,
            "url": endpoint.url,
            "headers": dict(auth.headers),
            "replicas_url": endpoint.replicas_url,
            "traffic_url": endpoint.traffic_url,
            "sync_url": endpoint.sync_url if beside_spot else None,
            "price_per_hour_usd": self._by_role[role].price_per_hour_usd,
        }

    def _know_spot(self, spot: Endpoint | None) -> None:
        if spot is not None and SPOT not in (role for role, _ in self._sides):
            self._sides.append((SPOT, spot))

    async def _join_spot(self, spot: Endpoint | None, until_spot: bool) -> None:
        """Tell the router of the spot side, and wait for its first replica where asked to."""
        self._know_spot(spot)
        router = RouterClient(self._url, self._key("admin_key"))
        beside = self._beside_spot and self._url != self._interim
        await router.configure({"backends": await self._router_backends(beside_spot=beside)})
        if self._interim is not None:
            interim = RouterClient(self._interim, self._key("admin_key"))
            await interim.configure({"backends": await self._router_backends(beside_spot=False)})
        if spot is None:
            self._report.note("no spot GPUs for now; deploying the same name again tries once more")
            return
        if not until_spot:
            return
        self._report.step("spot is booting; serverless answers meanwhile", 0.6)
        while not (await router.health())["skyserve_ready"]:
            status = await self._backend(SPOT).status(spot.ref)
            if status.state in (State.FAILED, State.GONE):
                self._store.update_resource(self._by_role[SPOT].id, error=status.detail)
                self._report.note(f"spot {status.state}: {status.detail}; serverless carries the traffic")
                return
            await asyncio.sleep(self._backend(SPOT).poll_s)
        self._store.add_event(self._record.id, "spot is ready")
        self._report.note("spot is ready and takes the traffic")

    async def _first_answer(self, url: str, headers: dict[str, str]) -> None:
        """Generate one token through the whole chain: an open port or a healthy `/health` proves nothing.

        Raises EngineError when the provider says that the engine can't start, or nothing answered in time.
        """
        import httpx

        backend, ref = self._backend(SERVERLESS), resource_ref(self._by_role[SERVERLESS])
        body = {
            "model": self._plan.request.model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 1,
        }
        end = time.monotonic() + ANSWER_TIMEOUT_S
        said = "nothing"
        async with httpx.AsyncClient(verify=tls.trusted(), timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            while True:
                asked = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body, headers=headers))
                try:
                    while not asked.done():
                        await asyncio.wait({asked}, timeout=backend.poll_s)
                        status = await backend.status(ref)
                        if status.state in (State.FAILED, State.GONE):
                            await self._note_last_lines(backend, ref)
                            why, *words = status.detail.splitlines() or [str(status.state)]
                            for word in words:
                                self._report.note(f"engine: {word}")
                            last = f": {words[-1].strip()}" if words else ""
                            raise EngineError(
                                f"the engine for {self._plan.request.model} can't start: {why}{last}",
                                "check --model, --engine-cmd and the memory it needs",
                            )
                        if time.monotonic() > end:
                            raise EngineError(
                                f"no answer within {ANSWER_TIMEOUT_S} s; the last try got {said}",
                                f"`tuna logs --service-name {self._record.name}` has the engine's words",
                            )
                finally:
                    if not asked.done():
                        asked.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await asked
                try:
                    answer = asked.result()
                except httpx.HTTPError as e:
                    said = type(e).__name__
                else:
                    if answer.status_code == 200 and answer.json().get("choices"):
                        return
                    said = f"{answer.status_code}: {answer.text[:200]}"
                    if answer.status_code in (400, 422) or (answer.status_code == 404 and _of_the_engine(answer)):
                        raise EngineError(
                            f"the engine refuses {self._plan.request.model}: {said}",
                            "the engine must serve the model under the name given with --model",
                        )
                await asyncio.sleep(min(1.0, backend.poll_s))

    async def _note_last_lines(self, backend: Backend, ref: Ref) -> None:
        """Into the job's log, because the provider's goes with the resource."""
        last: deque[str] = deque(maxlen=LAST_LINES)
        try:
            async for line in backend.logs(ref):
                last.append(line.text)
        except TunaError as e:
            last.append(f"its log can't be read: {e.message}")
        for text in last:
            self._report.note(f"engine: {text}")

    def _backend(self, role: str) -> Backend:
        return self._workspace.backend(self._resource(role).provider)

    def _resource(self, role: str) -> ResourceRecord:
        return self._by_role[role]

    def _key(self, name: str) -> str:
        key = self._workspace.secrets.get(self._record.id, name)
        if key is None:
            key = new_key()
            self._workspace.secrets.put(self._record.id, name, key)
        return key


def _of_the_engine(answer: httpx.Response) -> bool:
    """Whether an error is the engine's own: a provider's 404 may be a route that it has not made yet."""
    try:
        said = answer.json()
    except ValueError:
        return False
    return isinstance(said, dict) and isinstance(said.get("error"), dict) and "type" in said["error"]


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
