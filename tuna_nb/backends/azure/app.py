"""The container app that runs an engine, as Azure is told it.

Azure's limits on probes (failure thresholds up to 240 for startup, 48 for readiness, 30 for liveness; periods up to
240 s) are those that its API enforces; the SDK's own description still says 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import Engine, ServerlessScaling, ServiceRequest
from tuna_nb.backends.options import known
from tuna_nb.errors import RequestError, did_you_mean

DEPLOYMENT_TAG: Final = "tuna-deployment"
PUBLIC_TAG: Final = "tuna-public"
CLEANUP_TAG: Final = "tuna-cleanup-environment"
KEY_SECRET: Final = "vllm-api-key"  # noqa: S105 - a name
TOKEN_SECRET: Final = "hf-token"  # noqa: S105 - a name
CONTAINER: Final = "engine"

_PROBE_S: Final = 10
MOST_REPLICAS: Final = 1000


@dataclass(frozen=True, slots=True)
class Profile:
    """A consumption GPU workload profile: one GPU and the whole of its vCPUs and memory to each replica."""

    kind: str
    name: str
    vcpus: int
    memory_gib: int


PROFILES: Final = {
    "T4": Profile("Consumption-GPU-NC8as-T4", "gpu-t4", 8, 56),
    "A100_80GB": Profile("Consumption-GPU-NC24-A100", "gpu-a100", 24, 220),
}
"""Source: https://learn.microsoft.com/azure/container-apps/workload-profiles-overview."""


def checked(request: ServiceRequest, options: dict[str, str]) -> ServerlessScaling:
    """What can never work is said before anything exists. Raises RequestError."""
    known("azure", request.options, options)
    if request.gpu not in PROFILES:
        raise RequestError(
            f"Azure Container Apps have no serverless {request.gpu}", did_you_mean(request.gpu, PROFILES)
        )
    if request.gpu_count != 1 or request.engine.tp_size != 1:
        raise RequestError("azure: a replica has one GPU, no more", "choose a bigger GPU or another provider")
    scaling = request.scaling
    if not isinstance(scaling, ServerlessScaling):
        raise RequestError("azure: only serverless GPUs here", "choose another --spots-cloud")
    checked_scaling(scaling)
    if request.options.get("azure_cleanup_env", "false") not in ("true", "false"):
        raise RequestError(
            f"azure: option azure_cleanup_env is {request.options['azure_cleanup_env']!r}", "it is true or false"
        )
    engines.command(request.engine)
    if not request.public and not knows_its_key(request.engine):
        raise RequestError(
            "azure: an ingress is open to the whole internet, and this engine command is not vLLM's, "
            "which would ask for the key in VLLM_API_KEY",
            "use vLLM, or allow it with --public",
        )
    return scaling


def checked_scaling(scaling: ServerlessScaling) -> None:
    """Raises RequestError."""
    if not 1 <= scaling.workers_max <= MOST_REPLICAS or not 0 <= scaling.workers_min <= scaling.workers_max:
        raise RequestError(
            f"azure: replicas {scaling.workers_min} to {scaling.workers_max}",
            f"Azure takes 0 to {MOST_REPLICAS}, and at least 1 for the most",
        )
    if scaling.concurrency < 1 or scaling.scaledown_window < 1:
        raise RequestError(
            "azure: concurrency and scaledown_window must be 1 or more", "leave them out for defaults"
        )


def knows_its_key(engine: Engine) -> bool:
    """Whether it is vLLM, which takes VLLM_API_KEY for its key."""
    begin = engines.command(engine)[:3]
    return any(word.rpartition("/")[2] == "vllm" or word.startswith("vllm.") for word in begin)


def envelope(request: ServiceRequest, environment_id: str, profile: str, key: str | None, token: str | None) -> Any:
    """The SDK's ContainerApp. key: the endpoint's; token: Hugging Face's; both travel as secrets of the app.

    profile: what the environment calls its workload profile.
    """
    from azure.mgmt.appcontainers import models

    engine = request.engine
    assert isinstance(request.scaling, ServerlessScaling)
    shape = PROFILES[request.gpu]
    secrets = [(KEY_SECRET, "VLLM_API_KEY", key), (TOKEN_SECRET, "HF_TOKEN", token)]
    variables = [models.EnvironmentVar(name=n, value=v) for n, v in engines.environment(engine).items()]
    variables += [models.EnvironmentVar(name=n, secret_ref=ref) for ref, n, value in secrets if value]
    tags = {DEPLOYMENT_TAG: request.deployment_id, PUBLIC_TAG: str(request.public).lower()}
    tags[CLEANUP_TAG] = request.options.get("azure_cleanup_env", "false")
    words = engines.command(engine)
    container = models.Container(
        name=CONTAINER,
        image=engines.image(engine),
        command=words[:1],
        args=words[1:],
        env=variables,
        resources=models.ContainerResources(cpu=shape.vcpus, memory=f"{shape.memory_gib}Gi"),
        probes=[
            _probe(engine, "Startup", failures=engines.START_S // _PROBE_S),
            _probe(engine, "Readiness", failures=3),
            # vLLM under load answers late; only one that is dead for minutes is started again.
            _probe(engine, "Liveness", failures=30),
        ],
    )
    configuration = models.Configuration(
        active_revisions_mode="Single",
        secrets=[models.Secret(name=name, value=value) for name, _, value in secrets if value],
        ingress=models.Ingress(external=True, target_port=engines.PORT, transport="Http", allow_insecure=False),
    )
    return models.ContainerApp(
        location="",
        tags=tags,
        properties=models.ContainerAppProperties(
            managed_environment_id=environment_id,
            workload_profile_name=profile,
            configuration=configuration,
            template=models.Template(containers=[container], scale=scale(request.scaling)),
        ),
    )


def scale(scaling: ServerlessScaling) -> Any:
    """The SDK's Scale: by requests at once, down again after the idle window."""
    from azure.mgmt.appcontainers import models

    by_requests = models.HttpScaleRule(metadata={"concurrentRequests": str(scaling.concurrency)})
    return models.Scale(
        min_replicas=scaling.workers_min,
        max_replicas=scaling.workers_max,
        cooldown_period=round(scaling.scaledown_window),
        rules=[models.ScaleRule(name="requests", http=by_requests)],
    )


def _probe(engine: Engine, kind: str, *, failures: int) -> Any:
    from azure.mgmt.appcontainers import models

    return models.ContainerAppProbe(
        type=kind,
        http_get=models.ContainerAppProbeHttpGet(path=engine.health_path, port=engines.PORT, scheme="HTTP"),
        period_seconds=_PROBE_S,
        timeout_seconds=5,
        failure_threshold=failures,
    )
