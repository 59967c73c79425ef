"""Where a model's description comes from: a folder, the table that ships, or the hub, asked with its own library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import save
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.catalog.models.configs import SMALL
from tests.catalog.models.test_weights import tensors
from tests.fakes.cloud import FakeCloud
from tests.fakes.faults import Fault
from tuna_nb.catalog.models import config
from tuna_nb.errors import RequestError

TOKEN = "hf_granted"
SHA = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(FakeCloud):
    """Models of one owner `a`: `open` has a config and weights, `bare` no weights, `gguf` no config, `gated` opens to
    one token, `nvidia` has its quantization in a file of its own, `odd` is of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        plain = json.dumps(SMALL).encode()
        told = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
        self.files: dict[str, dict[str, bytes]] = {
            "open": {"config.json": plain, "model.safetensors": save(tensors())},
            "bare": {"config.json": plain},
            "gguf": {"model-q4.gguf": b"GGUF"},
            "gated": {"config.json": plain},
            "nvidia": {"config.json": plain, "hf_quant_config.json": json.dumps(told).encode()},
            "odd": {"config.json": json.dumps(SMALL | {"model_type": "odd"}).encode()},
        }
        self.asked: list[str] = []

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/api/models/a/{name}", self._model),
            Route("/api/models/a/{name}/revision/main", self._model),
            Route("/a/{name}/resolve/{revision}/{path}", self._file, methods=["GET", "HEAD"]),
        ]

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.files:
            return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": path} for path in self.files[name]]
        gated = "manual" if name == "gated" else False
        return JSONResponse({"id": f"a/{name}", "sha": SHA, "gated": gated, "private": False, "siblings": siblings})

    async def _file(self, request: Request) -> Response:
        name, path = request.path_params["name"], request.path_params["path"]
        ranged = " in part" if "range" in request.headers else ""
        self.asked.append(f"{request.method} {name}/{path}{ranged}")
        if name == "gated" and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        content = self.files.get(name, {}).get(path)
        if content is None:
            code = "EntryNotFound" if name in self.files else "RepoNotFound"
            return JSONResponse({"error": "not there"}, 404, {"X-Error-Code": code})
        headers = {"ETag": f'"{name}-{path}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if (wanted := request.headers.get("range")) is not None:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            part = content[int(start) : int(end) + 1]
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
            return Response(part, 206, headers)
        return Response(content, headers=headers)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


async def test_the_hub_gives_config_and_the_weights_headers_and_no_weights(hub: FakeHub) -> None:
    found = await config.find("a/open")
    assert found.source == "config.json on Hugging Face"
    assert found.files is not None
    assert found.files.bytes == sum(t.nbytes for t in tensors().values())
    assert found.parameters == sum(t.size for t in tensors().values())
    assert "GET open/model.safetensors in part" in hub.asked
    assert "GET open/model.safetensors" not in hub.asked


async def test_a_model_without_safetensors_is_reckoned_by_formula(hub: FakeHub) -> None:
    found = await config.find("a/bare")
    assert found.files is None
    assert found.parameters == sum(t.size for t in tensors().values())


async def test_headers_that_take_too_long_leave_the_formula(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HEADERS_S", 0.0)
    found = await config.find("a/open")
    assert found.files is None
    assert found.parameters == sum(t.size for t in tensors().values())


async def test_nvidias_own_file_is_read_on_the_hub_too(hub: FakeHub) -> None:
    quantization = (await config.find("a/nvidia")).architecture.quantization
    assert quantization is not None
    assert (quantization.method, quantization.bits) == ("modelopt", 4.5)


async def test_a_gated_model_says_how_to_get_it(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="a/gated is gated") as refused:
        await config.find("a/gated")
    assert "accept its licence" in str(refused.value.hint)
    assert "HF_TOKEN" in str(refused.value.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(RequestError, match="your Hugging Face account has no access") as refused:
        await config.find("a/gated")
    assert "hf_stranger" not in f"{refused.value.message}{refused.value.hint}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (await config.find("a/gated")).parameters > 0


async def test_what_is_not_there_is_said(hub: FakeHub) -> None:
    with pytest.raises(RequestError, match="there is no model a/opne on Hugging Face"):
        await config.find("a/opne")
    with pytest.raises(RequestError, match=r"a/gguf has no config\.json") as refused:
        await config.find("a/gguf")
    assert "llama.cpp" in str(refused.value.hint)
    with pytest.raises(RequestError, match="model type 'odd' is not supported"):
        await config.find("a/odd")


async def test_a_known_model_asks_nobody(hub: FakeHub) -> None:
    found = await config.find("Qwen/Qwen3-32B")
    assert found.source.startswith("Tuna's own table")
    assert hub.faults.calls == []
    assert hub.asked == []


async def test_without_a_network_an_unknown_model_is_refused_with_the_nearest_known(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RequestError, match="not in Tuna's own table") as refused:
        await config.find("Qwen/Qwen3-23B")
    assert "did you mean 'Qwen/Qwen3-" in str(refused.value.hint)
    assert "a folder with its config.json" in str(refused.value.hint)


async def test_a_hub_that_is_ill_is_no_missing_model(hub: FakeHub) -> None:
    hub.faults.order(Fault(503), times=20)
    with pytest.raises(RequestError, match="the Hugging Face hub was no help"):
        await config.find("a/open")


@pytest.mark.parametrize("name", ["nothing", "a b", "../../etc/passwd", "a/..", "", "a/b/c"])
async def test_what_is_no_name_and_no_folder_is_refused_before_the_hub_is_asked(hub: FakeHub, name: str) -> None:
    with pytest.raises(RequestError) as refused:
        await config.find(name)
    assert refused.value.hint
    assert hub.faults.calls == []


async def test_a_folder_comes_before_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "Qwen" / "Qwen3-32B"
    own.mkdir(parents=True)
    (own / "config.json").write_text(json.dumps(SMALL))
    assert (await config.find("Qwen/Qwen3-32B")).architecture.hidden == 64


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_config_that_can_not_be_read_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RequestError, match="can't read"):
        config.offline(str(tmp_path))


def test_a_folder_without_a_config_is_an_error(tmp_path: Path) -> None:
    for name in (str(tmp_path), f"{tmp_path}/missing"):
        with pytest.raises(RequestError, match=r"there is no config\.json"):
            config.offline(name)
