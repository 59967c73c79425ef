"""What one GPU needs, and how it changes with what is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalog.models.configs import model, small
from tuna_nb.catalog.gpus import GPUS, find
from tuna_nb.catalog.models import kv_cache
from tuna_nb.catalog.models.kv_cache import lay_out, possible_sizes
from tuna_nb.catalog.models.memory import GIB, Model, Wanted, batch, memory_need, seen_bytes, weight_bytes
from tuna_nb.errors import RequestError

KINDS = (
    "Qwen/Qwen3-32B", "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3.2", "google/gemma-3-27b-it",
    "openai/gpt-oss-20b", "Qwen/Qwen3.5-27B", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
)  # fmt: skip
"""One of each kind of attention."""
each_kind = st.sampled_from(KINDS)
lengths = st.integers(1, 32768)
H200 = find("H200")


@given(each_kind, lengths, lengths, st.integers(1, 512), st.integers(1, 512))
@settings(max_examples=150, deadline=None)
def test_more_tokens_or_more_requests_never_need_less(name: str, a: int, b: int, few: int, many: int) -> None:
    described = model(name)
    b = min(b, described.architecture.context)
    (a, b), (few, many) = sorted((min(a, b), b)), sorted((few, many))
    less = memory_need(described, H200, 1, Wanted(max_model_len=a, concurrency=few))
    more = memory_need(described, H200, 1, Wanted(max_model_len=b, concurrency=many))
    assert less.bytes <= more.bytes
    assert less.single_bytes <= more.single_bytes
    assert less.request_bytes <= more.request_bytes <= more.most_request_bytes
    assert more.requests <= less.requests


@given(each_kind, lengths)
@settings(max_examples=100, deadline=None)
def test_more_gpus_never_raise_what_each_keeps(name: str, tokens: int) -> None:
    """Save for what is outside of PyTorch, which is there for each, and the larger pages that states ask for."""
    described = model(name)
    tokens = min(tokens, described.architecture.context)
    before: tuple[int, int] | None = None
    for tp_size in possible_sizes(described.architecture):
        weights = weight_bytes(described, tp_size)
        token = lay_out(described.architecture, tp_size).bytes_per_token
        if before is not None:
            assert weights <= before[0]
            assert token <= before[1]
        before = weights, token


@given(each_kind, st.integers(1, 10**12), st.integers(1, 300), st.sampled_from([0, 4096, 32768]))
@settings(max_examples=150, deadline=None)
def test_the_longest_that_fits_fits_and_one_more_does_not(name: str, pool: int, requests: int, busy: int) -> None:
    cache = lay_out(model(name).architecture)
    longest = cache.longest(pool, requests, 50_000, busy)
    if longest:
        assert cache.blocks(longest, requests, busy) * cache.block_bytes <= pool
        assert cache.requests(pool, longest, busy) >= requests
    if longest < 50_000:
        assert cache.blocks(longest + 1, requests, busy) * cache.block_bytes > pool
        assert cache.requests(pool, longest + 1, busy) < requests


@given(each_kind, st.integers(1, 10**6))
@settings(max_examples=100, deadline=None)
def test_tokens_are_kept_in_whole_blocks(name: str, tokens: int) -> None:
    cache = lay_out(model(name).architecture)
    assert cache.request_bytes(tokens) % cache.block_bytes == 0
    up = -(-tokens // cache.block_tokens) * cache.block_tokens
    assert cache.most_request_bytes(up) == cache.most_request_bytes(tokens)


def test_a_window_stops_growing_and_both_ends_are_told() -> None:
    """Gemma 3 27B at its full length: a fifth of what it would be if all its layers kept everything."""
    need = memory_need(model("google/gemma-3-27b-it"), find("B200"), 8, Wanted(max_model_len=131_072))
    assert 4.5 < need.most_request_bytes / need.request_bytes < 6
    cache = lay_out(model("google/gemma-3-27b-it").architecture)
    # Ten layers to a group: one group of full attention, six with windows of 1024 tokens.
    assert len(cache.groups) == 7
    settled = 131_072 // 16 + 6 * (1024 // 16 + 1)
    assert cache.blocks(131_072) == settled
    # Two batches of 16,384 tokens may be at work on a B200.
    per_gpu = lay_out(model("google/gemma-3-27b-it").architecture, 8).block_bytes
    assert need.single_bytes - need.request_bytes == 6 * 2 * 16384 // 16 * per_gpu
    # A request that is being read holds what is at work too. Of many, one batch is at work at a time.
    assert cache.blocks(131_072, 1, 4096) == settled + 6 * 4096 // 16
    assert cache.blocks(131_072, 32, 4096) == 32 * settled + 6 * 4096 // 16


def test_heads_are_copied_where_there_are_more_gpus() -> None:
    described = small(num_attention_heads=8, num_key_value_heads=2, head_dim=16)
    per_token = [lay_out(described, tp_size).bytes_per_token for tp_size in (1, 2, 4, 8)]
    assert per_token == [256, 128, 128, 128]


def test_an_8_bit_cache_halves_keys_and_values_and_not_states() -> None:
    assert lay_out(small(), kv_cache_dtype="fp8").bytes_per_token * 2 == lay_out(small()).bytes_per_token
    hybrid = model("Qwen/Qwen3.5-27B").architecture
    plain, eight = lay_out(hybrid), lay_out(hybrid, 1, "fp8")
    # A page has room for a state, which is as large as before.
    assert plain.block_bytes <= eight.block_bytes * 1.01


def test_sparse_latent_attention_keeps_its_indexers_keys_too() -> None:
    """DeepSeek-V3.2: 576 numbers in 16 bits or vLLM's 656 bytes, and 132 for the indexer, in each of 61 layers."""
    described = model("deepseek-ai/DeepSeek-V3.2").architecture
    assert lay_out(described).bytes_per_token == 61 * (2 * 576 + 132)
    assert lay_out(described, 1, "fp8").bytes_per_token == 61 * (656 + 132)


