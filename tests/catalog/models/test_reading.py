"""A config.json read: what it says, what its family leaves unsaid, and what is refused rather than guessed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.catalog.models.configs import SMALL, known, small
from tuna_nb.catalog.models.architecture import Attention, LayerKind, State
from tuna_nb.catalog.models.reading import read
from tuna_nb.errors import RequestError


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Qwen/Qwen3-32B", {LayerKind.FULL: 64}),
        ("deepseek-ai/DeepSeek-V3", {LayerKind.LATENT: 61}),
        ("google/gemma-2-9b", {LayerKind.SLIDING: 21, LayerKind.FULL: 21}),
        ("google/gemma-3-27b-it", {LayerKind.SLIDING: 52, LayerKind.FULL: 10}),
        ("openai/gpt-oss-120b", {LayerKind.SLIDING: 18, LayerKind.FULL: 18}),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {LayerKind.STATE: 36, LayerKind.FULL: 12}),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {LayerKind.STATE: 23, LayerKind.FULL: 6}),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {LayerKind.SLIDING: 36, LayerKind.FULL: 12}),
    ],
)
def test_layers_are_told_apart_by_kind(name: str, kinds: dict[LayerKind, int]) -> None:
    assert known(name).kinds() == kinds


def test_head_dim_is_the_configs_own_where_it_has_one() -> None:
    assert small().mixers[0] == Attention(4, 2, 16)
    assert small(head_dim=32).mixers[0] == Attention(4, 2, 32)


def test_a_window_that_qwen_names_and_does_not_use_is_none() -> None:
    qwen = {"model_type": "qwen2", "sliding_window": 1024}
    assert small(**qwen, use_sliding_window=False).kinds() == {LayerKind.FULL: 2}
    assert small(model_type="mistral", sliding_window=1024).kinds() == {LayerKind.SLIDING: 2}
    assert small(model_type="mistral", sliding_window=None).kinds() == {LayerKind.FULL: 2}


def test_layer_types_come_before_the_familys_pattern() -> None:
    types = ["full_attention", "sliding_attention"]
    made = small(model_type="gemma2", head_dim=16, sliding_window=64, layer_types=types)
    assert [mixer.kind for mixer in made.mixers] == [LayerKind.FULL, LayerKind.SLIDING]


def test_the_decoder_of_a_model_that_sees_is_under_text_config() -> None:
    nested = {
        "model_type": "mistral3",
        "text_config": SMALL | {"model_type": "mistral"},
        "tie_word_embeddings": True,
    }
    made = read(nested, "a/seeing")
    assert (made.hidden, made.vocab, made.model_type) == (64, 256, "mistral")
    # Said of the decoder itself, which is nearer.
    assert not made.tied


def test_scales_for_an_8_bit_cache_are_found_in_the_checkpoint() -> None:
    scheme = {"num_bits": 8, "type": "float"}
    group = {"weights": {"num_bits": 8, "type": "float"}}
    config = {"quant_method": "compressed-tensors", "config_groups": {"a": group}, "kv_cache_scheme": scheme}
    assert small(quantization_config=config).kv_fp8
    assert not small().kv_fp8


def test_a_context_that_is_stretched_is_the_stretched_one() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert small(rope_scaling=yarn).context == 4096
    assert small(rope_scaling={"rope_type": "llama3", "factor": 8.0}).context == 2048


def test_a_recurrent_state_is_as_large_as_vllm_makes_it() -> None:
    mixer = next(m for m in known("Qwen/Qwen3.5-27B").mixers if isinstance(m, State))
    # Three steps of 10,240 channels; 48 heads of 128 by 128, in 32 bits.
    assert (mixer.conv_values, mixer.state_values, mixer.state_bytes) == (30_720, 786_432, 4)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "rwkv7"}, "model type 'rwkv7' is not supported"),
        ({"model_type": None}, "model type '' is not supported"),
        ({"model_type": "t5gemma", "text_config": {}}, "model type 't5gemma' is not supported"),
        ({"layer_types": ["full_attention", "mamba"]}, "layer type 'mamba' is not supported"),
        ({"is_encoder_decoder": True}, "an encoder-decoder is not supported"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M?"}, "layer '?' is not supported"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M*", "moe_latent_size": 8}, "latent experts"),
        ({"quantization_config": {"quant_method": "squeeze"}}, "quantization 'squeeze' is not supported"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for 2 layers"),
        ({"model_type": "mistral", "layer_types": ["sliding_attention"] * 2}, "sliding_window is missing"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_and_never_guessed(change: dict[str, Any], what: str) -> None:
    mamba = {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8}
    with pytest.raises(RequestError) as refused:
        small(**(mamba | change))
    assert "a/small" in refused.value.message
    assert what in refused.value.message
    assert refused.value.hint
