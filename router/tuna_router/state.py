"""The configuration file: read at start, written back when `/router/config` changes something.

The file holds hashes of keys, but backend headers as they are: its mode is 0600. It is replaced
atomically, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tuna_router.errors import SettingsError
from tuna_router.settings import Settings, parse_settings, to_json


def load(path: Path) -> Settings:
    """The settings in `path` (JSON, or YAML where the name ends so). Raises SettingsError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"there is no file {path}", "create it with {} in it, or leave out --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"can't read {path}: {error}", "check the path and its mode") from error
    data: Any
    if _is_yaml(path):
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            place = " ".join(str(error).split())
            raise SettingsError(
                f"{path} is not YAML: {place}", "mend the file, or start without --config"
            ) from error
    else:
        try:
            data = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise SettingsError(
                f"{path} is not JSON: {error}", "mend the file, or start without --config"
            ) from error
    try:
        return parse_settings({} if data is None else data)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.message}", error.hint) from error


def save(path: Path, settings: Settings) -> None:
    """Replace `path` by `settings`, mode 0600. Raises SettingsError when it can't be written."""
    data = to_json(settings, mask=False)
    if _is_yaml(path):
        import yaml

        text = yaml.safe_dump(data, sort_keys=False)
    else:
        text = json.dumps(data, indent=2) + "\n"
    write_private(path, text)


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, readable by its owner only. Raises SettingsError."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # mkstemp's mode is 0600
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise SettingsError(f"can't write {path}: {error.strerror}", "check that its folder is writable") from error


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in {".yaml", ".yml"}
