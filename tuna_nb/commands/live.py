"""`status --live` and `cost --live`: the board of one deployment, and what it asks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from tuna_nb.commands.cost import bill_of, bill_of_all
from tuna_nb.costs.bill import Bill
from tuna_nb.deployments.board import Board
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.status import DeploymentStatus
from tuna_nb.deployments.status import status as status_of
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import NotFoundError
from tuna_nb.records import DeploymentRecord
from tuna_nb.settings import Settings

COMPARED_EVERY_S: Final = 300.0


def board_of(settings: Settings, name: str, *, money_first: bool = False) -> Board:
    """A board with a workspace of its own, which outlives the command and is closed with the board.

    Raises NotFoundError for a deployment that is not there any more.
    """
    workspace = Workspace(settings)
    try:
        record = workspace.store.deployment(name)
        if record.destroyed_at is not None:
            raise NotFoundError(
                f"{name} is destroyed: there is nothing to watch",
                f"`tuna cost --service-name {name}` shows what it cost",
            )
        has_router = any(r.role == ROUTER for r in workspace.store.resources(record.id))
    except BaseException:
        workspace.close()
        raise

    def fresh() -> DeploymentRecord:
        # By its id: a new deployment of this name is another one.
        return next(r for r in workspace.store.deployments() if r.id == record.id)

    async def router() -> RouterClient | None:
        # Asked anew each time: a router that is restarted or moved answers at another address.
        found = next((r for r in workspace.store.resources(record.id) if r.role == ROUTER), None)
        url = None if found is None else await workspace.router_host(found.provider).url(record.id)
        return None if url is None else RouterClient(url, workspace.secrets.get(record.id, "admin_key"), 5)

    whole: tuple[float, Bill] | None = None

    async def bill() -> Bill:
        # Another policy's cost for all the traffic that there was is seconds of work: not with every look.
        nonlocal whole
        record, now = fresh(), time.monotonic()
        if whole is None or now - whole[0] > COMPARED_EVERY_S:
            whole = (now, await bill_of(workspace, record))
            return whole[1]
        made, last = await bill_of_all(workspace, [record], name, compared=False), whole[1]
        return replace(made, versus=last.versus, versus_since=last.versus_since, versus_usd=last.versus_usd)

    async def status() -> DeploymentStatus:
        return await status_of(workspace, fresh())

    return Board(
        name,
        router=router,
        bill=bill,
        status=status,
        has_router=has_router,
        money_first=money_first,
        close=workspace.close,
    )
