"""The models that need no network: each counted as others count it."""

from __future__ import annotations

import pytest

from tests.catalog.models.configs import known
from tuna_nb.catalog.models import families, kv_cache, weights
from tuna_nb.catalog.models.families import find


@pytest.mark.parametrize("name", families.names())
def test_its_parameters_are_within_a_percent_of_what_its_own_code_has(name: str) -> None:
    family = find(name)
    assert family is not None
    assert family.source
    assert weights.parameters(known(name)) == pytest.approx(family.parameters, rel=0.01)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("google/gemma-2-27b-it", 27_227_128_320),
        ("microsoft/phi-4", 14_659_507_200),
        ("openai/gpt-oss-20b", 20_914_757_184),
    ],
)
def test_dense_and_expert_models_are_counted_to_the_last_parameter(name: str, published: int) -> None:
    assert weights.parameters(known(name)) == published


@pytest.mark.parametrize("name", families.names())
def test_its_cache_can_be_laid_out_at_every_size_that_divides_it(name: str) -> None:
    model = known(name)
    sizes = kv_cache.possible_sizes(model)
    assert sizes[0] == 1
    for tp_size in sizes:
        assert kv_cache.lay_out(model, tp_size).block_bytes > 0


def test_case_does_not_matter_and_similar_names_are_others() -> None:
    exact = find("Qwen/Qwen3-32B")
    assert find("qwen/qwen3-32b") == exact
    assert find("Qwen/Qwen3-33B") is None
    assert find("Qwen3-32B") is None


def test_a_variant_has_its_own_settings_over_those_of_its_like() -> None:
    plain, long = known("Qwen/Qwen3-30B-A3B"), known("Qwen/Qwen3-30B-A3B-Instruct-2507-FP8")
    assert (plain.context, long.context) == (40_960, 262_144)
    assert plain.quantization is None
    assert long.quantization is not None
    assert long.quantization.method == "fp8"
    assert weights.parameters(long) == weights.parameters(plain)
