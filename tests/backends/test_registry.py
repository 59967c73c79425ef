"""Backends are found by entry point, loaded one at a time, and a broken one hurts nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend
from tuna_nb.errors import BackendError, RequestError


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with a good backend and three that can't be used."""
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tuna_nb.backends]\n"
        "theirs = third_party:Theirs\n"
        "crashes = third_party_crashes:Backend\n"
        "missing = third_party:NoSuchName\n"
        "wrong = builtins:dict\n"
    )
    (tmp_path / "third_party.py").write_text(
        "from tuna_nb.backends.local.backend import LocalBackend\n"
        "class Theirs(LocalBackend):\n"
        "    name = 'theirs'\n"
    )
    (tmp_path / "third_party_crashes.py").write_text("raise ValueError('no license file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_loaded", {})
    yield
    sys.modules.pop("third_party", None)


def test_local_is_there_and_is_made_once() -> None:
    assert "local" in registry.names()
    backend = registry.get("local")
    assert isinstance(backend, Backend)
    assert backend.name == "local"
    assert registry.get("local") is backend


def test_an_unknown_provider_is_told_what_was_meant() -> None:
    with pytest.raises(RequestError) as refused:
        registry.get("locl")
    assert refused.value.hint == "did you mean 'local'?"


def test_a_third_party_adds_a_backend_without_forking(third_party: None) -> None:
    assert {"local", "theirs"} <= set(registry.names())
    assert registry.get("theirs").name == "theirs"


@pytest.mark.parametrize(
    ("name", "told"), [("crashes", "no license file"), ("missing", "NoSuchName"), ("wrong", "no tuna_nb Backend")]
)
def test_a_broken_backend_says_so_and_leaves_the_others_alone(third_party: None, name: str, told: str) -> None:
    assert name in registry.names()
    with pytest.raises(BackendError, match=told) as broken:
        registry.get(name)
    assert "third-party" in (broken.value.hint or "")
    assert registry.get("local").name == "local"


def test_the_names_cost_no_import() -> None:
    code = (
        "import sys; from tuna_nb.backends import registry; assert 'local' in registry.names()\n"
        "print([m for m in ('httpx', 'tuna_nb.backends.local.backend', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SDKS = ("modal", "grpclib", "google.cloud.run", "google.auth", "azure.mgmt.app", "azure.core", "truss", "botocore")


@pytest.mark.parametrize("name", ["azure", "baseten", "cerebrium", "cloudrun", "local", "modal", "runpod"])
def test_a_provider_is_asked_whether_it_is_set_up_without_its_sdk(name: str, tmp_path: Path) -> None:
    """Listing what one has asks each provider that: it must cost nothing where it is not."""
    asked = (
        "import sys\nfrom tuna_nb.backends import registry\n"
        f"print(registry.get({name!r}).configured())\n"
        f"print([m for m in sys.modules if m.startswith({SDKS!r})])"
    )
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", asked], env=bare, capture_output=True, text=True, check=True)
    configured, loaded = done.stdout.splitlines()
    assert configured == str(name == "local"), "nothing of these is set up in an empty environment"
    assert loaded == "[]"
