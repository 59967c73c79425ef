"""`scale` and `wake`: a running deployment, changed in place."""

from __future__ import annotations

from argparse import Namespace

from tuna_nb.commands.context import Context
from tuna_nb.commands.deploy import read_policy
from tuna_nb.deployments import scale as deployed
from tuna_nb.deployments import scaling
from tuna_nb.deployments.keeping.allowance import before_scale
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.status import DeploymentStatus, status
from tuna_nb.errors import UsageError

FIELDS = (
    "concurrency",
    "scaledown_window",
    "workers_min",
    "workers_max",
    "min_replicas",
    "max_replicas",
    "target_qps",
)


async def scale(options: Namespace, context: Context) -> DeploymentStatus:
    """What is not named stays as it is."""
    workspace = context.workspace
    record = workspace.store.deployment(options.service_name)
    policy = read_policy(options.scaling_policy, context.cell)
    flags = {name: getattr(options, name) for name in FIELDS}
    if not policy and all(value is None for value in flags.values()):
        raise UsageError("scale: nothing to change", "for example --workers-max 3, or a policy in the cell")
    request = DeployRequest.from_json(record.request)
    serverless, spot = scaling.merge(policy, serverless=request.serverless, spot=request.spot, flags=flags)
    before_scale(workspace, record, serverless, spot)
    await deployed.scale(workspace, record, serverless, spot)
    return await status(workspace, workspace.store.deployment(options.service_name))


async def wake(options: Namespace, context: Context) -> DeploymentStatus:
    """Returns at once; the status shows what starts."""
    workspace = context.workspace
    record = workspace.store.deployment(options.service_name)
    await deployed.wake(workspace, record, options.role)
    return await status(workspace, record)
