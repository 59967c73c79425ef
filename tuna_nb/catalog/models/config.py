"""Where a model's config.json comes from: a folder, the table that ships with Tuna, or the Hugging Face hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tuna_nb.catalog import hub
from tuna_nb.catalog.models import families, weights
from tuna_nb.catalog.models.memory import Model
from tuna_nb.catalog.models.reading import read
from tuna_nb.catalog.models.weights import Files
from tuna_nb.errors import RequestError, nearest
from tuna_nb.secrets import hugging_face_token

HUB_S: Final = 30.0
"""The hub is given up after that."""
HEADERS_S: Final = 30.0
"""So are the weights' headers, of which a large model has a hundred: its size is then told by formula."""
_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONFIG, _MODELOPT = "config.json", "hf_quant_config.json"


async def find(name: str) -> Model:
    """By its id, or a folder with its config.json; the weights' headers are read where there are any.

    Raises RequestError for a folder that can't be read, a model that is not known here while the hub can't be
    reached, that is not there, is gated, or whose layers have no formula.
    """
    found = await asyncio.to_thread(offline, name)
    if found is not None:
        return found
    if not _ID.fullmatch(name) or ".." in name:
        raise RequestError(
            f"{name!r} is neither a folder with a config.json nor a model name",
            "a Hugging Face id has the form owner/name, e.g. Qwen/Qwen3-32B",
        )
    token = hugging_face_token()
    # Ours answers within seconds where there is no network; huggingface_hub tries for a while.
    access = await hub.access(name, token)
    if not access.known:
        raise _unreachable(name, "it could not be reached")
    if access.gated and token is None:
        raise _gated(name, token)
    try:
        async with asyncio.timeout(HUB_S):
            model = await asyncio.to_thread(_from_hub, name, token)
    except TimeoutError:
        raise _unreachable(name, f"no answer within {HUB_S:g} s") from None
    try:
        async with asyncio.timeout(HEADERS_S):
            return replace(model, files=await asyncio.to_thread(_headers, model, token))
    except TimeoutError:
        return model


def offline(name: str) -> Model | None:
    """As `find`, without asking anyone; None for a model that is not known here."""
    folder = Path(name).expanduser()
    if (folder / _CONFIG).is_file():
        return _from_folder(folder, name)
    if name.startswith((".", "/", "~")) or folder.is_dir():
        raise RequestError(f"there is no {_CONFIG} in {name}", "give the folder that the model was downloaded to")
    family = families.find(name)
    if family is None:
        return None
    return Model(family.model, read(family.config, family.model), f"Tuna's own table ({family.source})")


def _from_folder(folder: Path, name: str) -> Model:
    config = _json(folder / _CONFIG)
    if (folder / _MODELOPT).is_file():
        config = _with_modelopt(config, _json(folder / _MODELOPT))
    architecture = read(config, name)
    files = weights.in_folder(folder, architecture)
    return Model(name, architecture, f"{_CONFIG} in {folder}", files)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not JSON"
        raise RequestError(f"can't read {path}: {why}", "download it again") from e
    if not isinstance(content, dict):
        raise RequestError(f"can't read {path}: it holds no fields", "download it again")
    return content


def _with_modelopt(config: Mapping[str, Any], beside: Mapping[str, Any]) -> Mapping[str, Any]:
    """NVIDIA's quantized checkpoints may tell of it in a file of its own."""
    told = beside.get("quantization")
    if config.get("quantization_config") or not isinstance(told, Mapping):
        return config
    own = {
        "quant_method": "modelopt",
        "quant_algo": told.get("quant_algo"),
        "ignore": told.get("exclude_modules") or [],
        "kv_cache_scheme": told.get("kv_cache_quant_algo"),
    }
    return {**config, "quantization_config": own}


def _from_hub(name: str, token: str | None) -> Model:
    """With huggingface_hub: its cache, its `HF_ENDPOINT`, and the user's token."""
    import httpx
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    api = _api(token)
    cache = os.environ.get("HF_HUB_CACHE") or None

    def file(path: str) -> Mapping[str, Any]:
        return _json(Path(api.hf_hub_download(name, path, cache_dir=cache, etag_timeout=10)))

    try:
        config = file(_CONFIG)
        if not config.get("quantization_config"):
            with contextlib.suppress(RemoteEntryNotFoundError):
                config = _with_modelopt(config, file(_MODELOPT))
    except GatedRepoError as e:
        raise _gated(name, token) from e
    except RepositoryNotFoundError as e:
        raise RequestError(f"there is no model {name} on Hugging Face", "check the spelling") from e
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, RuntimeError) as e:
        # huggingface_hub 1.16 tries a lost connection again with a client that it has closed: a RuntimeError.
        raise _unreachable(name, "it could not be reached") from e
    except EntryNotFoundError as e:
        raise RequestError(
            f"{name} has no {_CONFIG} on Hugging Face", "choose the original model, not one of llama.cpp's files"
        ) from e
    except (HfHubHTTPError, OSError) as e:
        status = getattr(getattr(e, "response", None), "status_code", None)
        raise _unreachable(name, f"it answered {status}" if status else type(e).__name__) from e
    return Model(name, read(config, name), f"{_CONFIG} on Hugging Face")


def _headers(model: Model, token: str | None) -> Files | None:
    """What its weights' headers say; None where it has none, or they can't be had now."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    try:
        return weights.counted(_api(token).get_safetensors_metadata(model.name), model.architecture)
    except (NotASafetensorsRepoError, SafetensorsParsingError, HfHubHTTPError, httpx.HTTPError, RuntimeError):
        return None  # the formula is as good within a percent, and the answer says which of the two it was


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token or False)


def _gated(name: str, token: str | None) -> RequestError:
    return RequestError(
        f"{name} is gated: its files are given only to who was granted access",
        f"accept its licence at {hub.URL}/{name}" + ("" if token else ", then export HF_TOKEN=<your token>"),
    )


def _unreachable(name: str, why: str) -> RequestError:
    close = nearest(name, families.names())
    hint = f"did you mean {close!r}? " if close else ""
    return RequestError(
        f"{name} is not in Tuna's own table, and the Hugging Face hub was no help: {why}",
        f"{hint}give --model a folder with its {_CONFIG}, or try again where the hub can be reached",
    )
