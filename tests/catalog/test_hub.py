"""What the Hugging Face hub says of a model, before anything costs money."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.faults import Fault
from tuna_nb.catalog.hub import Access, access
from tuna_nb.errors import RequestError

TOKEN = "hf_granted"


class FakeHub(FakeCloud):
    """Three models: open, gated, and private to the owner of the token."""

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/api/models/{owner}/{name}", self._model),
            Route("/{owner}/{name}/resolve/main/config.json", self._file, methods=["HEAD", "GET"]),
        ]

    async def _model(self, request: Request) -> Response:
        name, known = request.path_params["name"], request.headers.get("authorization") == f"Bearer {TOKEN}"
        if name == "open":
            return JSONResponse({"id": "a/open", "gated": False, "private": False})
        if name == "gated":
            return JSONResponse({"id": "a/gated", "gated": "manual", "private": False})
        if name == "private" and known:
            return JSONResponse({"id": "a/private", "gated": False, "private": True})
        if known:
            return JSONResponse({"error": "Repository not found"}, 404)
        return JSONResponse({"error": "Invalid username or password."}, 401)

    async def _file(self, request: Request) -> Response:
        known = request.headers.get("authorization") == f"Bearer {TOKEN}"
        return Response(status_code=200 if known else 403)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


async def test_open_and_gated_models_are_told_apart(hub: FakeHub) -> None:
    assert await access("a/open", None) == Access(gated=False, known=True)
    assert await access("a/gated", None) == Access(gated=True, known=True)
    assert await access("a/gated", TOKEN) == Access(gated=True, known=True)
    assert await access("a/private", TOKEN) == Access(gated=False, known=True)


async def test_a_token_that_was_not_granted_access_is_said_before_anything_is_created(hub: FakeHub) -> None:
    with pytest.raises(RequestError, match="your Hugging Face account has no access") as refused:
        await access("a/gated", "hf_other")
    assert "hf_other" not in refused.value.message


async def test_a_model_that_is_not_there_is_a_misspelling_or_private(hub: FakeHub) -> None:
    with pytest.raises(RequestError, match="there is no model a/opne") as refused:
        await access("a/opne", None)
    assert "HF_TOKEN" in str(refused.value.hint)
    with pytest.raises(RequestError, match="there is no model a/opne"):
        await access("a/opne", TOKEN)


async def test_where_the_hub_can_not_be_asked_only_known_families_are_taken_for_gated(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.order(Fault(503), times=10)
    assert await access("meta-llama/Llama-3.1-8B", None) == Access(gated=True, known=False)
    assert await access("a/open", None) == Access(gated=False, known=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert await access("google/gemma-3-4b-it", None) == Access(gated=True, known=False)


async def test_a_name_without_an_owner_is_not_the_hubs(hub: FakeHub) -> None:
    assert await access("my-model", None) == Access(gated=False, known=False)
    assert hub.faults.calls == []
