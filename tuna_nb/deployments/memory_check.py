"""Whether the plan's GPUs can hold its model, as far as that is known without asking anyone.

Only what could not even start is refused, and only where all is known: the engine is vLLM with flags that are
understood here, and the model's description ships with Tuna or lies in a folder. A model that is not known passes.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import Final

from tuna_nb.catalog import fit, gpus
from tuna_nb.catalog.models import config
from tuna_nb.catalog.models.memory import KV_DTYPES, UTILIZATION, Wanted
from tuna_nb.catalog.models.quantization import METHODS
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.errors import RequestError

_UNRECKONED: Final = (
    "--config", "--cpu-offload-gb", "--dtype", "--enable-expert-parallel", "--hf-overrides", "--kv-offloading-size",
    "--kv-cache-memory-bytes", "--load-format", "--max-model-len", "--num-gpu-blocks-override",
    "--offload-backend", "--pipeline-parallel-size", "--quantization-config", "--revision", "--rope-scaling",
    "--tensor-parallel-size", "--data-parallel-size", "-dp", "-ep", "-pp", "-q", "-tp",
)  # fmt: skip
"""Flags of vLLM that change what is needed in ways that are not reckoned here."""


async def check(request: DeployRequest) -> RequestError | None:
    """Why its replicas could not start, with what would fit; None where they may."""
    wanted = _wanted(request)
    if wanted is None:
        return None
    try:
        model = await asyncio.to_thread(config.offline, request.model)
    except RequestError:
        return None  # a folder or a kind of model that is not understood here
    if model is None:
        return None
    return fit.refusal(model, gpus.find(request.gpu), request.tp_size, wanted)


def _wanted(request: DeployRequest) -> Wanted | None:
    """What its flags ask for; None where they are not all understood."""
    unknown = request.quantization is not None and request.quantization not in METHODS
    if request.engine_cmd is not None or unknown:
        return None
    told = {"--gpu-memory-utilization": str(UTILIZATION), "--kv-cache-dtype": "auto"}
    words = shlex.split(request.engine_args)
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in _UNRECKONED:
            return None
        if flag in told:
            told[flag] = value if equals else words[number + 1] if number + 1 < len(words) else ""
    kv = "fp8" if told["--kv-cache-dtype"].startswith("fp8") else told["--kv-cache-dtype"]
    if kv not in KV_DTYPES:
        return None
    try:
        return Wanted(
            max_model_len=request.max_model_len,
            concurrency=1,
            kv_cache_dtype=kv,
            quantization=request.quantization,
            utilization=float(told["--gpu-memory-utilization"]),
            graphs=request.cold_start_mode != "fast_boot",
        )
    except (ValueError, RequestError):
        return None
