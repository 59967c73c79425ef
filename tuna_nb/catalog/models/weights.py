"""How much memory a model's weights take: by formula from its description, and exactly from its files' headers.

Under tensor parallelism a matrix is cut into as many pieces as there are GPUs. What can't be cut is held by each of
them: norms, routers, the compressing halves of latent attention, and keys and values beyond their number of heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tuna_nb.catalog.models.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    Latent,
    Layer,
    Mixer,
    State,
)
from tuna_nb.catalog.models.quantization import Part, Quantization
from tuna_nb.errors import RequestError

_ANY: Final = 1 << 30
"""Can be cut into as many pieces as is wished."""


@dataclass(frozen=True, slots=True)
class Piece:
    """parameters of one part that can be cut into `shards` pieces at most."""

    part: Part
    parameters: int
    shards: int = _ANY

    def on_one_gpu(self, tp_size: int) -> float:
        return self.parameters / min(tp_size, self.shards)


@dataclass(frozen=True, slots=True)
class Files:
    """What safetensors headers say. bytes: of the tensors that are loaded. parameters: numbers in all of them by
    type, as the file counts them (a 4-bit weight is an eighth of one there)."""

    bytes: int
    parameters: Mapping[str, int]


def pieces(model: Architecture) -> list[Piece]:
    """Everything that is loaded to serve: not the extra layers that only guess tokens ahead."""
    found = [Piece(Part.EMBEDDINGS, model.vocab * model.hidden)]
    if not model.tied:
        found.append(Piece(Part.HEAD, model.vocab * model.hidden))
    if model.vision:
        found.append(Piece(Part.VISION, model.vision, shards=1))
    found.append(Piece(Part.NORMS, model.hidden, shards=1))
    repeated: dict[Layer, int] = {}
    for layer in model.layers:
        repeated[layer] = repeated.get(layer, 0) + 1
    for layer, times in repeated.items():
        found += [replace(piece, parameters=piece.parameters * times) for piece in _of_layer(layer, model.hidden)]
    return found


def parameters(model: Architecture) -> int:
    """How many the published count has, extra layers for guessing ahead left out."""
    return sum(piece.parameters for piece in pieces(model))


def size(model: Architecture, tp_size: int = 1, quantization: Quantization | None = None) -> dict[Part, float]:
    """Bytes on one of `tp_size` GPUs, by part. quantization: None for plain weights, whatever the checkpoint
    has."""
    found: dict[Part, float] = {}
    for piece in pieces(model):
        covered = quantization is not None and piece.part in quantization.covers
        bits = quantization.bits if quantization is not None and covered else 8 * model.value_bytes
        found[piece.part] = found.get(piece.part, 0.0) + piece.on_one_gpu(tp_size) * bits / 8
    return found


def _of_layer(layer: Layer, hidden: int) -> Iterator[Piece]:
    yield Piece(Part.NORMS, layer.norms, shards=1)
    if layer.mixer is not None:
        yield from _of_mixer(layer.mixer, hidden)
    if layer.feed is not None:
        yield from _of_feed(layer.feed, hidden)


def _of_mixer(mixer: Mixer, hidden: int) -> Iterator[Piece]:
    match mixer:
        case Attention():
            queries = mixer.heads * mixer.head_dim
            yield Piece(Part.ATTENTION, hidden * queries * (3 if mixer.gated else 2))
            yield Piece(Part.ATTENTION, 2 * hidden * mixer.kv_heads * mixer.head_dim, shards=mixer.kv_heads)
            yield Piece(Part.NORMS, mixer.extra, shards=1)
        case Latent():
            yield from _of_latent(mixer, hidden)
        case State():
            yield Piece(Part.STATE, mixer.linear)
            yield Piece(Part.NORMS, mixer.extra)


def _of_latent(mixer: Latent, hidden: int) -> Iterator[Piece]:
    queries = mixer.heads * (mixer.nope_dim + mixer.rope_dim)
    compressed = hidden * (mixer.kv_rank + mixer.rope_dim)
    norms = mixer.kv_rank
    if mixer.q_rank is None:
        yield Piece(Part.ATTENTION, hidden * queries)
    else:
        compressed += hidden * mixer.q_rank
        norms += mixer.q_rank
        yield Piece(Part.ATTENTION, mixer.q_rank * queries)
    if mixer.index_heads:
        compressed += (mixer.q_rank or hidden) * mixer.index_heads * mixer.index_dim
        compressed += hidden * (mixer.index_dim + mixer.index_heads)
        norms += 2 * mixer.index_dim
    yield Piece(Part.ATTENTION, compressed, shards=1)
    yield Piece(Part.ATTENTION, mixer.kv_rank * mixer.heads * (mixer.nope_dim + mixer.value_dim))
    yield Piece(Part.ATTENTION, mixer.heads * mixer.value_dim * hidden)
    yield Piece(Part.NORMS, norms, shards=1)


def _of_feed(feed: FeedForward | Experts, hidden: int) -> Iterator[Piece]:
    if isinstance(feed, FeedForward):
        yield Piece(Part.DENSE, feed.matrices * hidden * feed.width)
        return
    yield Piece(Part.EXPERTS, feed.count * feed.matrices * hidden * feed.width)
    if feed.shared_width:
        yield Piece(Part.SHARED, feed.matrices * hidden * feed.shared_width)
    yield Piece(Part.ROUTER, hidden * feed.count + feed.router_extra, shards=1)
    yield Piece(Part.NORMS, feed.count * feed.extra)


def in_folder(folder: Path, model: Architecture) -> Files | None:
    """From the headers of the folder's safetensors files; None where it has none. Reads no weights.

    Raises RequestError where they can't be read.
    """
    if next(folder.glob("*.safetensors"), None) is None:
        return None
    from huggingface_hub import get_local_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        return counted(get_local_safetensors_metadata(folder), model)
    except (NotASafetensorsRepoError, SafetensorsParsingError, OSError, ValueError, KeyError) as e:
        raise RequestError(
            f"the weights in {folder} can't be read: {str(e).splitlines()[0] if str(e) else type(e).__name__}",
            "download them again; or leave only config.json there, and their size is told by formula",
        ) from e


def counted(metadata: Any, model: Architecture) -> Files:
    """metadata: huggingface_hub's SafetensorsRepoMetadata. Tensors that serving never loads are not counted:
    further layers, which guess tokens ahead, and an output head that is a copy of the embeddings."""
    total, by_type = 0, {str(k): int(v) for k, v in metadata.parameter_count.items()}
    for file in metadata.files_metadata.values():
        for name, tensor in file.tensors.items():
            if not _is_extra(name, model):
                start, end = tensor.data_offsets
                total += end - start
    return Files(total, by_type)


_NUMBERED: Final = re.compile(r"^(?:model\.|language_model\.)*(?:model\.)?layers\.(\d+)\.")


def _is_extra(name: str, model: Architecture) -> bool:
    numbered = _NUMBERED.match(name)
    beyond = numbered is not None and int(numbered[1]) >= len(model.layers)
    return beyond or name.startswith("mtp.") or (model.tied and name.endswith("lm_head.weight"))
