"""A SkyServe service as plain data, for SkyPilot to validate: what each replica runs, where it may run, how many.

No secret is in it. The replica's key and the Hugging Face token are given as SkyPilot's secrets when the task is
made; `${VLLM_API_KEY}` in the probe's header is filled in by SkyPilot then.

The engine runs in vLLM's own image, or, for a command of the user's without an image, on the machine itself. There
are no file mounts: with any, SkyServe would replace every replica at each change of scaling.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import Engine, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.options import known, whole
from tuna_nb.errors import RequestError, did_you_mean

CLOUDS: Final = ("aws", "gcp", "azure")
KEY: Final = "VLLM_API_KEY"
"""The environment variable from which vLLM takes its key, which so is in no command line."""
HF_TOKEN: Final = "HF_TOKEN"  # noqa: S105 - a variable's name
NOTICE_PORT: Final = 8002
DEPLOYMENT_LABEL: Final = "tuna-deployment"
STREAM_S: Final = 600
"""So long SkyServe's balancer lets an answer take; its own default of 120 s cuts long generations."""
_PROBE_EVERY_S: Final = 10
_PROBE_S: Final = 30
_UNHEALTHY_S: Final = 300
"""A saturated engine answers the probe late, too: only one that fails for so long is replaced."""

OPTIONS: Final[Mapping[str, str]] = {
    "cloud": "aws, gcp or azure, as --spots-cloud says (default aws)",
    "disk_gb": "disk of a replica in GB, for image and weights (default 200)",
    "ondemand_fallback": "on: an on-demand GPU stands in while no spot one is ready (default off: serverless does)",
    "overprovision": "spot replicas more than are needed, against preemptions (default 0)",
    "probe": "generation: ready means that it generates; health: that its health path answers (default generation)",
    "start_s": "seconds that a replica may take to be ready, image and weights included (default 1800)",
}

_PLACE: Final = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)?")
_SIDECAR_END: Final = "TUNA_SIDECAR_END"


def checked(request: ServiceRequest) -> SpotScaling:
    """What can never work is said before anything exists. Raises RequestError."""
    options, scaling = request.options, request.scaling
    known("skyserve", options, OPTIONS)
    if isinstance(scaling, ServerlessScaling):
        raise RequestError("skyserve has only spot GPUs", "choose another --serverless-provider")
    cloud_of(options)
    for name, words in (
        ("ondemand_fallback", ("off", "on")),
        ("probe", ("generation", "health")),
    ):
        if (word := options.get(name, words[0])) not in words:
            raise RequestError(f"option {name}: {word!r} is unknown", did_you_mean(word, words))
    whole(options, "disk_gb", 200, least=30, most=16000)
    whole(options, "overprovision", 0, least=0, most=20)
    whole(options, "start_s", engines.START_S, least=60, most=24 * 3600)
    places(request.region)
    engines.command(request.engine)
    return scaling


def cloud_of(options: Mapping[str, str]) -> str:
    """Raises RequestError for a cloud in which SkyServe rents nothing for us."""
    cloud = options.get("cloud", CLOUDS[0]).lower()
    if cloud not in CLOUDS:
        raise RequestError(f"option cloud: {cloud!r} is unknown", did_you_mean(cloud, CLOUDS))
    return cloud


def places(region: str | None) -> tuple[str, ...]:
    """`us-east-1,us-east-2/us-east-2b` as its parts: regions, or zones in them. Raises RequestError."""
    parts = tuple(dict.fromkeys(part.strip() for part in (region or "").split(",") if part.strip()))
    for part in parts:
        if not _PLACE.fullmatch(part):
            raise RequestError(
                f"--region {part!r} is no region", "for example us-east-1, or us-east-1,us-east-2/us-east-2b"
            )
    return parts


def secret_names(engine: Engine) -> tuple[str, ...]:
    """Of the secrets that its task needs."""
    return (KEY, HF_TOKEN) if engine.gated else (KEY,)


