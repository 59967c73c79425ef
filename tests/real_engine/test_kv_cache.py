"""The pages that `tuna fit` reckons with are those that vLLM's own memory manager makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.models.configs import known
from tuna_nb.catalog.models import families
from tuna_nb.catalog.models.architecture import Attention, Latent
from tuna_nb.catalog.models.kv_cache import lay_out, possible_sizes, token_bytes, value_bytes
from tuna_nb.catalog.models.memory import UTILIZATION

pytestmark = pytest.mark.real_engine

TOKENS = 32_768
GROUP = """
import json, sys
from types import SimpleNamespace as Of
import torch
from vllm.config.cache import CacheConfig
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes
from vllm.v1.core import kv_cache_utils as utils
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec, MambaSpec, MLAAttentionSpec, SlidingWindowSpec, SparseCacheRole)
from vllm.v1.kv_cache_layout import KVCacheLayout

given = json.load(sys.stdin)
cache = Of(mamba_cache_mode="align", get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC)
parallel = Of(decode_context_parallel_size=1, prefill_context_parallel_size=1, pipeline_parallel_size=1)
config = Of(cache_config=cache, parallel_config=parallel, model_config=Of(max_model_len=given["tokens"]),
            scheduler_config=Of(disable_hybrid_kv_cache_manager=False), speculative_config=None,
            kv_transfer_config=None, max_in_flight_tokens=given["in_flight"])
SIZES = {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32}

def state(c, tp):
    if "linear_num_key_heads" in c:
        return Shapes.gated_delta_net_state_shape(
            tp, c["linear_num_key_heads"], c["linear_num_value_heads"], c["linear_key_head_dim"],
            c["linear_value_head_dim"], c["linear_conv_kernel_dim"])
    return Shapes.mamba2_state_shape(
        tp, c["mamba_num_heads"] * c["mamba_head_dim"], c["n_groups"], c["mamba_num_heads"], c["mamba_head_dim"],
        c["ssm_state_size"], c["conv_kernel"])

answers = []
for one in given["asked"]:
    block, specs = one["block"], {}
    for n, layer in enumerate(one["layers"]):
        if "state" in layer:
            specs[f"{n}"] = MambaSpec(
                block_size=block, shapes=state(layer["state"], one["tp"]), mamba_cache_mode="align",
                dtypes=(torch.bfloat16, SIZES[layer["bytes"]]), page_size_padded=block * layer["token"])
            continue
        base = dict(block_size=block, num_kv_heads=layer["heads"], head_size=layer["dim"], dtype=SIZES[layer["bytes"]])
        if layer["latent"]:
            specs[f"{n}"] = MLAAttentionSpec(**base)
            if layer["index"]:
                specs[f"{n}i"] = MLAAttentionSpec(
                    block_size=block, num_kv_heads=1, head_size=layer["index"], dtype=torch.uint8,
                    cache_role=SparseCacheRole.INDEXER)
        elif layer["window"]:
            specs[f"{n}"] = SlidingWindowSpec(**base, sliding_window=layer["window"])
        else:
            specs[f"{n}"] = FullAttentionSpec(**base)
    groups = utils.get_kv_cache_groups(config, specs)
    pages = [-(-g.kv_cache_spec.max_memory_usage_bytes(config) // g.kv_cache_spec.page_size_bytes) for g in groups]
    size = max(sum(utils._get_per_layer_spec(g, name).page_size_bytes for name in g.layer_names) for g in groups)
    answers.append([sum(pages), size])
print(json.dumps({"answers": answers, "utilization": CacheConfig().gpu_memory_utilization}))
"""


def layers_of(name: str, tp_size: int, dtype: str) -> list[dict[str, Any]]:
    """As vLLM's specs need them."""
    family = families.find(name)
    assert family is not None
    model = known(name)
    each, found = value_bytes(model, dtype), []
    attention = next((m for m in model.mixers if isinstance(m, Attention)), None)
    for mixer in model.mixers:
        match mixer:
            case Attention():
                heads = max(1, mixer.kv_heads // tp_size)
                layer = {
                    "heads": heads,
                    "dim": mixer.head_dim,
                    "window": mixer.window,
                    "latent": False,
                    "bytes": each,
                }
            case Latent():
                packed = mixer.index_heads and each == 1
                dim = 656 if packed else mixer.kv_rank + mixer.rope_dim
                index = mixer.index_dim + 4 * mixer.index_dim // 128
                layer = {"heads": 1, "dim": dim, "index": index, "latent": True, "bytes": each}
            case _:
                assert attention is not None
                layer = {
                    "state": family.config.get("text_config", family.config), "bytes": mixer.state_bytes or 2,
                    "token": token_bytes(attention, tp_size, each),
                }  # fmt: skip
        found.append(layer)
    return found


@pytest.mark.parametrize("in_flight", [0, 4096])
def test_vllm_makes_the_same_blocks_of_every_known_model(vllm_python: Path, in_flight: int) -> None:
    asked, expected = [], []
    for name in families.names():
        model = known(name)
        for tp_size in possible_sizes(model):
            for dtype in ("auto", "fp8"):
                cache = lay_out(model, tp_size, dtype)
                layers = layers_of(name, tp_size, dtype)
                asked.append({"tp": tp_size, "block": cache.block_tokens, "layers": layers})
                expected.append((name, tp_size, dtype, [cache.blocks(TOKENS, 1, in_flight), cache.block_bytes]))
    done = subprocess.run(
        [str(vllm_python), "-c", GROUP], capture_output=True, text=True, timeout=110,
        input=json.dumps({"asked": asked, "tokens": TOKENS, "in_flight": in_flight}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-400:]
    told = json.loads(done.stdout.splitlines()[-1])
    wrong = [(*row, got) for row, got in zip(expected, told["answers"], strict=True) if row[-1] != got]
    assert not wrong
    assert told["utilization"] == UTILIZATION
