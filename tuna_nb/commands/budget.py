"""`budget`: what may be spent, set, listed and removed; and what `deploy` makes of its budget flags."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Final

from tuna_nb.commands.context import Context
from tuna_nb.costs import budgets
from tuna_nb.costs.account import Zone, own_zone
from tuna_nb.costs.budget_list import BudgetList, BudgetRow
from tuna_nb.costs.unserving import FORGOTTEN_S, QUIET_S
from tuna_nb.deployments.keeping import companion, webhook
from tuna_nb.deployments.keeping.allowance import Wanted, require_overflow
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import NotFoundError, RequestError, UsageError
from tuna_nb.records import EVERYTHING, BudgetRecord, DeploymentRecord, QuietRecord

ALL: Final = "all deployments"


async def budget(options: Namespace, context: Context) -> BudgetList:
    workspace = context.workspace
    if options.action == "set":
        made = set_(options, workspace)
        for record in _covered(workspace, options.service_name):
            # Where this machine was off meanwhile nobody would hold it.
            await companion.ensure(workspace.settings, record.id)
        return made
    if options.action == "remove":
        return remove(options, workspace)
    return listed(workspace, options.service_name)


def _covered(workspace: Workspace, service_name: str | None) -> list[DeploymentRecord]:
    """What a budget is over that this machine looks after."""
    return [
        record
        for record in workspace.store.deployments(("deploying", "running"))
        if record.destroyed_at is None
        and service_name in (None, record.name)
        and companion.was_here(workspace.settings, record.id)
    ]


def set_(options: Namespace, workspace: Workspace) -> BudgetList:
    """Raises UsageError or RequestError for a budget that can't be; nothing is changed then."""
    # The verb's own word is `action`, too.
    action = options.action_at_limit
    warn = parse_levels(options.warn, "--warn")
    budgets.check(options.limit, options.per, warn, action)
    scope, name = _scope(workspace, options.service_name)
    if options.service_name is not None:
        record = workspace.store.deployment(options.service_name)
        require_overflow(DeployRequest.from_json(record.request), action)
    notes: list[str] = []
    if options.webhook is not None:
        notes += keep_webhook(workspace, scope, options.webhook, os.environ)
    made, before = workspace.store.budgets.put(
        scope, options.limit, options.per, warn, action, webhook=options.webhook is not None, now=time.time()
    )
    notes += replaced(before, made)
    if made.scope == EVERYTHING and before is None and made.per == "total":
        notes.append("counted from now on")
    row = _row(workspace, made, time.time(), own_zone)
    if row.left_usd <= 0:
        notes.append(f"it is used up already: at the next look, within seconds, {budgets.MEANS[made.action]}")
    return BudgetList((row,), f"{name}: a budget of {budgets.shown(made)}", tuple(notes))


def remove(options: Namespace, workspace: Workspace) -> BudgetList:
    """One, or all of a scope. Raises NotFoundError where there is none."""
    scope, name = _scope(workspace, options.service_name, gone=True)
    here = [b for b in workspace.store.budgets.applying() if b.scope == scope]
    found = [b for b in here if options.per in (None, b.per)]
    if not found:
        which = "budget" if options.per is None else f"budget per {options.per}"
        raise NotFoundError(f"{name}: there is no such {which}", "`tuna budget list` shows all")
    for one in found:
        workspace.store.budgets.remove(one)
    if len(found) == len(here) and scope == EVERYTHING:
        workspace.secrets.forget(scope)
    rows = listed(workspace, None).rows
    return BudgetList(rows, f"removed: {' and '.join(budgets.shown(b) for b in found)} for {name}")


def listed(workspace: Workspace, service_name: str | None, zone: Zone = own_zone) -> BudgetList:
    """Those over everything and over deployments that are there; or those over one."""
    now = time.time()
    alive = {d.id for d in workspace.store.deployments() if d.destroyed_at is None}
    if service_name is None:
        found = [b for b in workspace.store.budgets.applying() if b.scope == EVERYTHING or b.scope in alive]
    else:
        found = workspace.store.budgets.applying(workspace.store.deployment(service_name).id)
    scopes = {b.scope for b in found}
    unheld = [
        record.name
        for record in (_covered(workspace, service_name) if found else ())
        if scopes & {record.id, EVERYTHING} and companion.find(record.id, companion.KEEPER) is None
    ]
    notes = [f"nobody looks after {name} now: `tuna status --service-name {name}` sees to it" for name in unheld]
    return BudgetList(tuple(_row(workspace, b, now, zone) for b in found), notes=tuple(notes))


