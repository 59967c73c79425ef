"""What a user asks for, validated before anything starts."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tuna_nb.backends.base import Engine, ServerlessScaling, SpotScaling
from tuna_nb.backends.engine import command
from tuna_nb.catalog import gpus
from tuna_nb.errors import RequestError

_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?")
_PATH = re.compile(r"/[\w./-]*")
_REMOVED = {
    "--disable-log-requests": "vLLM has no such flag any more, and logs no requests by default",
    "--hf-token": "everyone on a machine can read its command lines; export HF_TOKEN instead",
    "--api-key": "everyone on a machine can read its command lines; Tuna makes and hides the key",
}
NAME_LENGTH = 40
"""Cloud Run and Azure allow 49 and 32 characters for a whole name; ours gets a prefix and a side."""


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """A deployment as asked for.

    gpu: canonical name. serverless_provider: None means the cheapest that sells this GPU. port: of the router,
    None for any free one. router_host: None for what suits the spot side. options: providers' own settings by name,
    as text.
    """

    service_name: str
    model: str
    gpu: str
    gpu_count: int = 1
    serverless_provider: str | None = None
    spots_cloud: str | None = None
    region: str | None = None
    tp_size: int = 1
    max_model_len: int = 4096
    cold_start_mode: str = "fast_boot"
    serverless: ServerlessScaling = field(default_factory=ServerlessScaling)
    spot: SpotScaling = field(default_factory=SpotScaling)
    serverless_only: bool = False
    public: bool = False
    router_host: str | None = None
    port: int | None = None
    engine_cmd: str | None = None
    image: str | None = None
    engine_args: str = ""
    health_path: str = "/health"
    quantization: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises RequestError for what can never be deployed, whatever the provider."""
        check_name(self.service_name)
        if not _MODEL.fullmatch(self.model) or ".." in self.model:
            raise RequestError(
                f"{self.model!r} is not a model name",
                "a Hugging Face id has the form owner/name, e.g. Qwen/Qwen3-0.6B",
            )
        object.__setattr__(self, "gpu", gpus.find(self.gpu).name)
        for label, value, least in (
            ("--gpu-count", self.gpu_count, 1),
            ("--tp-size", self.tp_size, 1),
            ("--max-model-len", self.max_model_len, 1),
            ("serverless.concurrency", self.serverless.concurrency, 1),
            ("serverless.scaledown_window", self.serverless.scaledown_window, 0),
            ("serverless.timeout", self.serverless.timeout, 1),
            ("serverless.workers_min", self.serverless.workers_min, 0),
            ("serverless.workers_max", self.serverless.workers_max, 1),
            ("serverless.scaler_value", self.serverless.scaler_value, 0),
            ("spot.min_replicas", self.spot.min_replicas, 0),
            ("spot.max_replicas", self.spot.max_replicas, 1),
            ("spot.target_qps", self.spot.target_qps, 0.001),
            ("spot.upscale_delay", self.spot.upscale_delay, 0),
            ("spot.downscale_delay", self.spot.downscale_delay, 0),
        ):
            if not least <= value < float("inf"):
                raise RequestError(f"{label} is {value:g}", f"it must be at least {least:g}")
        if self.tp_size > self.gpu_count:
            raise RequestError(
                f"--tp-size {self.tp_size} needs as many GPUs, --gpu-count is {self.gpu_count}",
                f"add --gpu-count {self.tp_size}",
            )
        for side, low, high in (
            ("spot.min_replicas", self.spot.min_replicas, self.spot.max_replicas),
            ("serverless.workers_min", self.serverless.workers_min, self.serverless.workers_max),
        ):
            if low > high:
                raise RequestError(f"{side} is {low}, above its maximum of {high}", "raise the maximum too")
        try:
            words = shlex.split(self.engine_args)
        except ValueError as e:
            raise RequestError(f"--engine-args can't be split: {e}", "close the quotes") from None
        if removed := next((w for w in words if w.partition("=")[0] in _REMOVED), None):
            raise RequestError(f"--engine-args: {_REMOVED[removed.partition('=')[0]]}", f"leave {removed} out")
        command(self.engine)
        if self.image is not None and not _IMAGE.fullmatch(self.image):
            raise RequestError(f"{self.image!r} is not a container image", "for example vllm/vllm-openai:v0.32.0")
        if not _PATH.fullmatch(self.health_path):
            raise RequestError(f"--health-path {self.health_path!r} is not a path", "for example /health")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise RequestError(f"--port is {self.port}", "a port is a number from 1 to 65535")

    @property
    def engine(self) -> Engine:
        return Engine(
            model=self.model,
            command=self.engine_cmd,
            max_model_len=self.max_model_len,
            tp_size=self.tp_size,
            fast_boot=self.cold_start_mode == "fast_boot",
            image=self.image,
            args=tuple(shlex.split(self.engine_args)),
            health_path=self.health_path,
            quantization=self.quantization,
            # vLLM's default is bfloat16, which these generations don't have.
            dtype="half" if gpus.find(self.gpu).architecture in ("Turing", "Volta") else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the store; `from_json` gives an equal request."""
        return asdict(self) | {"options": dict(self.options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeployRequest:
        values = dict(data)
        values["serverless"] = ServerlessScaling(**values["serverless"])
        values["spot"] = SpotScaling(**values["spot"])
        return cls(**values)


def check_name(name: str) -> str:
    """The name itself. Raises RequestError where a provider would refuse it."""
    if len(name) > NAME_LENGTH or not _NAME.fullmatch(name) or "--" in name:
        raise RequestError(
            f"{name!r} is not a service name",
            f"use a lower-case letter, then letters, digits and single dashes, {NAME_LENGTH} characters at most",
        )
    return name


def new_name() -> str:
    """A name for a deployment that was given none, like `tuna-a3f8c21b`."""
    return f"tuna-{uuid.uuid4().hex[:8]}"
