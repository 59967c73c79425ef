"""The app as it is declared to Modal: one web-server function, which starts the engine in the image's Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.modal import prices
from tuna_nb.backends.options import known, whole
from tuna_nb.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    import modal

FUNCTION: Final = "serve"
DOOR_TAG: Final = "tuna-door"
PUBLIC: Final = "public"
OPTIONS: Final[Mapping[str, str]] = {
    "cpu": "physical CPU cores of a container, reserved and at most (default 4)",
    "memory_gb": "memory of a container in GiB, reserved; what it uses beyond is billed (default 16)",
}
VOLUMES: Final[Mapping[str, str]] = {
    "/root/.cache/huggingface": "tuna-huggingface",
    "/root/.cache/vllm": "tuna-vllm",
}
"""Where the engine caches, and the volume that keeps it; all deployments share them."""
PYTHON: Final = ".".join(map(str, sys.version_info[:2]))
"""Pickled code runs only in the Python that made it: Modal adds this one to the image, for its own use there."""


def declare(request: ServiceRequest, secret: Mapping[str, str]) -> modal.App:
    """`secret` becomes a Modal secret of the app's own. Raises RequestError."""
    import modal

    scaling = checked(request)
    engine, (cores, gib) = request.engine, reserved(request.options)
    image = modal.Image.from_registry(engines.image(engine), add_python=PYTHON).entrypoint([])
    door = PUBLIC if request.public else "proxy-token"
    app = modal.App(request.name, tags={"tuna-deployment": request.deployment_id, DOOR_TAG: door})
    web = modal.web_server(engines.PORT, startup_timeout=engines.START_S, requires_proxy_auth=not request.public)(
        starter(engines.command(engine))
    )
    app.function(
        image=image,
        gpu=f"{prices.GPUS[request.gpu]}:{request.gpu_count}",
        cpu=(cores, cores),
        memory=gib * 1024,
        env=dict(engines.environment(engine)),
        secrets=[modal.Secret.from_dict(dict(secret))] if secret else [],
        volumes={path: modal.Volume.from_name(name, create_if_missing=True) for path, name in VOLUMES.items()},
        min_containers=scaling.workers_min,
        max_containers=scaling.workers_max,
        scaledown_window=window(scaling),
        timeout=round(scaling.timeout),
        startup_timeout=engines.START_S,
        region=request.region,
        serialized=True,
        include_source=False,
        name=FUNCTION,
    )(modal.concurrent(max_inputs=scaling.concurrency)(web))
    return app


def starter(words: list[str]) -> Callable[[], None]:
    """The function that Modal runs in a container. It has all it needs in itself: Tuna is not there."""

    def serve() -> None:
        import os
        import subprocess
        import threading

        # Modal's own packages are for its Python, not for the engine's.
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path not in ("/pkg", "/root")]
        engine = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": ":".join(paths)})
        # Without its engine a container would idle on, and bill, until its start times out.
        threading.Thread(target=lambda: os._exit(engine.wait() or 1), daemon=True).start()

    return serve


def checked(request: ServiceRequest) -> ServerlessScaling:
    """What can never work is said before anything exists. Raises RequestError."""
    known("modal", request.options, OPTIONS)
    if request.gpu not in prices.GPUS:
        raise RequestError(f"modal has no {request.gpu}", did_you_mean(request.gpu, prices.GPUS))
    most = prices.MOST.get(request.gpu, 8)
    if not 1 <= request.gpu_count <= most:
        raise RequestError(
            f"modal: {request.gpu_count} x {request.gpu} in one container", f"Modal gives 1 to {most} of them"
        )
    reserved(request.options)
    engines.command(request.engine)
    return serverless(request.scaling)


def serverless(scaling: ServerlessScaling | SpotScaling) -> ServerlessScaling:
    """Scaling that Modal takes. Raises RequestError."""
    if not isinstance(scaling, ServerlessScaling):
        raise RequestError("modal: only serverless GPUs", "choose another --spots-cloud")
    for name, value, least, most in (
        ("scaledown_window", scaling.scaledown_window, 2, 3600),
        ("timeout", scaling.timeout, 1, 86400),
        ("concurrency", scaling.concurrency, 1, 1000),
        ("workers_max", scaling.workers_max, 1, 1000),
        ("workers_min", scaling.workers_min, 0, scaling.workers_max),
    ):
        if not least <= value <= most:
            raise RequestError(f"modal: serverless.{name} is {value:g}", f"Modal takes {least} to {most}")
    return scaling


def window(scaling: ServerlessScaling) -> int:
    return round(scaling.scaledown_window)


def reserved(options: Mapping[str, str]) -> tuple[int, int]:
    """Physical CPU cores and GiB of memory of one container. Raises RequestError."""
    return whole(options, "cpu", 4, least=1, most=64), whole(options, "memory_gb", 16, least=1, most=336)
