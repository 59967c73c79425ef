"""config.json files of tests: small ones, and those of known models."""

from __future__ import annotations

from typing import Any

from tuna_nb.catalog.models import families
from tuna_nb.catalog.models.architecture import Architecture
from tuna_nb.catalog.models.memory import Model
from tuna_nb.catalog.models.reading import read

SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def known(name: str) -> Architecture:
    family = families.find(name)
    assert family is not None
    return read(family.config, name)


def model(name: str) -> Model:
    return Model(name, known(name), "a test")


def small(**change: Any) -> Architecture:
    return read({k: v for k, v in (SMALL | change).items() if v is not None}, "a/small")
