"""Configuration: where things are kept, read from the environment once per command.

Nothing is created at import or by reading; `data_folder()` creates the folder when something must be written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tuna_nb.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Settings:
    """data_dir: the user's data folder. database_url: SQLAlchemy URL of the records; may hold a password, so
    it is left out of `repr`. mode: forces a frontend mode (`widget`, `headless`, `terminal`), else None."""

    data_dir: Path
    database_url: str = field(repr=False)
    mode: str | None = None

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read `TUNA_DATA_DIR`, `TUNA_DATABASE_URL` and `TUNA_NB_MODE`."""
        env = os.environ if environ is None else environ
        if env.get("TUNA_DATA_DIR"):
            data_dir = Path(env["TUNA_DATA_DIR"]).expanduser().absolute()
        else:
            import platformdirs

            data_dir = Path(platformdirs.user_data_dir("tuna", appauthor=False))
        url = env.get("TUNA_DATABASE_URL") or f"sqlite:///{data_dir / 'tuna.db'}"
        return cls(data_dir, url, env.get("TUNA_NB_MODE") or None)

    def data_folder(self, *below: str) -> Path:
        """A folder under the data folder, created for this user alone (0700).

        Raises SettingsError when it can't be created or written to.
        """
        folder = self.data_dir.joinpath(*below)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise self._unwritable(folder, e.strerror or str(e)) from e
        if not os.access(folder, os.W_OK | os.X_OK):
            raise self._unwritable(folder, "permission denied")
        return folder

    @staticmethod
    def _unwritable(folder: Path, why: str) -> SettingsError:
        return SettingsError(
            f"the data folder {folder} is not writable: {why}",
            "set TUNA_DATA_DIR to a folder of your own, or mend its permissions",
        )
