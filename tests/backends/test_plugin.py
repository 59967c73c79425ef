"""A provider that Tuna does not ship is a distribution of its own, found by its entry point and held to the contract."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.cloud_contract import CloudCase, CloudContract
from tests.fakes.acme import KEY, FakeAcme
from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, Engine, Kind, ServerlessScaling, ServiceRequest
from tuna_nb.errors import CredentialsError

PLUGIN = Path(__file__).parents[1] / "plugins" / "acme"
REQUEST = ServiceRequest(
    deployment_id="0123456789",
    name="tuna-test-0123456789-serverless",
    kind=Kind.SERVERLESS,
    engine=Engine("Qwen/Qwen3-0.6B"),
    gpu="L4",
    gpu_count=1,
    scaling=ServerlessScaling(),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin, built and installed by pip into a folder of its own, without the network."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), str(PLUGIN)], check=True)
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    yield target
    sys.path.remove(str(target))
    sys.modules.pop("acme_tuna", None)


@pytest.fixture
def case(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudCase]:
    monkeypatch.setenv("ACME_KEY", KEY)
    made = importlib.import_module("acme_tuna").AcmeBackend
    refused: type[Backend] = type("Refused", (made,), {"_key": lambda _: "revoked"})
    with FakeAcme() as cloud:
        yield CloudCase(
            made(cloud.url, pace=0.05),
            REQUEST,
            cloud=cloud,
            fresh=lambda: made(cloud.url, pace=0.05),
            hasty=lambda: made(cloud.url, timeout_s=0.5, pace=0.05),
            refused=lambda: refused(cloud.url, pace=0.05),
            create="POST /services",
            listing="GET /services",
            names=lambda: cloud.names,
            sent=lambda: json.dumps(cloud.bodies),
        )


class TestAcme(CloudContract):
    """A third party's backend keeps the contract."""


def test_it_is_found_by_its_entry_point(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", {})
    sys.modules.pop("acme_tuna", None)
    assert "acme" in registry.names()
    assert "acme_tuna" not in sys.modules, "its name is read, its module is not imported"
    backend = registry.get("acme")
    assert (backend.name, backend.__class__.__module__) == ("acme", "acme_tuna")


async def test_its_keys_expire_and_each_opens(case: CloudCase) -> None:
    endpoint = await case.deploy()
    first, second = await case.backend.auth(endpoint.ref), await case.backend.auth(endpoint.ref)
    assert first.headers != second.headers
    assert first.expires_at is not None


async def test_without_a_key_it_says_so(case: CloudCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_KEY")
    assert not case.backend.configured()
    with pytest.raises(CredentialsError):
        await case.backend.list_owned()
