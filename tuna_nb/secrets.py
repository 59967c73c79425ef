"""Keys that Tuna itself makes and keeps: one file per deployment, readable by this user alone.

They are not in the store, because a store may be a team's database and is copied and backed up as data.
"""

from __future__ import annotations

import json
import os
import secrets as _random
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tuna_nb.errors import SettingsError
from tuna_nb.settings import Settings


def new_key() -> str:
    """A fresh endpoint key: 256 random bits, with a prefix that secret scanners can recognise."""
    return "tuna-" + _random.token_urlsafe(32)


def hugging_face_token(environ: Mapping[str, str] | None = None) -> str | None:
    """The user's token, from where Hugging Face's own library takes it; None where there is none.

    Source: huggingface_hub's environment variables (HF_TOKEN, HF_TOKEN_PATH, HF_HOME).
    """
    env = os.environ if environ is None else environ
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := env.get(name, "").strip():
            return token
    home = Path(env.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    path = Path(env["HF_TOKEN_PATH"]).expanduser() if env.get("HF_TOKEN_PATH") else home / "token"
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


class Secrets:
    """Named secrets of a deployment, in `<data folder>/secrets/<deployment id>.json` (0600)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def get(self, deployment_id: str, name: str) -> str | None:
        """The secret, or None where it was never put here (another machine made it, say)."""
        return self._read(deployment_id).get(name)

    def put(self, deployment_id: str, name: str, value: str) -> None:
        """Write it whole or not at all: a reader never sees half a file."""
        known = self._read(deployment_id) | {name: value}
        path = self._path(deployment_id)
        self._settings.data_folder("secrets")
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mkstemp makes it 0600
        with os.fdopen(handle, "w") as f:
            json.dump(known, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)

    def forget(self, deployment_id: str) -> None:
        """Remove all secrets of a deployment; none there is fine."""
        self._path(deployment_id).unlink(missing_ok=True)

    def _path(self, deployment_id: str) -> Path:
        return self._settings.data_dir / "secrets" / f"{deployment_id}.json"

    def _read(self, deployment_id: str) -> dict[str, str]:
        path = self._path(deployment_id)
        try:
            text = path.read_text()
        except FileNotFoundError:
            return {}
        except OSError as e:
            raise SettingsError(f"can't read {path}: {e.strerror}", "mend its permissions") from e
        try:
            known = json.loads(text)
        except ValueError as e:
            raise SettingsError(f"{path} is damaged", "remove it, then destroy and deploy again") from e
        return {str(k): str(v) for k, v in known.items()}
