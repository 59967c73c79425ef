"""Modal: its real SDK against its control plane by gRPC, over loopback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.backends.cloud_contract import CloudCase, CloudContract
from tests.fakes.faults import Fault
from tests.fakes.modal import TOKEN, FakeModal
from tuna_nb.backends.base import Engine, Kind, Ref, ServerlessScaling, ServiceRequest, State
from tuna_nb.backends.modal.backend import ModalBackend
from tuna_nb.errors import BackendError, RequestError

REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-serverless",
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=ServerlessScaling(scaledown_window=60),
)


class Quick(ModalBackend):
    """Whose patience a test can wait for."""

    call_s = 5.0
    probe_s = 0.3

    def __init__(self) -> None:
        super().__init__(pace=0.05)


class WrongToken(Quick):
    """As with a token that was revoked."""

    def _credentials(self) -> tuple[str, str]:
        return "ak-revoked", "as-revoked"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModal]:
    for name in ("MODAL_PROFILE", "MODAL_ENVIRONMENT", "MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", "/nonexistent/modal.toml")
    with FakeModal() as running:
        monkeypatch.setenv("MODAL_SERVER_URL", running.url)
        monkeypatch.setenv("MODAL_TOKEN_ID", TOKEN[0])
        monkeypatch.setenv("MODAL_TOKEN_SECRET", TOKEN[1])
        yield running


@pytest.fixture
def case(cloud: FakeModal) -> CloudCase:
    return CloudCase(
        Quick(),
        REQUEST,
        cloud=cloud,
        fresh=Quick,
        refused=WrongToken,
        create="AppPublish",
        listing="AppList",
        names=lambda: cloud.names,
        sent=lambda: cloud.sent,
    )


class TestModal(CloudContract):
    """Modal keeps the contract."""
