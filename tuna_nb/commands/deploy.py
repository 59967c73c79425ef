"""`deploy`: from flags and policy to a running deployment."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from tuna_nb.commands.budget import keep_webhook, quiet_rule, wanted
from tuna_nb.commands.context import Context
from tuna_nb.deployments import scaling
from tuna_nb.deployments.apply import apply
from tuna_nb.deployments.keeping.allowance import before_deploy
from tuna_nb.deployments.keeping.webhook import read_url
from tuna_nb.deployments.plan import DeploymentPlan, new_id, plan, require_set_up
from tuna_nb.deployments.request import DeployRequest, new_name
from tuna_nb.deployments.router_hosts.base import VM
from tuna_nb.deployments.status import DeploymentStatus, status
from tuna_nb.deployments.tracking import tracked
from tuna_nb.errors import ConflictError, RequestError, UsageError
from tuna_nb.jobs import Report, Work

PROVIDER_FLAGS = (
    "gcp_project",
    "gcp_region",
    "azure_subscription",
    "azure_resource_group",
    "azure_region",
    "azure_environment",
)


async def deploy(options: Namespace, context: Context) -> Work | DeploymentPlan:
    """Everything that can be wrong with the request is said here, before a job exists.

    The same request again re-attaches: to the job under way, or to what an interrupted one had made.
    """
    workspace = context.workspace
    request = read_request(options, context.cell)
    live = None if options.dry_run else workspace.store.live_deployment(request.service_name)
    if live is not None:
        # What was chosen then is meant again, whatever is cheapest today.
        before = DeployRequest.from_json(live.request)
        request = replace(
            request,
            serverless_provider=request.serverless_provider or before.serverless_provider,
            spots_cloud=request.spots_cloud or (None if request.serverless_only else before.spots_cloud),
            router_host=request.router_host or (None if request.serverless_only else before.router_host),
        )
    budget, webhook_url = wanted(options), options.budget_webhook
    planned = await plan(workspace, request, live.id if live else new_id())
    notes = before_deploy(workspace, request.service_name, live, budget, planned.worst_case_usd_per_hour)
    planned = replace(
        planned,
        budget=None if budget is None else budget.record(planned.deployment_id, time.time()),
        quiet=quiet_rule(options, planned.deployment_id),
        budget_notes=notes,
    )
    if options.dry_run:
        return planned
    await require_set_up(workspace, planned)
    if live is not None and not _same(DeployRequest.from_json(live.request), planned.request):
        raise ConflictError(
            f"{live.name} exists with another model, GPU or setting ({live.state})",
            f"choose another --service-name, or `tuna destroy --service-name {live.name}` first",
        )
    name = request.service_name
    if webhook_url is not None:
        read_url(webhook_url, os.environ)

    async def build(report: Report) -> DeploymentStatus:
        if webhook_url is not None:
            for note in keep_webhook(workspace, planned.deployment_id, webhook_url, os.environ):
                report.note(note)
        for note in notes:
            report.note(note)
        worst = planned.worst_case_usd_per_hour
        report.fact("worst case", "unknown" if worst is None else f"${worst:.2f} per hour")
        record = await apply(workspace, planned, report, until_spot=context.until_spot or options.wait)
        return await status(workspace, record)

    return Work(name, "deploy", lambda report: tracked(workspace, name, "deploy", report, build))


def read_request(options: Namespace, cell: str | None) -> DeployRequest:
    """Options and policy to a request: defaults, then file or cell, then flags. Raises UsageError."""
    serverless, spot = scaling.merge(
        read_policy(options.scaling_policy, cell),
        flags={"concurrency": options.concurrency, "workers_max": options.workers_max},
        no_scale_to_zero=options.no_scale_to_zero,
    )
    if options.serverless_only and (options.spots_cloud or options.region):
        raise RequestError("--serverless-only has no spot side", "leave out --spots-cloud and --region")
    return DeployRequest(
        service_name=options.service_name or new_name(),
        model=options.model,
        gpu=options.gpu,
        gpu_count=options.gpu_count,
        serverless_provider=options.serverless_provider,
        spots_cloud=options.spots_cloud,
        region=options.region,
        tp_size=options.tp_size,
        max_model_len=options.max_model_len,
        cold_start_mode=options.cold_start_mode,
        serverless=serverless,
        spot=spot,
        serverless_only=options.serverless_only,
        public=options.public,
        router_host=_router_host(options),
        port=options.port,
        engine_cmd=options.engine_cmd,
        image=options.image,
        engine_args=options.engine_args,
        health_path=options.health_path,
        quantization=options.quantization,
        options=provider_settings(options),
    )


def _router_host(options: Namespace) -> str | None:
    """The one place that the flags name; None where they name none."""
    named = {
        "--use-different-vm-for-lb": VM if options.use_different_vm_for_lb else None,
        "--router-host": options.router_host,
        "--router-url": options.router_url,
    }
    given = {flag: host for flag, host in named.items() if host is not None}
    if len(set(given.values())) > 1:
        raise RequestError(f"{' and '.join(given)} name two places for the router", "leave out one of the two")
    host = next(iter(given.values()), None)
    if options.router_url is not None and not options.router_url.startswith(("http://", "https://")):
        raise RequestError(
            f"--router-url {options.router_url} is no URL", "for example https://router.example:8080"
        )
    return host


def read_policy(path: str | None, cell: str | None) -> dict[str, dict[str, float | int]]:
    """The scaling policy of a file or a cell; empty without one. Raises UsageError."""
    if path and cell is not None:
        raise UsageError("the policy is given twice, in the cell and by --scaling-policy", "keep one of them")
    if path:
        return scaling.parse(_read(path), path)
    return {} if cell is None else scaling.parse(cell, "cell", first_line=2)


def provider_settings(options: Namespace) -> dict[str, str]:
    """The providers' own settings that the flags and `--option KEY=VALUE` give. Raises UsageError."""
    settings = {flag: getattr(options, flag) for flag in PROVIDER_FLAGS if getattr(options, flag) is not None}
    for pair in options.option:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {pair!r} has no value", "write --option KEY=VALUE")
        settings[key.replace("-", "_")] = value
    return settings


def _same(recorded: DeployRequest, asked: DeployRequest) -> bool:
    from tuna_nb.store import jsonable

    return bool(jsonable(recorded.to_json()) == jsonable(asked.to_json()))


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise UsageError(f"can't read the scaling policy {path}: {why}", "give the path of a YAML file") from e
