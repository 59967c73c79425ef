"""What a deployment needs of a Google Cloud project, as far as the project can be asked."""

from __future__ import annotations

from tuna_nb.backends.base import Check, ServiceRequest
from tuna_nb.backends.cloudrun import service as services
from tuna_nb.backends.cloudrun.calls import Calls
from tuna_nb.errors import BackendError, NotFoundError


async def quota(calls: Calls, project: str, region: str, request: ServiceRequest) -> Check:
    number = services.CARDS[request.gpu].quota
    zero = "a new project's quota for it is 0"
    if number is None:
        return Check("quota", True, f"{zero}; whether this project has some can't be asked for {request.gpu}")
    path = f"/v1/projects/{project}/locations/global/services/run.googleapis.com/quotaInfos/{number}"
    try:
        told = await calls.rest("cloudquotas", "GET", path, f"quota {number}")
    except (BackendError, NotFoundError) as exc:
        return Check("quota", True, f"{zero}; this project's can't be read ({exc.message})")
    for part in told.get("dimensionsInfos") or ():
        if region in (part.get("applicableLocations") or ()) or part.get("dimensions") == {"region": region}:
            value = int((part.get("details") or {}).get("value") or 0)
            fix = (
                f"gcloud beta quotas preferences create --service=run.googleapis.com --quota-id={number} "
                f"--preferred-value=1 --dimensions=region={region} --project={project}"
            )
            return Check("quota", value > 0, f"{value} {request.gpu} in {region}", None if value > 0 else fix)
    return Check("quota", True, f"{zero}; Google tells nothing of {region}")


async def secret(calls: Calls, project: str, request: ServiceRequest) -> Check:
    name = services.hf_secret(request)
    said = f"{request.engine.model} is gated: secret {name!r} is used, which the service's account must read"
    try:
        await calls.rest("secretmanager", "GET", f"/v1/projects/{project}/secrets/{name}", name)
    except NotFoundError:
        fix = f'printf %s "$HF_TOKEN" | gcloud secrets create {name} --data-file=- --project {project}'
        return Check("model", False, f"{request.engine.model} is gated, and there is no secret {name!r}", fix)
    except BackendError as exc:
        return Check("model", True, f"{said}; whether it is there can't be read ({exc.message})")
    return Check("model", True, said)
