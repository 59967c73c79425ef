"""The key that opens one service's replicas: derived from a secret of this user's, so that nobody need keep it.

The same name gives the same key on this machine, whatever was lost; another machine has another secret.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from tuna_nb.errors import SettingsError
from tuna_nb.settings import Settings

_FILE: Final = "skyserve.key"
_BYTES: Final = 32


def replica_key(name: str) -> str:
    """The key of the service of that name. Raises SettingsError where the user's secret can't be read or made."""
    made = hmac.digest(_secret(), f"skyserve replica {name}".encode(), hashlib.sha256)
    return "tuna-" + base64.urlsafe_b64encode(made).decode().rstrip("=")


def _secret() -> bytes:
    settings = Settings.load()
    path = settings.data_dir / "secrets" / _FILE
    try:
        if not path.exists():
            settings.data_folder("secrets")
            _make(path)
        known = path.read_bytes()
    except OSError as e:
        raise SettingsError(f"can't read {path}: {e.strerror}", "mend its permissions") from e
    if len(known) != _BYTES:
        raise SettingsError(
            f"{path} is damaged", "put it back from a backup; else remove it, then destroy and deploy again"
        )
    return known


def _make(path: Path) -> None:
    """Whole or not at all, and once, however many processes begin together."""
    fresh = path.with_name(f".{_FILE}.{secrets.token_hex(8)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(secrets.token_bytes(_BYTES))
            f.flush()
            os.fsync(f.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
