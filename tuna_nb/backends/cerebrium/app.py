"""What a request is at Cerebrium: the app that is asked for, and the zip that it is built from."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.options import known, whole
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Offer, Shape
from tuna_nb.errors import RequestError, did_you_mean

INIT_S: Final = 830
"""The most that Cerebrium gives a first container to answer its health check."""
OPTIONS: Final[Mapping[str, str]] = {
    "cpu": "CPU cores of a container (default: by the GPU)",
    "memory_gb": "memory of a container in GB (default: by the GPU)",
    "init_timeout": f"seconds that a first container has to get ready, 60 to {INIT_S} (default {INIT_S})",
}


class Hardware(NamedTuple):
    """compute: Cerebrium's id. cpu in cores and memory_gb: what we ask for beside each GPU; most_cpu,
    most_memory_gb: what a container may have."""

    compute: str
    cpu: int
    memory_gb: int
    most_cpu: int
    most_memory_gb: int


HARDWARE: Final[Mapping[str, Hardware]] = {
    "T4": Hardware("TURING_T4", 4, 16, 48, 192),
    "L4": Hardware("ADA_L4", 4, 24, 48, 192),
    "A10": Hardware("AMPERE_A10", 4, 24, 48, 192),
    "A10G": Hardware("AMPERE_A10", 4, 24, 48, 192),
    "L40S": Hardware("ADA_L40", 8, 48, 16, 128),
    "A100_40GB": Hardware("AMPERE_A100_40GB", 8, 48, 12, 140),
    "A100_80GB": Hardware("AMPERE_A100_80GB", 8, 96, 12, 140),
    "H100": Hardware("HOPPER_H100", 8, 96, 24, 256),
    "H200": Hardware("HOPPER_H200", 12, 160, 24, 256),
    "B200": Hardware("BLACKWELL_B200", 12, 200, 24, 256),
}
REGION: Final = "us-east-1"
_MOST_GPUS: Final = 8


def checked(request: ServiceRequest) -> ServerlessScaling:
    """What can never work is said before anything exists. Raises RequestError."""
    known("cerebrium", request.options, OPTIONS)
    if request.gpu not in HARDWARE:
        raise RequestError(f"cerebrium has no {request.gpu}", did_you_mean(request.gpu, HARDWARE))
    if not 1 <= request.gpu_count <= _MOST_GPUS:
        raise RequestError(f"cerebrium: {request.gpu_count} GPUs in a container", f"it may have 1 to {_MOST_GPUS}")
    size(request)
    _init_s(request)
    engines.command(request.engine)
    return serverless(request.scaling)


def serverless(scaling: ServerlessScaling | SpotScaling) -> ServerlessScaling:
    """Raises RequestError for what Cerebrium's API refuses."""
    if not isinstance(scaling, ServerlessScaling):
        raise RequestError("cerebrium: only serverless GPUs", "choose another --spots-cloud")
    for setting, seconds in (("scaledown_window", scaling.scaledown_window), ("timeout", scaling.timeout)):
        if not 1 <= seconds <= 3600:
            raise RequestError(f"cerebrium: serverless.{setting} is {seconds:g}", "it takes 1 to 3600 seconds")
    return scaling


def size(request: ServiceRequest) -> tuple[int, int]:
    """CPU cores and memory in GB of one container."""
    hardware, count = HARDWARE[request.gpu], request.gpu_count
    cpu = min(hardware.cpu * count, hardware.most_cpu)
    memory_gb = min(hardware.memory_gb * count, hardware.most_memory_gb)
    return (
        whole(request.options, "cpu", cpu, least=1, most=hardware.most_cpu),
        whole(request.options, "memory_gb", memory_gb, least=2, most=hardware.most_memory_gb),
    )


def offer(request: ServiceRequest) -> Offer | None:
    """What its GPU was last sold at; None where no price is known."""
    return snapshot.rates("cerebrium").get(request.gpu)