def parse_levels(text: str | None, flag: str) -> tuple[float, ...]:
    """`50,80` to per cents; empty text for none. Raises UsageError."""
    if text is None:
        return budgets.WARN
    try:
        return tuple(sorted({float(part.strip().rstrip("%")) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise UsageError(f"{flag} {text!r} is no list of per cents", f"for example {flag} 50,80") from None


def wanted(options: Namespace) -> Wanted | None:
    """The budget that a deploy's flags set; None without. Raises UsageError where --budget itself is missing."""
    given = [
        flag
        for flag in ("budget_per", "budget_action", "budget_warn", "budget_webhook")
        if getattr(options, flag) is not None
    ]
    if options.budget is None:
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} without --budget", "say how much: --budget 20")
        return None
    if options.budget_action is not None and options.serverless_only and options.budget_action == "stop-overflow":
        raise RequestError(
            "--serverless-only has no overflow to stop", "choose --budget-action scale-down, destroy or notify"
        )
    return Wanted(
        options.budget,
        options.budget_per or "total",
        parse_levels(options.budget_warn, "--budget-warn"),
        options.budget_action or "notify",
        options.budget_webhook is not None,
    )


def quiet_rule(options: Namespace, deployment_id: str) -> QuietRecord | None:
    """When silence is noticed and what happens then, as a deploy's flags say; None where they say nothing."""
    minutes = options.quiet_minutes
    if minutes is None and not options.stop_unserving:
        return None
    if minutes is not None and not 1 <= minutes < 1e6:
        raise RequestError(f"--quiet-minutes is {minutes:g}", "it must be at least 1")
    quiet_s = QUIET_S if minutes is None else 60 * minutes
    return QuietRecord(deployment_id, quiet_s, FORGOTTEN_S, options.stop_unserving)


def keep_webhook(workspace: Workspace, scope: str, given: str, environ: Mapping[str, str]) -> list[str]:
    """Keep the address where secrets are; returns what its reader should know."""
    url, typed = webhook.read_url(given, environ)
    webhook.keep(workspace.secrets, scope, url, environ)
    notes = [f"webhook: {webhook.masked(url)}, signed with the key {_key_place(workspace, scope, environ)}"]
    if typed:
        notes.append(
            "an address that is typed stays in histories and notebooks: --webhook NAME reads it from a variable"
        )
    return notes


def replaced(before: BudgetRecord | None, made: BudgetRecord) -> Sequence[str]:
    """For who sets one where there was one."""
    if before is None:
        return ()
    if before.id == made.id:
        return ("it was set already: nothing has changed",)
    return (f"in place of {budgets.shown(before)} ({before.action})",)


def _key_place(workspace: Workspace, scope: str, environ: Mapping[str, str]) -> str:
    if environ.get(webhook.KEY_VARIABLE):
        return f"of {webhook.KEY_VARIABLE}"
    return f"{webhook.KEY} in {workspace.settings.data_dir / 'secrets' / f'{scope}.json'}"


def _scope(workspace: Workspace, service_name: str | None, *, gone: bool = False) -> tuple[str, str]:
    """(Scope, name). Raises NotFoundError for an unknown deployment, and for one that is gone unless `gone`."""
    if service_name is None:
        return EVERYTHING, ALL
    record = workspace.store.deployment(service_name)
    if record.destroyed_at is not None and not gone:
        raise NotFoundError(f"{service_name} was {record.state}", "deploy it again, with --budget")
    return record.id, record.name


def _row(workspace: Workspace, one: BudgetRecord, now: float, zone: Zone) -> BudgetRow:
    at = budgets.standing(workspace.store, one, now, zone)
    fired = workspace.store.budgets.fired(one.id, at.window.key)
    hook = webhook.kept(workspace.secrets, one.scope) if one.webhook else None
    return BudgetRow(
        at.name,
        one.per,
        one.limit_usd,
        at.spent_usd,
        at.left_usd,
        at.per_cent,
        at.window.since,
        at.window.until,
        one.warn,
        one.action,
        tuple(sorted({f.level for f in fired if not f.deployment_id})),
        tuple(dict.fromkeys(f.action for f in fired if f.done_at is not None and f.action)),
        at.unknown_hours,
        "" if not one.webhook else "not on this machine" if hook is None else webhook.masked(hook.url),
        "; ".join(dict.fromkeys(f.trouble for f in fired if f.trouble and f.done_at is None)),
    )