def config(request: ServiceRequest, accelerator: str, *, placed: bool = False) -> dict[str, Any]:
    """As in a SkyPilot YAML. accelerator: SkyPilot's name of the GPU. placed: by its spot placer. Raises
    RequestError."""
    scaling = checked(request)
    cloud = cloud_of(request.options)
    return {
        "name": request.name,
        "service": service(request, scaling, placed=placed),
        "resources": _resources(request, cloud, accelerator),
        "envs": engines.environment(request.engine),
        "run": _run(request.engine, cloud),
    }


def service(request: ServiceRequest, scaling: SpotScaling, *, placed: bool) -> dict[str, Any]:
    """The `service:` section."""
    options = request.options
    policy = replica_policy(scaling)
    if spare := whole(options, "overprovision", 0, least=0, most=20):
        policy["num_overprovision"] = spare
    if options.get("ondemand_fallback") == "on":
        policy["dynamic_ondemand_fallback"] = True
    if placed:
        policy["spot_placer"] = "dynamic_fallback"
    return {
        "ports": engines.PORT,
        "readiness_probe": _probe(request),
        "replica_policy": policy,
        "load_balancing_policy": "least_load",
        "load_balancer": {"stream_timeout_seconds": STREAM_S},
    }


def replica_policy(scaling: SpotScaling) -> dict[str, Any]:
    """How many there are. SkyServe decides every 20 s: shorter delays mean its next decision."""
    return {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "target_qps_per_replica": float(scaling.target_qps),
        "upscale_delay_seconds": scaling.upscale_delay,
        "downscale_delay_seconds": scaling.downscale_delay,
    }


def rescaled(running: Mapping[str, Any], scaling: SpotScaling) -> dict[str, Any]:
    """A running service's task with another scaling and nothing else changed, so that its replicas stay."""
    section = dict(running["service"])
    kept = section.get("replica_policy") or {}
    section.pop("replicas", None)
    section["replica_policy"] = {**kept, **replica_policy(scaling)}
    return {**running, "service": section}


def _probe(request: ServiceRequest) -> dict[str, Any]:
    probe: dict[str, Any] = {
        "path": request.engine.health_path,
        "initial_delay_seconds": whole(request.options, "start_s", engines.START_S, least=60, most=24 * 3600),
        "timeout_seconds": _PROBE_S,
        "endpoint_probe_interval_seconds": _PROBE_EVERY_S,
        "consecutive_failure_threshold_timeout": _UNHEALTHY_S,
        "headers": {"Authorization": f"Bearer ${{{KEY}}}"},
    }
    if request.options.get("probe", "generation") == "generation":
        probe["path"] = "/v1/completions"
        probe["post_data"] = {"model": request.engine.model, "prompt": "hi", "max_tokens": 1}
    return probe


def _resources(request: ServiceRequest, cloud: str, accelerator: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "accelerators": {accelerator: request.gpu_count},
        "use_spot": True,
        "disk_size": whole(request.options, "disk_gb", 200, least=30, most=16000),
        "ports": [engines.PORT, NOTICE_PORT],
        "labels": {DEPLOYMENT_LABEL: request.deployment_id},
    }
    if (image := _image(request.engine)) is not None:
        made["image_id"] = f"docker:{image}"
    where = places(request.region)
    if len(where) > 1:
        made["any_of"] = [{"infra": f"{cloud}/{place}"} for place in where]
    else:
        made["infra"] = "/".join((cloud, *where))
    return made


def _image(engine: Engine) -> str | None:
    """None: the user's command runs on the machine itself."""
    return engine.image if engine.command is not None else engines.image(engine)


def _run(engine: Engine, cloud: str) -> str:
    """The replica's shell script: the sidecar in the background, then the engine in the shell's place.

    The sidecar's output goes nowhere: SkyPilot would take a job whose output is still open for one that runs.
    """
    sidecar = Path(__file__).with_name("sidecar.py").read_text()
    watch = f"python3 ~/.tuna-sidecar.py --cloud {cloud} --host 0.0.0.0 --port {NOTICE_PORT}"
    return "\n".join(
        (
            f"cat > ~/.tuna-sidecar.py <<'{_SIDECAR_END}'",
            sidecar.rstrip(),
            _SIDECAR_END,
            f"{watch} </dev/null >/dev/null 2>&1 &",
            f"exec {shlex.join(engines.command(engine))}",
            "",
        )
    )
