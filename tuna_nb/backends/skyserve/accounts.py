"""Which clouds this user can rent from, seen from files and the environment alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tuna_nb.backends.skyserve.said import SERVER
from tuna_nb.backends.skyserve.task import CLOUDS

_VARIABLES: Final = {
    "aws": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"),
    "gcp": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "azure": ("AZURE_CLIENT_ID",),
}


def server() -> str | None:
    """The API server's address, where it is not on this machine."""
    return os.environ.get(SERVER, "").strip() or None


def signed_in() -> tuple[str, ...]:
    """The clouds whose credentials are on this machine."""
    return tuple(cloud for cloud in CLOUDS if _here(cloud))


def clouds_here() -> tuple[str, ...]:
    """The clouds that can be asked for: with an API server elsewhere, which has credentials of its own, any."""
    return CLOUDS if server() else signed_in()


def _here(cloud: str) -> bool:
    if any(os.environ.get(name) for name in _VARIABLES[cloud]):
        return True
    return any(path.is_file() for path in _files(cloud))


def _files(cloud: str) -> list[Path]:
    """Where the cloud's own tool keeps credentials."""
    if cloud == "aws":
        return [
            Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser(),
            Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser(),
        ]
    if cloud == "gcp":
        folder = Path(os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud").expanduser()
        return [folder / "application_default_credentials.json"]
    return [Path(os.environ.get("AZURE_CONFIG_DIR") or "~/.azure").expanduser() / "azureProfile.json"]
