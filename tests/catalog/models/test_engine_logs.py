"""What is reckoned is what engines have logged: published start-up logs of vLLM and SGLang, against the formulas.

GiB of a log are rounded to two digits, which is worth up to 0.2 % here.
"""

from __future__ import annotations

import pytest

from tests.catalog.models.configs import known, model
from tuna_nb.catalog.gpus import find
from tuna_nb.catalog.models.kv_cache import lay_out
from tuna_nb.catalog.models.memory import (
    GIB,
    HYBRID_MARGIN,
    Wanted,
    activation_bytes,
    memory_need,
    weight_bytes,
)
from tuna_nb.catalog.models.reading import read

LLAMA = "meta-llama/Llama-3.1-8B"
MINISTRAL = {
    "model_type": "ministral3", "hidden_size": 5120, "intermediate_size": 16384, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
    "max_position_embeddings": 262144,
}  # fmt: skip


@pytest.mark.parametrize(("pool_gib", "logged_blocks"), [(3.81, 1952), (2.89, 1478)])
def test_llama_on_one_gpu_gets_the_blocks_that_vllm_counted(pool_gib: float, logged_blocks: int) -> None:
    """vllm-project/vllm issue 10517, Llama 3.1 8B on an RTX 3090."""
    cache = lay_out(known(LLAMA))
    assert cache.bytes_per_token == 128 * 1024
    assert pool_gib * GIB / cache.block_bytes == pytest.approx(logged_blocks, rel=1.5e-3)


@pytest.mark.parametrize(
    ("name", "dtype", "pool_gib", "logged_tokens", "within"),
    [
        # On an RTX A5000; then a Qwen3 of 28 layers; then one with an 8-bit cache.
        (LLAMA, "auto", 5.29, 43_296, 2e-3),
        ("Qwen/Qwen3-0.6B", "auto", 54.98, 514_688, 1e-3),
        ("meta-llama/Llama-3.3-70B-Instruct", "fp8", 5.11, 33_504, 1e-3),
    ],
)
def test_a_pool_holds_the_tokens_that_vllm_counted(
    name: str, dtype: str, pool_gib: float, logged_tokens: int, within: float
) -> None:
    cache = lay_out(known(name), kv_cache_dtype=dtype)
    assert pool_gib * GIB // cache.block_bytes * cache.block_tokens == pytest.approx(logged_tokens, rel=within)


def test_two_gpus_share_the_heads_of_ministral() -> None:
    """A published log: Ministral 3 14B on two GPUs, 52.36 GiB on each, 686,320 tokens."""
    cache = lay_out(read(MINISTRAL, "ministral"), 2)
    assert 52.36 * GIB / cache.bytes_per_token == pytest.approx(686_320, rel=1e-4)


def test_four_gpus_hold_one_head_of_qwen3_235b_each() -> None:
    """vllm-project/vllm issue 21348: 8.11 GiB on each of four, 178,880 tokens; the smallest GPU decides there."""
    cache = lay_out(known("Qwen/Qwen3-235B-A22B-FP8"), 4)
    assert 8.11 * GIB / cache.bytes_per_token == pytest.approx(178_880, rel=0.012)


def test_the_states_of_a_hybrid_are_paged_as_vllm_pages_them() -> None:
    """mitchross/talos-argocd-proxmox pull request 1995: Qwen3.8 27B (of the shape of 3.5), two GPUs with 4.99 GiB
    of 8-bit cache each, --max-model-len 131072. It logged 302,921 tokens, 2.31 requests, blocks of 1,568 tokens."""
    cache = lay_out(known("Qwen/Qwen3.5-27B"), 2, "fp8")
    assert cache.block_tokens == 1568
    requests = cache.requests(4.99 * GIB, 131_072)
    assert round(requests, 2) == 2.31
    assert int(requests * 131_072) == 302_921
    # Without the states it would be 8 % more, which the margin of hybrids covers.
    simple = 4.99 * GIB / cache.bytes_per_token
    assert simple * (1 - HYBRID_MARGIN) < 302_921 < simple


@pytest.mark.parametrize("tp_size", [1, 8])
def test_latent_attention_is_copied_to_every_gpu(tp_size: int) -> None:
    """An SGLang note: DeepSeek, 69.978 GiB, a cell of 70,272 bytes, 1,069,242 tokens."""
    cache = lay_out(known("deepseek-ai/DeepSeek-V3"), tp_size)
    assert cache.bytes_per_token == 70_272
    assert 69.978 * GIB / cache.bytes_per_token == pytest.approx(1_069_242, rel=1e-5)


def test_weights_are_what_vllm_loaded() -> None:
    # vllm-project/vllm issues 10517 and 10511: on one GPU, and on each of two.
    assert weight_bytes(model(LLAMA)) / GIB == pytest.approx(14.9888, rel=3e-3)
    assert weight_bytes(model(LLAMA), 2) / GIB == pytest.approx(7.48, rel=1e-3)
    # A published log of Llama 3.3 70B in 8 bits, whose embeddings and output head stay in 16.
    eight = memory_need(model("meta-llama/Llama-3.3-70B-Instruct"), find("H100"), 1, Wanted(quantization="fp8"))
    assert eight.lines[0].bytes / GIB == pytest.approx(67.7, rel=2e-3)


@pytest.mark.parametrize(("tokens", "peak_gib"), [(20_000, 17.06), (29_000, 17.98)])
def test_activations_grow_with_the_batch_as_logged(tokens: int, peak_gib: float) -> None:
    """vllm-project/vllm issue 10517: the peak, of which 14.99 GiB are weights."""
    assert activation_bytes(known(LLAMA), 1, tokens, 256) / GIB == pytest.approx(peak_gib - 14.99, rel=0.15)


@pytest.mark.parametrize(
    ("gpu", "utilization", "length", "logged_gib", "within"),
    [
        # Published logs without CUDA graphs: an RTX A5000, and a GPU of 79.14 GiB.
        ("RTXA5000", 0.9, 2048, 5.29, 0.06),
        ("A100_80GB", 0.9, 8192, 54.93, 0.02),
    ],
)
def test_what_is_left_for_the_cache_of_llama(
    gpu: str, utilization: float, length: int, logged_gib: float, within: float
) -> None:
    wanted = Wanted(max_model_len=length, utilization=utilization, graphs=False)
    assert memory_need(model(LLAMA), find(gpu), 1, wanted).pool_bytes / GIB == pytest.approx(logged_gib, rel=within)
