"""Keys: readable by their owner alone, and in none of the places where keys leak."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tuna_nb.errors import SettingsError
from tuna_nb.secrets import Secrets, new_key
from tuna_nb.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load({"TUNA_DATA_DIR": str(tmp_path)})


def test_a_secret_comes_back_until_it_is_forgotten(settings: Settings) -> None:
    secrets = Secrets(settings)
    assert secrets.get("d1", "api_key") is None
    secrets.put("d1", "api_key", "one")
    secrets.put("d1", "admin_key", "two")
    assert (Secrets(settings).get("d1", "api_key"), secrets.get("d1", "admin_key")) == ("one", "two")
    secrets.forget("d1")
    secrets.forget("d1")
    assert secrets.get("d1", "api_key") is None


def test_only_the_owner_can_read_them(settings: Settings) -> None:
    Secrets(settings).put("d1", "api_key", "one")
    folder = settings.data_dir / "secrets"
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.iterdir())] == [0o700, 0o600]


def test_a_damaged_file_is_an_error_and_not_no_key(settings: Settings) -> None:
    Secrets(settings).put("d1", "api_key", "one")
    (settings.data_dir / "secrets" / "d1.json").write_text("{")
    with pytest.raises(SettingsError, match="damaged"):
        Secrets(settings).get("d1", "api_key")


def test_keys_are_long_and_never_the_same() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(k) > 40 for k in keys)
