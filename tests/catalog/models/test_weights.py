"""The size of weights: by formula, cut for several GPUs, quantized; and exactly, from the headers of real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.catalog.models.configs import SMALL, known, small
from tuna_nb.catalog.models import config, weights
from tuna_nb.catalog.models.architecture import Architecture
from tuna_nb.catalog.models.memory import Wanted, chosen_quantization, weight_bytes
from tuna_nb.catalog.models.quantization import METHODS, Part, chosen, named, of_checkpoint
from tuna_nb.errors import RequestError


def tensors(layers: int = 2, tied: bool = False) -> dict[str, np.ndarray]:
    """Those of `SMALL`, in 16 bits."""

    def of(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float16)

    made = {"model.embed_tokens.weight": of(256, 64), "model.norm.weight": of(64)}
    for i in range(layers):
        block = f"model.layers.{i}."
        made |= {
            f"{block}self_attn.q_proj.weight": of(64, 64), f"{block}self_attn.k_proj.weight": of(32, 64),
            f"{block}self_attn.v_proj.weight": of(32, 64), f"{block}self_attn.o_proj.weight": of(64, 64),
            f"{block}mlp.gate_proj.weight": of(128, 64), f"{block}mlp.up_proj.weight": of(128, 64),
            f"{block}mlp.down_proj.weight": of(64, 128), f"{block}input_layernorm.weight": of(64),
            f"{block}post_attention_layernorm.weight": of(64),
        }  # fmt: skip
    return made if tied else made | {"lm_head.weight": of(256, 64)}


def folder_with(path: Path, made: dict[str, np.ndarray], shards: int = 1, **change: Any) -> Path:
    (path / "config.json").write_text(json.dumps(SMALL | change))
    if shards == 1:
        save_file(made, path / "model.safetensors")
        return path
    names = sorted(made)
    index = {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = names[n::shards]
        save_file({name: made[name] for name in part}, path / file)
        index |= dict.fromkeys(part, file)
    total = sum(t.nbytes for t in made.values())
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return path


@pytest.mark.parametrize("shards", [1, 3])
def test_headers_of_real_files_tell_the_exact_size(tmp_path: Path, shards: int) -> None:
    made = tensors()
    folder_with(tmp_path, made, shards)
    found = config.offline(str(tmp_path))
    assert found is not None
    assert found.files is not None
    assert found.files.bytes == sum(t.nbytes for t in made.values())
    # The formula has the same: nothing was forgotten in either.
    assert sum(weights.size(found.architecture).values()) == found.files.bytes
    assert found.files.parameters == {"F16": found.parameters}
    assert weight_bytes(found) == found.files.bytes


def test_what_serving_does_not_load_is_not_counted(tmp_path: Path) -> None:
    """A further layer that guesses ahead, and the copy of tied embeddings."""
    needed = tensors(tied=True)
    stored = tensors(layers=3) | {"mtp.fc.weight": np.zeros((64, 64), np.float16)}
    folder_with(tmp_path, stored, tie_word_embeddings=True)
    found = config.offline(str(tmp_path))
    assert found is not None
    assert found.files is not None
    assert found.files.bytes == sum(t.nbytes for t in needed.values())


def test_a_quantized_checkpoints_size_is_that_of_its_files(tmp_path: Path) -> None:
    """Eight 4-bit weights to a 32-bit number, scales and zero points beside them: as the formula has it."""
    made = {n: t for n, t in tensors().items() if "proj" not in n}
    for name, t in tensors().items():
        if "proj" in name:
            rows, columns = t.shape
            stem = name.removesuffix(".weight")
            made[f"{stem}.qweight"] = np.zeros((columns, rows // 8), np.int32)
            made[f"{stem}.scales"] = np.zeros((columns // 32, rows), np.float16)
            made[f"{stem}.qzeros"] = np.zeros((columns // 32, rows // 8), np.int32)
    folder_with(tmp_path, made, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32})
    found = config.offline(str(tmp_path))
    assert found is not None
    assert found.files is not None
    assert found.files.bytes == sum(t.nbytes for t in made.values())
    by_formula = weights.size(found.architecture, 1, found.architecture.quantization)
    assert sum(by_formula.values()) == found.files.bytes


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0not json"])
def test_a_damaged_file_is_an_error_and_not_a_guess(tmp_path: Path, damage: bytes) -> None:
    folder_with(tmp_path, tensors())
    (tmp_path / "model.safetensors").write_bytes(damage)
    with pytest.raises(RequestError, match=r"the weights in .* can't be read") as refused:
        config.offline(str(tmp_path))
    assert "download them again" in str(refused.value.hint)


def test_a_folder_without_weights_is_reckoned_by_formula(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    found = config.offline(str(tmp_path))
    assert found is not None
    assert found.files is None
    assert weight_bytes(found) == 2 * found.parameters


def on_each(model: Architecture, tp_size: int) -> dict[Part, float]:
    return weights.size(model, tp_size)


def test_several_gpus_share_matrices_and_copy_the_rest() -> None:
    model = known("Qwen/Qwen3-30B-A3B")
    one, four = on_each(model, 1), on_each(model, 4)
    for part in (Part.EMBEDDINGS, Part.HEAD, Part.EXPERTS, Part.ATTENTION):
        assert four[part] == one[part] / 4
    for part in (Part.ROUTER, Part.NORMS):
        assert four[part] == one[part]


def test_keys_and_values_are_copied_beyond_their_heads() -> None:
    model = small(num_attention_heads=8, num_key_value_heads=2, head_dim=8)
    per_layer = 64 * 64 * 2, 2 * 64 * 16
    assert on_each(model, 2)[Part.ATTENTION] == 2 * 2 * (per_layer[0] / 2 + per_layer[1] / 2)
    assert on_each(model, 8)[Part.ATTENTION] == 2 * 2 * (per_layer[0] / 8 + per_layer[1] / 2)


def test_the_compressing_half_of_latent_attention_is_on_every_gpu() -> None:
    model = known("deepseek-ai/DeepSeek-V3")
    compressed = 61 * 7168 * (1536 + 512 + 64) * 2
    one, eight = on_each(model, 1)[Part.ATTENTION], on_each(model, 8)[Part.ATTENTION]
    assert eight == pytest.approx((one - compressed) / 8 + compressed)


@pytest.mark.parametrize(
    ("method", "bits"), [("awq", 4.15625), ("gptq", 4.15625), ("fp8", 8), ("bitsandbytes", 4.5)]
)
def test_quantization_leaves_embeddings_head_and_norms_alone(method: str, bits: float) -> None:
    model = known("Qwen/Qwen3-32B")
    plain, small_ = weights.size(model), weights.size(model, 1, named(method))
    for part in (Part.EMBEDDINGS, Part.HEAD, Part.NORMS):
        assert small_[part] == plain[part]
    for part in (Part.ATTENTION, Part.DENSE):
        assert small_[part] == pytest.approx(plain[part] * bits / 16)


def test_only_the_experts_of_gpt_oss_are_in_4_bits() -> None:
    """Its checkpoint is published as 13.8 GB, biases of experts among them."""
    model = known("openai/gpt-oss-20b")
    sizes = weights.size(model, 1, model.quantization)
    assert sizes[Part.ATTENTION] == weights.size(model)[Part.ATTENTION]
    assert sum(sizes.values()) == pytest.approx(13.76e9, rel=0.01)


def test_what_a_checkpoint_names_as_left_alone_is_left_alone() -> None:
    names = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"]
    group = {"weights": {"num_bits": 4, "group_size": 32, "type": "int"}}
    made = of_checkpoint(
        {"quant_method": "compressed-tensors", "config_groups": {"0": group}, "ignore": names}, 4, "a/b"
    )
    assert made.covers == {Part.DENSE, Part.EXPERTS, Part.STATE}
    assert made.bits == 4.5
    # Named layer by layer: most of them counts, one does not.
    each = [f"model.layers.{n}.self_attn.q_proj" for n in range(4)]
    some = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert Part.ATTENTION not in of_checkpoint(some | {"modules_to_not_convert": each}, 4, "a/b").covers
    assert Part.ATTENTION in of_checkpoint(some | {"modules_to_not_convert": each[:1]}, 4, "a/b").covers
    # Routers, which are never quantized anyway, are no feed-forward part.
    gates = [f"model.layers.{n}.mlp.gate" for n in range(4)]
    assert Part.DENSE in of_checkpoint(some | {"modules_to_not_convert": gates}, 4, "a/b").covers


def test_a_checkpoint_is_never_quantized_twice() -> None:
    own = known("Qwen/Qwen3-32B-AWQ").quantization
    assert chosen(own, None, "a") == own
    assert chosen(own, "awq_marlin", "a") == own
    with pytest.raises(RequestError, match="a is quantized with awq already, and can't be with fp8") as refused:
        chosen(own, "fp8", "a")
    assert "leave out --quantization" in str(refused.value.hint)
    with pytest.raises(RequestError, match="unknown quantization 'awk'") as refused:
        Wanted(quantization="awk")
    assert refused.value.hint == "did you mean 'awq'?"
    assert set(METHODS) >= {"awq", "gptq", "fp8", "int8"}


def test_nvidias_separate_file_tells_of_its_quantization(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    told = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": told}))
    found = config.offline(str(tmp_path))
    assert found is not None
    quantization = chosen_quantization(found, Wanted())
    assert quantization is not None
    assert (quantization.method, quantization.bits, found.architecture.kv_fp8) == ("modelopt", 8, True)