def price_per_hour(request: ServiceRequest) -> float | None:
    """USD of one container, with its cores and memory; None where the GPU's price is not known."""
    sold, (cpu, memory_gb) = offer(request), size(request)
    return None if sold is None else sold.sum(Shape(request.gpu_count, cpu, memory_gb))[0]


def region(request: ServiceRequest) -> str:
    return request.region or REGION


def scaled(scaling: ServerlessScaling) -> dict[str, int]:
    """As the API names it, for a new app and for a running one."""
    return {
        "minReplicaCount": scaling.workers_min,
        "maxReplicaCount": scaling.workers_max,
        "cooldownPeriodSeconds": math.ceil(scaling.scaledown_window),
        "responseGracePeriodSeconds": math.ceil(scaling.timeout),
        "replicaConcurrency": scaling.concurrency,
    }


def body(request: ServiceRequest) -> dict[str, Any]:
    """The body of `POST /v2/projects/{project}/apps`. No secret is in it. Raises RequestError."""
    scaling, (cpu, memory_gb) = checked(request), size(request)
    return {
        "name": request.name,
        "runtime": "custom",
        "entrypoint": engines.command(request.engine),
        "port": engines.PORT,
        "healthcheckEndpoint": request.engine.health_path,
        "readycheckEndpoint": request.engine.health_path,
        "dockerfilePath": "./Dockerfile",
        "provider": "aws",
        "region": region(request),
        "compute": [HARDWARE[request.gpu].compute],
        "gpuCount": request.gpu_count,
        "cpu": cpu,
        "memory": memory_gb,
        **scaled(scaling),
        "disableAuth": request.public,
        "deploymentInitializationTimeout": _init_s(request),
        "include": ["./*"],
        "exclude": [".*"],
        "cerebrium_toml": toml(request),
    }


def toml(request: ServiceRequest) -> str:
    """`cerebrium.toml`: the same settings in the words of Cerebrium's file, which its server reads too."""
    scaling, (cpu, memory_gb) = checked(request), size(request)
    rooms: dict[str, dict[str, object]] = {
        "deployment": {
            "name": request.name,
            "include": ["./*"],
            "exclude": [".*"],
            "disable_auth": request.public,
            "deployment_initialization_timeout": _init_s(request),
        },
        "hardware": {
            "provider": "aws",
            "region": region(request),
            "compute": HARDWARE[request.gpu].compute,
            "gpu_count": request.gpu_count,
            "cpu": float(cpu),
            "memory": float(memory_gb),
        },
        "scaling": {
            "min_replicas": scaling.workers_min,
            "max_replicas": scaling.workers_max,
            "cooldown": math.ceil(scaling.scaledown_window),
            "response_grace_period": math.ceil(scaling.timeout),
            "replica_concurrency": scaling.concurrency,
        },
        "runtime.custom": {
            "entrypoint": engines.command(request.engine),
            "port": engines.PORT,
            "healthcheck_endpoint": request.engine.health_path,
            "readycheck_endpoint": request.engine.health_path,
            "dockerfile_path": "./Dockerfile",
        },
    }
    # What JSON writes of texts, numbers and lists of texts is TOML as well.
    return "\n".join(
        "\n".join((f"[cerebrium.{name}]", *(f"{key} = {_json(value)}" for key, value in settings.items()), ""))
        for name, settings in rooms.items()
    )


def bundle(request: ServiceRequest) -> bytes:
    """The zip to build from: the settings, and a Dockerfile that is the engine's image with our command."""
    lines = [f"FROM {engines.image(request.engine)}", f"EXPOSE {engines.PORT}"]
    lines += [f"ENV {name}={_json(value)}" for name, value in engines.environment(request.engine).items()]
    # The image has an entrypoint of its own, which would come before the command.
    lines += ["ENTRYPOINT []", f"CMD {_json(engines.command(request.engine))}", ""]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("cerebrium.toml", toml(request))
        packed.writestr("Dockerfile", "\n".join(lines))
    return data.getvalue()


def _init_s(request: ServiceRequest) -> int:
    return whole(request.options, "init_timeout", INIT_S, least=60, most=INIT_S)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
