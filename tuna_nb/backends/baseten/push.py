"""What Baseten is to run, as a Truss config: checked here, written as `config.yaml`, and truss's own to push.

Source: https://docs.baseten.co/reference/truss-configuration.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import ServerlessScaling, ServiceRequest
from tuna_nb.backends.options import known, whole
from tuna_nb.catalog.gpus import SPELLINGS
from tuna_nb.errors import RequestError, did_you_mean

ENVIRONMENT: Final = "production"
SECRET_OPTION: Final = "hf_secret"  # noqa: S105 - an option's name
_SECRET: Final = "hf_access_token"  # noqa: S105 - Baseten's own name for it
_PREDICT_S: Final = 600
DEPLOY_TIMEOUT_MINUTES: Final = 2 * engines.START_S // 60

ACCELERATORS: Final[Mapping[str, str]] = SPELLINGS["baseten"]
"""Our GPU to truss's accelerator; `H100_40GB` is a slice of an H100."""

_OURS: Final = {theirs: ours for ours, theirs in ACCELERATORS.items()}

OPTIONS: Final[Mapping[str, str]] = {
    "cpu": "vCPUs of an instance at least (default: the smallest with that GPU)",
    "memory_gib": "memory of an instance in GiB at least (default: the smallest with that GPU)",
    "autoscaling_window": "seconds of traffic that scaling looks at, 10 to 3600 (default 60)",
    "target_utilization": "per cent of the concurrency at which a replica is added, 1 to 100 (default 70)",
    "team": "team of the workspace that gets the model (default: the only one of your key)",
    SECRET_OPTION: f"Baseten secret with your Hugging Face token, for a gated model (default {_SECRET})",
}


def secret_name(request: ServiceRequest) -> str:
    return request.options.get(SECRET_OPTION, _SECRET)


def checked(request: ServiceRequest) -> ServerlessScaling:
    """What can never work is said before anything exists. Raises RequestError."""
    options = request.options
    known("baseten", options, OPTIONS)
    if request.gpu not in ACCELERATORS:
        raise RequestError(f"baseten has no {request.gpu}", did_you_mean(request.gpu, ACCELERATORS))
    if not 1 <= request.gpu_count <= 8:
        raise RequestError(f"baseten: {request.gpu_count} GPUs in an instance", "Baseten has 1 to 8")
    if not isinstance(request.scaling, ServerlessScaling):
        raise RequestError("baseten: only serverless GPUs", "choose another --spots-cloud")
    if not secret_name(request).replace("_", "a").replace("-", "a").isalnum():
        raise RequestError(
            f"baseten: option {SECRET_OPTION} is {secret_name(request)!r}", "letters, digits, _ and -"
        )
    for name, most in (("cpu", 256), ("memory_gib", 4096)):
        whole(options, name, 1, least=1, most=most)
    settings(request.scaling, options)
    if "%" in start_command(request):
        raise RequestError("baseten: a % in the engine command", "Baseten's supervisor would read it as its own")
    return request.scaling


def settings(scaling: ServerlessScaling, options: Mapping[str, str] | None = None) -> dict[str, int]:
    """Baseten's autoscaling settings. options: None where they stay as they are. Raises RequestError."""
    if not 0 <= scaling.scaledown_window <= 3600:
        raise RequestError(
            f"baseten: serverless.scaledown_window is {scaling.scaledown_window:g}",
            "Baseten takes 0 to 3600 seconds",
        )
    if scaling.workers_max < 1 or not 0 <= scaling.workers_min <= scaling.workers_max:
        raise RequestError(
            f"baseten: replicas {scaling.workers_min} to {scaling.workers_max}", "at least 1 for the most"
        )
    if scaling.concurrency < 1:
        raise RequestError(f"baseten: serverless.concurrency is {scaling.concurrency}", "at least 1")
    told = {
        "min_replica": scaling.workers_min,
        "max_replica": scaling.workers_max,
        "concurrency_target": scaling.concurrency,
        "scale_down_delay": round(scaling.scaledown_window),
    }
    if options is not None:
        told["autoscaling_window"] = whole(options, "autoscaling_window", 60, least=10, most=3600)
        told["target_utilization_percentage"] = whole(options, "target_utilization", 70, least=1, most=100)
    return told


def start_command(request: ServiceRequest) -> str:
    """One line for Baseten's supervisor. A token is read from the file that Baseten mounts, in the container."""
    words = shlex.join(engines.command(request.engine))
    if not request.engine.gated:
        return words
    return shlex.join(["sh", "-c", f'export HF_TOKEN="$(cat /secrets/{secret_name(request)})"; exec {words}'])


def config(request: ServiceRequest) -> dict[str, Any]:
    """The Truss config, as `config.yaml` would have it. Secrets are named, never valued."""
    scaling, engine = checked(request), request.engine
    accelerator = ACCELERATORS[request.gpu]
    resources: dict[str, Any] = {
        "accelerator": accelerator if request.gpu_count == 1 else f"{accelerator}:{request.gpu_count}"
    }
    if "cpu" in request.options:
        resources["cpu"] = request.options["cpu"]
    if "memory_gib" in request.options:
        resources["memory"] = f"{request.options['memory_gib']}Gi"
    return {
        "model_name": request.name,
        "base_image": {"image": engines.image(engine)},
        "docker_server": {
            "start_command": start_command(request),
            "server_port": engines.PORT,
            "predict_endpoint": "/v1/chat/completions",
            "readiness_endpoint": engine.health_path,
            "liveness_endpoint": engine.health_path,
        },
        "resources": resources,
        # A stream waits for its first token in vLLM's queue; truss's own patience is a minute.
        "runtime": {"predict_concurrency": scaling.concurrency, "streaming_read_timeout": _PREDICT_S},
        "environment_variables": engines.environment(engine),
        "secrets": {secret_name(request): None} if engine.gated else {},
    }


def ours(accelerator: object) -> str | None:
    """Our name of truss's accelerator; None for one that is not known, and for none."""
    return _OURS.get(str(accelerator).upper())