@pytest.mark.parametrize(
    ("tp_size", "fits"), [(1, True), (2, True), (4, True), (3, False), (8, False), (0, False), (-2, False)]
)
def test_the_heads_must_come_out_even(tp_size: int, fits: bool) -> None:
    described = small(num_attention_heads=12, num_key_value_heads=4, hidden_size=96)
    if fits:
        lay_out(described, tp_size)
        return
    with pytest.raises(RequestError) as refused:
        lay_out(described, tp_size)
    assert str(tp_size) in refused.value.message
    assert refused.value.hint


def test_key_heads_that_do_not_divide_are_refused_too() -> None:
    """Phi-4 has ten: two GPUs take five each, four can't."""
    described = model("microsoft/phi-4").architecture
    assert possible_sizes(described) == [1, 2]
    with pytest.raises(RequestError, match="does not divide the 10 heads") as refused:
        lay_out(described, 4)
    assert refused.value.hint == "possible are 1, 2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_model_len": 0}, "--max-model-len is 0"),
        ({"max_model_len": -1}, "--max-model-len is -1"),
        ({"concurrency": 0}, "--concurrency is 0"),
        ({"utilization": 0.0}, "--gpu-memory-utilization is 0"),
        ({"utilization": 1.5}, "--gpu-memory-utilization is 1.5"),
        ({"utilization": float("nan")}, "--gpu-memory-utilization is nan"),
        ({"kv_cache_dtype": "int2"}, "unknown KV cache type 'int2'"),
    ],
)
def test_what_can_never_be_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        replace(Wanted(), **change)  # type: ignore[arg-type]
    assert message in refused.value.message
    assert refused.value.hint


def test_more_tokens_than_the_model_takes_are_refused() -> None:
    with pytest.raises(RequestError, match="takes 40,960 tokens at most") as refused:
        memory_need(model("Qwen/Qwen3-8B"), H200, 1, Wanted(max_model_len=50_000))
    assert "--max-model-len 40960" in str(refused.value.hint)


def test_every_line_says_how_it_was_got_and_they_add_up() -> None:
    need = memory_need(model("Qwen/Qwen3-32B"), find("H100"), 2, Wanted())
    assert need.bytes == sum(line.bytes for line in need.lines)
    assert all(line.how and line.bytes > 0 for line in need.lines)
    fixed = sum(line.bytes for line in need.lines if line.name != "KV cache")
    assert need.pool_bytes == need.budget_bytes - fixed
    assert need.least_bytes == fixed + need.single_bytes
    assert 0 < need.least_doubt_bytes < need.doubt_bytes
    # A fast start records no graphs.
    fast = memory_need(model("Qwen/Qwen3-32B"), find("H100"), 2, Wanted(graphs=False))
    assert "CUDA graphs" not in [line.name for line in fast.lines]
    assert fast.pool_bytes - need.pool_bytes == 64 * 16 * 2**20


def test_a_gpu_shows_programs_less_than_its_name_says() -> None:
    for gpu in GPUS:
        assert 0.85 < seen_bytes(gpu) / (gpu.vram_gb * GIB) <= 1.0, gpu.name


def test_the_engines_batch_depends_on_the_gpu_as_vllms_does() -> None:
    assert [batch(find(g)) for g in ("L4", "A100_80GB", "H100", "B200")] == [
        (2048, 256), (2048, 256), (8192, 1024), (16384, 1024)
    ]  # fmt: skip


def test_a_model_of_states_alone_is_not_supported() -> None:
    described = small(
        model_type="nemotron_h", hybrid_override_pattern="MM", mamba_num_heads=4, mamba_head_dim=16, n_groups=2,
        ssm_state_size=8,
    )  # fmt: skip
    with pytest.raises(RequestError, match="not supported"):
        memory_need(Model("a/mamba", described, "a test"), H200, 1, Wanted(max_model_len=2048))


def test_groups_are_made_as_vllm_makes_them() -> None:
    """As many groups as the rarer kind goes into the other; nearly equal numbers are padded instead."""
    types = ["full_attention"] * 2 + ["sliding_attention"] * 6
    base = {"model_type": "gemma2", "head_dim": 16, "sliding_window": 64}
    made = lay_out(small(**base, layer_types=types, num_hidden_layers=8))
    assert len(made.groups) == 4
    near = ["full_attention"] * 4 + ["sliding_attention"] * 5
    padded = lay_out(small(**base, layer_types=near, num_hidden_layers=9))
    assert len(padded.groups) == 2
    assert padded.block_bytes == kv_cache.BLOCK_TOKENS * 128 * 5
