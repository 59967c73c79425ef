"""The configuration file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tuna_router import state
from tuna_router.errors import SettingsError
from tuna_router.settings import Settings, parse_settings


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.yml", "a"])
def test_what_is_saved_is_loaded_and_only_its_owner_may_read_it(tmp_path: Path, name: str) -> None:
    settings = parse_settings({"backends": [{"kind": "spot", "url": "http://a", "headers": {"x": "y"}}]})
    path = tmp_path / name
    path.write_text("{}")
    path.chmod(0o644)
    state.save(path, settings)
    assert state.load(path) == settings
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [name], "no temporary file is left"


def test_an_empty_file_is_an_empty_configuration(tmp_path: Path) -> None:
    for name in ("a.json", "a.yaml"):
        (tmp_path / name).write_text("")
        assert state.load(tmp_path / name) == Settings()


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "{"), ("a.yaml", "a: [1"), ("a.yaml", "- 1"), ("a.json", "\xff")]
)
def test_a_file_that_can_not_be_read_is_named_in_the_error(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=str(path)):
        state.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"max_concurrency": 5}')

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SettingsError, match="No space left"):
        state.save(path, Settings())
    assert state.load(path).max_concurrency == 5
    assert os.listdir(tmp_path) == ["a.json"]
