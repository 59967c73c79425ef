"""Budgets and silence, held against the ledger at every look of the process beside a router.

Everything that happens is recorded before it is done, and once: whichever process writes the firing first acts on
it. What fails is tried again at the next looks, until it is done. Webhooks are told beside all that: a slow one
holds nothing up.

The router is told what is left and what to do then, so that it stops overflow by itself should nobody look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tuna_nb.backends.base import Status
from tuna_nb.costs import budgets
from tuna_nb.costs.account import Zone, own_zone
from tuna_nb.costs.budgets import BEYOND, FULL, Standing
from tuna_nb.costs.unserving import Unserving, said
from tuna_nb.deployments.destroy import destroy, remove_resource
from tuna_nb.deployments.keeping import webhook
from tuna_nb.deployments.keeping.allowance import standings
from tuna_nb.deployments.keeping.silence import rule_of, unserving
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.scale import scale
from tuna_nb.deployments.tracking import live_job, take_over, tracked
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import ConflictError, TunaError
from tuna_nb.jobs import Report
from tuna_nb.records import EVERYTHING, DeploymentRecord, FiringRecord, ResourceRecord

HOLD_S: Final = 180.0
"""So long a message is one process's to send; then another may."""
CLOSING_S: Final = 180.0
"""How long messages that are on their way are waited for at the end: all their tries."""
TELL_EVERY_S: Final = 300.0
"""The router is told what is left at least so often, in case it is another one by now."""
UNSERVING: Final = "unserving:"

_log = logging.getLogger("tuna_nb.keeper")


@dataclass(frozen=True, slots=True)
class _Told:
    """What the router was told last; left_usd None: that there is no budget."""

    at: float
    left_usd: float | None
    use: str = ""


