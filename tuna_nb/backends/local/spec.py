"""What the cloud is asked to run: one resource's specification, the same on the wire, on disk and in memory."""

from __future__ import annotations

import dataclasses
import shutil
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuna_nb.backends.base import Engine, Kind, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.engine import PLACEHOLDERS, fill
from tuna_nb.backends.local import options, prices
from tuna_nb.backends.local.options import Figures
from tuna_nb.errors import RequestError

STAND_IN_MODULE: Final = "tuna_nb.backends.local.engine"

Scaling = ServerlessScaling | SpotScaling


@dataclass(frozen=True, slots=True)
class Spec:
    """One resource. price_per_hour_usd: one container or replica with all its GPUs.

    cwd and path are where the user stood: relative names in the engine's command are found from there. They are
    no part of what the resource *is*, so the same deployment asked from another folder is still the same.
    """

    name: str
    deployment_id: str
    kind: Kind
    engine: Engine
    gpu: str
    gpu_count: int
    scaling: Scaling
    figures: Figures
    price_per_hour_usd: float
    region: str | None = None
    public: bool = False
    cwd: str | None = dataclasses.field(default=None, compare=False)
    path: str | None = dataclasses.field(default=None, compare=False)

    def argv(self, host: str, port: int) -> list[str]:
        """The engine's command line. No key is in it: the engine listens on loopback and needs none."""
        if self.engine.command is not None:
            filled = fill(self.engine.command, {"model": self.engine.model, "host": host, "port": str(port)})
            return [*filled, *self.engine.args, *self.figures.engine_args]
        argv = [sys.executable, "-m", STAND_IN_MODULE]
        given = {
            "--model": self.engine.model,
            "--host": host,
            "--port": port,
            "--max-model-len": self.engine.max_model_len,
            "--decode-tokens-per-s": self.figures.decode_tokens_per_s,
            "--prefill-tokens-per-s": self.figures.prefill_tokens_per_s,
            "--max-num-seqs": self.figures.max_num_seqs,
        }
        for flag, value in given.items():
            if value is not None:
                argv += [flag, str(value)]
        return [*argv, *self.figures.engine_args]

    @property
    def start_timeout_s(self) -> float:
        return self.figures.start_timeout_s(stand_in=self.engine.command is None)

    @property
    def start_delay_s(self) -> float:
        """Seconds before the engine starts: a container's image pull, a machine's boot."""
        return self.figures.cold_start_s if self.kind is Kind.SERVERLESS else self.figures.boot_s


def from_request(request: ServiceRequest, cwd: str | None = None, path: str | None = None) -> Spec:
    """The specification that meets `request`. Raises RequestError where nothing can."""
    figures = options.parse(request.options)
    _check(request)
    override = (
        figures.serverless_price_per_hour_usd
        if request.kind is Kind.SERVERLESS
        else figures.spot_price_per_hour_usd
    )
    listed = prices.price_per_hour_usd(request.gpu, request.kind)
    return Spec(
        name=request.name,
        deployment_id=request.deployment_id,
        kind=request.kind,
        engine=request.engine,
        gpu=request.gpu,
        gpu_count=request.gpu_count,
        scaling=request.scaling,
        figures=figures,
        price_per_hour_usd=(listed if override is None else override) * request.gpu_count,
        region=request.region,
        public=request.public,
        cwd=cwd,
        path=path,
    )


def check_scaling(kind: Kind, scaling: Scaling) -> None:
    """Raises RequestError where the figures of `scaling` can't hold."""
    if isinstance(scaling, ServerlessScaling) != (kind is Kind.SERVERLESS):
        raise RequestError(f"{type(scaling).__name__} does not fit the {kind} side")
    if isinstance(scaling, ServerlessScaling):
        wrong = {
            "concurrency must be at least 1": scaling.concurrency < 1,
            "workers_min must not be negative": scaling.workers_min < 0,
            "workers_max must be at least 1": scaling.workers_max < 1,
            "workers_max must not be below workers_min": scaling.workers_max < scaling.workers_min,
            "scaledown_window must not be negative": scaling.scaledown_window < 0,
            "timeout must be above 0": scaling.timeout <= 0,
        }
    else:
        wrong = {
            "min_replicas must not be negative": scaling.min_replicas < 0,
            "max_replicas must be at least 1": scaling.max_replicas < 1,
            "max_replicas must not be below min_replicas": scaling.max_replicas < scaling.min_replicas,
            "target_qps must be above 0": scaling.target_qps <= 0,
            "upscale_delay must not be negative": scaling.upscale_delay < 0,
            "downscale_delay must not be negative": scaling.downscale_delay < 0,
        }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise RequestError(f"{kind} scaling: {message}")


def _check(request: ServiceRequest) -> None:
    check_scaling(request.kind, request.scaling)
    if request.gpu_count < 1:
        raise RequestError(f"gpu count must be at least 1, not {request.gpu_count}")
    allowed = set(string.ascii_letters + string.digits + "._-")
    if not request.name or not set(request.name) <= allowed or request.name.startswith("."):
        raise RequestError(f"{request.name!r} is no name for a resource", "use letters, digits, '-', '_' and '.'")
    if request.engine.command is not None:
        fill(request.engine.command, dict.fromkeys(PLACEHOLDERS, "x"))


def program(request: ServiceRequest) -> tuple[str, bool]:
    """The engine's program and whether it can be found from here."""
    if request.engine.command is None:
        return sys.executable, True
    first = fill(request.engine.command, {"model": request.engine.model, "host": "127.0.0.1", "port": "0"})[0]
    return first, shutil.which(first) is not None


def to_json(spec: Spec) -> dict[str, Any]:
    """For the wire and the journal; `from_json` reads it back."""
    shown = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {
        **shown,
        "kind": str(spec.kind),
        "engine": dataclasses.asdict(spec.engine),
        "scaling": scaling_to_json(spec.scaling),
        "figures": options.to_json(spec.figures),
    }


def from_json(shown: Mapping[str, Any]) -> Spec:
    """Raises KeyError, TypeError or ValueError where `shown` is no specification."""
    kind = Kind(shown["kind"])
    return Spec(
        **{
            **shown,
            "kind": kind,
            "engine": Engine(**{**shown["engine"], "args": tuple(shown["engine"].get("args", ()))}),
            "scaling": scaling_from_json(kind, shown["scaling"]),
            "figures": options.from_json(shown["figures"]),
        }
    )


def scaling_to_json(scaling: Scaling) -> dict[str, Any]:
    return dataclasses.asdict(scaling)


def scaling_from_json(kind: Kind, shown: Mapping[str, Any]) -> Scaling:
    return ServerlessScaling(**shown) if kind is Kind.SERVERLESS else SpotScaling(**shown)
