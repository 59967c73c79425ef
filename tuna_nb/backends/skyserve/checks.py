"""What SkyServe needs, each thing as a row."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Final

from tuna_nb.backends.base import Check, ServiceRequest
from tuna_nb.backends.skyserve import accounts, prices, quota
from tuna_nb.backends.skyserve.client import Client, installed
from tuna_nb.backends.skyserve.said import INSTALL, SERVER, SIGN_IN
from tuna_nb.backends.skyserve.task import CLOUDS, cloud_of, places
from tuna_nb.errors import BackendError, RequestError
from tuna_nb.secrets import hugging_face_token

Found = Callable[[str, str | None], Awaitable[list[prices.Quote]]]

_TOOLS: Final = {"ssh": "apt-get install openssh-client", "rsync": "apt-get install rsync"}
_CLOUD_TOOLS: Final = {
    "aws": ("aws", "pip install 'skypilot[aws]' brings it; put that environment's bin folder on PATH"),
    "gcp": ("gcloud", "https://cloud.google.com/sdk/docs/install"),
    "azure": ("az", "pip install azure-cli"),
}
_CHECK_S: Final = 50.0
_OWN_SERVER: Final = (
    "python -m venv sky && sky/bin/pip install 'skypilot[azure]' && sky/bin/sky api start --deploy, then here: "
    f"export {SERVER}=http://127.0.0.1:46580"
)


async def rows(sky: Client, found: Found, request: ServiceRequest | None) -> list[Check]:
    """found: the catalog's quotes by cloud and GPU."""
    if not installed():
        return [Check("package", False, "SkyPilot is not installed", INSTALL)]
    cloud = cloud_of(request.options) if request is not None else (accounts.clouds_here() or CLOUDS)[0]
    listed = [Check("package", True, f"SkyPilot {metadata.version('skypilot')}")]
    if cloud == "azure":
        listed += _azure()
    remote = accounts.server()
    if remote is None:
        listed += _tools(cloud)
        if cloud not in accounts.signed_in():
            listed.append(Check("credentials", False, f"no credentials of {cloud} are here", SIGN_IN[cloud]))
            return listed
    listed.append(await _enabled(sky, cloud))
    if request is None or not listed[-1].passed:
        return listed
    listed.append(await _gpu(found, cloud, request))
    listed.append(await _quota(cloud, request, remote))
    if request.engine.gated:
        listed.append(_token(request))
    return listed


def _azure() -> list[Check]:
    """SkyPilot's Azure part pins an SDK that Container Apps has outgrown: the two can't share an environment."""
    try:
        beside = metadata.version("azure-mgmt-appcontainers")
    except metadata.PackageNotFoundError:
        return []
    if accounts.server() is not None or int(beside.partition(".")[0]) < 4:
        return []
    message = f"skypilot[azure] can't be installed beside azure-mgmt-appcontainers {beside}, which is here"
    return [Check("azure package", False, message, _OWN_SERVER)]


def _tools(cloud: str) -> list[Check]:
    listed = [_tool(name, fix) for name, fix in _TOOLS.items()]
    return [*listed, _tool(*_CLOUD_TOOLS[cloud])]


def _tool(name: str, fix: str) -> Check:
    if (path := shutil.which(name)) is not None:
        return Check(name, True, path)
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return Check(name, False, f"{beside} is not on PATH", f'export PATH="{beside.parent}:$PATH"; sky api stop')
    return Check(name, False, f"{name} is not on PATH; SkyPilot needs it", fix)


async def _enabled(sky: Client, cloud: str) -> Check:
    """SkyPilot's own check of the cloud, at its API server: the server's credentials count."""
    try:
        told = await sky.ask(
            f"the check of {cloud}",
            lambda sdk: sdk.client.sdk.check(infra_list=(cloud,), verbose=False),
            within_s=_CHECK_S,
        )
    except BackendError as exc:
        return Check("cloud", False, exc.message, exc.hint or SIGN_IN[cloud])
    enabled = {str(name).lower(): list(able) for one in (told or {}).values() for name, able in one.items()}
    if "compute" in [str(able).lower() for able in enabled.get(cloud, [])]:
        return Check("cloud", True, f"SkyPilot can rent machines at {cloud}")
    return Check(
        "cloud", False, f"SkyPilot's own check of {cloud} fails: sky check {cloud} says why", SIGN_IN[cloud]
    )


async def _gpu(found: Found, cloud: str, request: ServiceRequest) -> Check:
    try:
        if request.gpu not in prices.ACCELERATORS:
            raise RequestError(f"SkyPilot knows no {request.gpu}", "tuna check --gpu L4")
        listed = await found(cloud, request.gpu) or await found(cloud, None)
        price = prices.replica(listed, request.gpu, request.gpu_count, places(request.region), on_demand=False)
    except RequestError as exc:
        return Check("gpu", False, exc.message, exc.hint)
    except BackendError as exc:
        return Check("gpu", False, exc.message, exc.hint or "try again; is the network up?")
    if price.cheapest is None:
        fix = "try another --region, --gpu or --spots-cloud"
        return Check("gpu", False, f"no spot price of {request.gpu} is known at {cloud}", fix)
    return Check("gpu", True, f"{request.gpu} from ${price.cheapest:.3f} an hour in {price.region}")


async def _quota(cloud: str, request: ServiceRequest, remote: str | None) -> Check:
    if cloud != "aws" or remote is not None:
        where = f"at {cloud}" if remote is None else "of the API server's account"
        return Check("quota", True, f"not asked: look at {quota.WHERE[cloud]} {where} for {request.gpu}")
    first = places(request.region)[:1]
    region = first[0].partition("/")[0] if first else os.environ.get("AWS_REGION") or "us-east-1"
    return await asyncio.to_thread(quota.aws, request.gpu, region)


def _token(request: ServiceRequest) -> Check:
    if hugging_face_token() is None:
        return Check("model", False, f"{request.engine.model} is gated", "export HF_TOKEN=<your token>")
    return Check("model", True, f"{request.engine.model} is gated: your token goes there as SkyPilot's secret")