class Enforcer:
    """Of one deployment. `wall` is Unix time, `zone` the user's own; a test holds both."""

    def __init__(
        self,
        workspace: Workspace,
        wall: Callable[[], float],
        zone: Zone = own_zone,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._workspace = workspace
        self._store = workspace.store
        self._wall = wall
        self._zone = zone
        self._sleep = sleep
        self._told: _Told | None = None
        self._messages: set[asyncio.Task[None]] = set()
        self._report = Report(self._publish)

    async def check(self, record: DeploymentRecord, statuses: Mapping[int, Status]) -> None:
        """After the ledger was written. statuses: of the sides that were asked, by resource id."""
        now = self._wall()
        over = standings(self._workspace, record.id, now, self._zone)
        for one in over:
            self._fire(record, one, now)
        if record.state != "destroying":
            self._notice(record, statuses, now)
        self._send(record, now)
        told = await self._tell_router(record, over, now)
        await self._act(record, over, told=told)

    async def close(self, within_s: float = CLOSING_S) -> None:
        """Wait for messages that are on their way; what is not told by then another look will tell."""
        if self._messages:
            await asyncio.wait(self._messages, timeout=within_s)
        for task in self._messages:
            task.cancel()
        await asyncio.gather(*self._messages, return_exceptions=True)

    def has_to_destroy(self, deployment_id: str) -> bool:
        """Whether a destroy of ours was begun and has not ended."""
        return any(one.action == "destroy" for one in self._store.budgets.pending(deployment_id))

    # -- what fires -------------------------------------------------------------------------------------

    def _fire(self, record: DeploymentRecord, one: Standing, now: float) -> None:
        levels = budgets.reached(one)
        if not levels:
            return
        fired = {(f.level, f.deployment_id) for f in self._store.budgets.fired(one.budget.id, one.window.key)}
        for level in levels:
            firing = FiringRecord(
                0, one.budget.id, "", one.window.key, level, now, budgets.message(one, level),
                budgets.fields_of(one, level), "", None, "", None, None, 0.0, 0,
            )  # fmt: skip
            # Of several at once only the highest is worth a message.
            loud = level == levels[-1]
            if one.budget.webhook and loud:
                firing = replace(firing, webhook_scope=one.budget.scope)
            if (level, "") not in fired and self._store.budgets.fire(firing) is not None and loud:
                self._store.add_event(record.id, firing.text)
            action = budgets.action_at(one.budget, level)
            if action and (level, record.id) not in fired:
                self._store.budgets.fire(
                    replace(firing, deployment_id=record.id, action=action, webhook_scope=None)
                )

    def _notice(self, record: DeploymentRecord, statuses: Mapping[int, Status], now: float) -> None:
        rule = rule_of(self._store, record.id)
        for number, one in unserving(self._store, record, statuses, now).items():
            subject, spell = f"{UNSERVING}{number}", f"{'forgotten' if one.forgotten else 'quiet'}:{one.since:.0f}"
            if self._known(subject, spell, one):
                continue
            text = f"{record.name}: {said(one, record.name)}"
            stop = rule.stop and one.alone
            firing = FiringRecord(
                0, subject, record.id, spell, FULL, now, text, _fields(record, one),
                ("idle" if one.forgotten else "stop") if stop else "",
                None, "", self._webhook_scope(record), None, 0.0, 0,
            )  # fmt: skip
            if self._store.budgets.fire(firing) is not None:
                self._store.add_event(record.id, text)

    def _known(self, subject: str, spell: str, one: Unserving) -> bool:
        """Whether it was told before: a spell may be known better later, and then begins elsewhere."""
        kind = spell.partition(":")[0]
        for firing in self._store.budgets.fired(subject):
            if firing.window.partition(":")[0] == kind and (firing.window == spell or firing.at > one.since):
                return True
        return False

    def _webhook_scope(self, record: DeploymentRecord) -> str | None:
        """Who is told of what does not serve: the webhook of its budgets, else that of those over all."""
        for scope in (record.id, EVERYTHING):
            if webhook.kept(self._workspace.secrets, scope) is not None:
                return scope
        return None

    # -- who is told ------------------------------------------------------------------------------------

    def _send(self, record: DeploymentRecord, now: float) -> None:
        known = {
            scope: hook
            for scope in (record.id, EVERYTHING)
            if (hook := webhook.kept(self._workspace.secrets, scope)) is not None
        }
        if not known:
            return
        for firing in self._store.budgets.untold(list(known), now, HOLD_S):
            task = asyncio.create_task(self._deliver(known[firing.webhook_scope or ""], record, firing))
            self._messages.add(task)
            task.add_done_callback(self._messages.discard)

    async def _deliver(self, hook: webhook.Webhook, record: DeploymentRecord, firing: FiringRecord) -> None:
        fields = firing.told | {"id": str(firing.id), "deployment_id": record.id, "at": firing.at}
        why = await webhook.tell(hook, firing.text, fields, self._wall, self._sleep)
        if why is None:
            self._store.budgets.update_firing(firing.id, told_at=self._wall())
            return
        _log.warning("a webhook was not told: %s", why)
        tries = firing.tries + 1
        self._store.budgets.update_firing(firing.id, tries=tries, held_until=self._wall() + 60.0 * 2**tries)

    async def _tell_router(self, record: DeploymentRecord, over: Sequence[Standing], now: float) -> bool:
        """Whether it knows what is left. One that can't be reached goes by what it was told last."""
        acting = [one for one in over if one.budget.action != "notify"]
        limit = min(acting, key=_strictness, default=None)
        use = "" if limit is None else _serverless_use(limit)
        told = self._told
        if told is not None and told.left_usd is None and limit is None:
            return True
        if told is not None and now - told.at < TELL_EVERY_S and told.use == use:
            if limit is None or told.left_usd is None:
                return True
            if abs(told.left_usd - limit.left_usd) < 0.01 * limit.budget.limit_usd and (
                limit.left_usd > 0 or told.left_usd == 0
            ):
                return True
        router = self._router(record)
        if router is None:
            return False
        try:
            url = await self._workspace.router_host(router.provider).url(record.id)
            if url is None:
                return False
            client = RouterClient(url, self._workspace.secrets.get(record.id, "admin_key"))
            if limit is None:
                await client.delete_budget()
                self._told = _Told(now, None)
            else:
                note = f"{budgets.shown(limit.budget)} for {limit.name}"
                await client.put_budget(limit.left_usd, use, note)
                self._told = _Told(now, limit.left_usd, use)
        except TunaError as e:
            _log.warning("the router was not told what is left: %s", e.message)
            return False
        return True

    def _router(self, record: DeploymentRecord) -> ResourceRecord | None:
        parts = self._store.resources(record.id)
        return next((r for r in parts if r.role == ROUTER and r.state == "created"), None)

    # -- what is done -----------------------------------------------------------------------------------

    async def _act(self, record: DeploymentRecord, over: Sequence[Standing], *, told: bool) -> None:
        """What has fired and is not done. A destroy goes first: it makes the others needless."""
        standing = {one.budget.id: one for one in over}
        for firing in sorted(self._store.budgets.pending(record.id), key=lambda f: f.action != "destroy"):
            one = standing.get(firing.subject)
            of_budget = not firing.subject.startswith(UNSERVING)
            over_by_now = one is None or one.window.key != firing.window
            # Of a day that is over nothing is left to do; a destroy that was begun is ended.
            if of_budget and over_by_now and record.state != "destroying":
                continue
            try:
                done = await self._do(record, firing, one, told=told)
            except TunaError as e:
                _log.warning("%s: %s failed, and is tried again: %s", record.name, firing.action, e.message)
                if e.message != firing.trouble:
                    self._store.budgets.update_firing(firing.id, trouble=e.message)
                    self._store.add_event(record.id, f"{firing.action} failed, and is tried again: {e.message}")
                continue
            if done:
                self._store.budgets.update_firing(firing.id, done_at=self._wall(), trouble="")
                self._store.add_event(record.id, f"done: {firing.action}")
                if firing.action == "destroy":
                    return

    async def _do(
        self, record: DeploymentRecord, firing: FiringRecord, one: Standing | None, *, told: bool
    ) -> bool:
        """False where it could not be done yet."""
        if firing.action == "stop-overflow":
            # Serverless alone has no overflow; a router that is not there yet is told when it is.
            return told or bool(record.request.get("serverless_only"))
        if firing.action == "scale-down":
            return await self._scale_down(record)
        if firing.action == "destroy":
            return await self._destroy(record, firing, one)
        number = int(firing.subject.removeprefix(UNSERVING))
        resource = next(r for r in self._store.resources(record.id) if r.id == number)
        if firing.action == "idle":
            return await self._scale_down(record, most=False)
        if resource.state not in ("gone", "planned"):
            why = "it was stopped: it billed and did not serve"
            await remove_resource(self._workspace, record, resource, self._report, error=why)
        return True

    async def _scale_down(self, record: DeploymentRecord, *, most: bool = True) -> bool:
        """To zero where nothing is asked; `most`: to one replica at most, too."""
        fresh = self._store.live_deployment(record.name)
        if fresh is None or fresh.id != record.id:
            return True
        request = DeployRequest.from_json(fresh.request)
        serverless, spot = replace(request.serverless, workers_min=0), request.spot
        if not request.serverless_only:
            spot = replace(spot, min_replicas=0)
        if most:
            serverless = replace(serverless, workers_max=1)
            spot = spot if request.serverless_only else replace(spot, max_replicas=1)
        await scale(self._workspace, fresh, serverless, spot)
        sides = [r for r in self._store.resources(record.id) if r.role != ROUTER]
        return all(r.state in ("created", "gone", "failed") for r in sides)

    async def _destroy(self, record: DeploymentRecord, firing: FiringRecord, one: Standing | None) -> bool:
        """Whoever works on the deployment is stopped first; but not somebody who destroys it already."""
        job = live_job(self._workspace, record.name)
        if job is not None and job.verb == "destroy":
            raise ConflictError(f"{record.name}: it is being destroyed by process {job.pid}")
        await take_over(self._workspace, record.name, self._report)
        why = "its budget was used up" if one is None else f"its budget of {budgets.shown(one.budget)} was used up"

        async def body(report: Report) -> None:
            fresh = self._store.live_deployment(record.name)
            if fresh is not None and fresh.id == record.id:
                await destroy(self._workspace, fresh, report, error=why)

        await tracked(self._workspace, record.name, "destroy", self._report, body)
        return True

    def _publish(self, *, log: str | None = None, **_: Any) -> None:
        if log is not None:
            with contextlib.suppress(ValueError):
                _log.info("%s", log)


def _strictness(one: Standing) -> tuple[float, bool]:
    return one.left_usd, _serverless_use(one) != "never"


def _serverless_use(one: Standing) -> str:
    """What the router does once nothing is left."""
    stopped = one.budget.action == "stop-overflow" and BEYOND in budgets.reached(one)
    return "never" if stopped or one.budget.action == "destroy" else "cover"


def _fields(record: DeploymentRecord, one: Unserving) -> dict[str, Any]:
    return {
        "event": "unserving",
        "name": record.name,
        "role": one.role,
        "provider": one.provider,
        "kind": one.kind,
        "since": one.since,
        "spent_usd": round(one.usd, 6),
    }
