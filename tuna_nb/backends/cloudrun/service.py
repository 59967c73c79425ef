"""What a request is at Cloud Run: where it can be, what it costs, and the service that is asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.options import known
from tuna_nb.catalog.offers import Offer, Shape
from tuna_nb.errors import RequestError, did_you_mean

OPTIONS: Final[Mapping[str, str]] = {
    "gcp_project": "Google Cloud project (default GOOGLE_CLOUD_PROJECT, else the credentials' own)",
    "gcp_region": "region, one that has the GPU (default CLOUDRUN_REGION or GOOGLE_CLOUD_REGION, else us-east4)",
    "hf_secret": "name of the Secret Manager secret with your Hugging Face token (default hf-token)",
    "impersonate": "service account that the router's tokens are made for, where you sign in as a person",
}
LABEL: Final = "tuna-deployment"
IMPERSONATE: Final = "tuna-nb/impersonate"
"""The annotation of a service that says for which service account its tokens are made."""


class Card(NamedTuple):
    """accelerator: Google's id. cpu and memory_gib: of an instance. regions: open to all; invited:
    by invitation. quota: its id, None where unknown."""

    accelerator: str
    cpu: int
    memory_gib: int
    regions: tuple[str, ...]
    invited: tuple[str, ...]
    quota: str | None


CARDS: Final[Mapping[str, Card]] = {
    "L4": Card(
        "nvidia-l4",
        8,
        32,
        ("us-east4", "europe-west4", "europe-west1", "asia-southeast1"),
        ("us-central1", "asia-south1"),
        "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion",
    ),
    "RTXPRO6000": Card(
        "nvidia-rtx-pro-6000",
        20,
        80,
        ("us-central1", "europe-west4", "asia-southeast1"),
        ("asia-south2",),
        None,
    ),
}
REGIONS: Final = tuple(dict.fromkeys(r for card in CARDS.values() for r in card.regions + card.invited))
"""Everywhere that a service of ours can be."""
_PERIOD_S: Final = 10
# Google shuts an instance with a GPU down when its start takes longer than half an hour.
_TRIES: Final = min(engines.START_S, 1800) // _PERIOD_S


def checked(request: ServiceRequest) -> ServerlessScaling:
    """What can never work is said before anything exists. Raises RequestError."""
    known("cloudrun", request.options, OPTIONS)
    if request.gpu not in CARDS:
        raise RequestError(f"cloudrun has no {request.gpu}", did_you_mean(request.gpu, CARDS))
    if request.gpu_count != 1:
        raise RequestError(f"cloudrun: {request.gpu_count} GPUs in an instance", "Cloud Run gives exactly one")
    region(request)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", hf_secret(request)):
        raise RequestError(f"cloudrun: option hf_secret is {hf_secret(request)!r}", "for example hf-token")
    if "@" not in request.options.get("impersonate", "@"):
        raise RequestError(
            f"cloudrun: option impersonate is {request.options['impersonate']!r}",
            "for example router@my-project.iam.gserviceaccount.com",
        )
    engines.command(request.engine)
    scaling = serverless(request.scaling)
    if not 1 <= scaling.concurrency <= 1000:
        raise RequestError(f"cloudrun: serverless.concurrency is {scaling.concurrency}", "it takes 1 to 1000")
    if not 1 <= scaling.timeout <= 3600:
        raise RequestError(f"cloudrun: serverless.timeout is {scaling.timeout:g}", "it takes 1 to 3600 seconds")
    return scaling


def serverless(scaling: ServerlessScaling | SpotScaling) -> ServerlessScaling:
    """Raises RequestError."""
    if not isinstance(scaling, ServerlessScaling):
        raise RequestError("cloudrun: only serverless GPUs", "choose another --spots-cloud")
    return scaling


def region(request: ServiceRequest) -> str:
    """Where the service will be. Raises RequestError for a region that is not known to have the GPU."""
    card = CARDS[request.gpu]
    asked = request.options.get("gcp_region") or request.region
    chosen = asked or os.environ.get("CLOUDRUN_REGION") or os.environ.get("GOOGLE_CLOUD_REGION") or card.regions[0]
    if chosen not in card.regions + card.invited:
        raise RequestError(
            f"cloudrun: {chosen} has no {request.gpu} that is known of",
            f"--gcp-region may be {', '.join(card.regions)}, and by invitation {', '.join(card.invited)}",
        )
    return chosen


def hf_secret(request: ServiceRequest) -> str:
    return request.options.get("hf_secret", "hf-token")


def price_per_hour(request: ServiceRequest, offers: Iterable[Offer]) -> tuple[float, Offer] | None:
    """USD of one instance, with its cores and memory, and the offer that it is read off; None where no price of the
    GPU is known in that region. Without zonal redundancy, which a service of ours does not have."""
    card, where = CARDS[request.gpu], region(request)
    for offer in offers:
        redundant = offer.note.startswith("with ")
        if offer.gpu == request.gpu and offer.region in (where, None) and not redundant:
            usd, lacks = offer.sum(Shape(1, card.cpu, card.memory_gib))
            if usd is not None and not lacks:
                return usd, offer
    return None


def service(request: ServiceRequest) -> Any:
    """The `run_v2.Service` to create. The Hugging Face token is a reference. Raises RequestError."""
    from google.cloud import run_v2
    from google.protobuf.duration_pb2 import Duration

    scaling, card, engine = checked(request), CARDS[request.gpu], request.engine
    words = engines.command(engine)
    env = [run_v2.EnvVar(name=name, value=value) for name, value in engines.environment(engine).items()]
    if engine.gated or "hf_secret" in request.options:
        key = run_v2.SecretKeySelector(secret=hf_secret(request), version="latest")
        env.append(run_v2.EnvVar(name="HF_TOKEN", value_source=run_v2.EnvVarSource(secret_key_ref=key)))
    limits = {"cpu": str(card.cpu), "memory": f"{card.memory_gib}Gi", "nvidia.com/gpu": "1"}
    container = run_v2.Container(
        image=engines.image(engine),
        # Said whole, for the image has an entrypoint of its own.
        command=words[:1],
        args=words[1:],
        env=env,
        ports=[run_v2.ContainerPort(container_port=engines.PORT)],
        resources=run_v2.ResourceRequirements(limits=limits),
        startup_probe=run_v2.Probe(
            http_get=run_v2.HTTPGetAction(path=engine.health_path, port=engines.PORT),
            period_seconds=_PERIOD_S,
            timeout_seconds=_PERIOD_S,
            failure_threshold=_TRIES,
        ),
    )
    template = run_v2.RevisionTemplate(
        labels={LABEL: request.deployment_id},
        containers=[container],
        node_selector=run_v2.NodeSelector(accelerator=card.accelerator),
        gpu_zonal_redundancy_disabled=True,
        max_instance_request_concurrency=scaling.concurrency,
        timeout=Duration(seconds=round(scaling.timeout)),
    )
    person = request.options.get("impersonate")
    return run_v2.Service(
        labels={LABEL: request.deployment_id},
        annotations={IMPERSONATE: person} if person else {},
        invoker_iam_disabled=request.public,
        scaling=scaled(scaling),
        template=template,
    )


def scaled(scaling: ServerlessScaling) -> Any:
    """Of the service, not of its revision: a change of it starts nothing anew."""
    from google.cloud import run_v2

    return run_v2.ServiceScaling(min_instance_count=scaling.workers_min, max_instance_count=scaling.workers_max)
