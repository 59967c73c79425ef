"""The wheel of the tuna-router that is installed here, for the machines that run one.

Made from the installed files, wherever they came from: a registry, a checkout, one with changes. So a machine
runs what this one would, and making it needs neither a build tool nor the network.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tuna_nb.errors import RouterError

_LONG_AGO = (2020, 1, 1, 0, 0, 0)
"""Every file's time: equal files make an equal wheel."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """build: tells two wheels of the same version apart, by their content."""

    name: str
    version: str
    build: str
    data: bytes


def make() -> Wheel:
    """Raises RouterError where tuna-router is not installed whole."""
    import tuna_router

    folder = Path(tuna_router.__file__).parent
    try:
        installed = distribution("tuna-router")
    except PackageNotFoundError:
        raise RouterError("tuna-router is not installed here", "`pip install tuna-nb` brings it") from None
    version = tuna_router.__version__
    info = f"tuna_router-{version}.dist-info"
    files = {
        f"tuna_router/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }
    files[f"{info}/METADATA"] = _metadata(installed.read_text("METADATA") or "", version)
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tuna-nb\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\ntuna-router = tuna_router.__main__:main\n"
    return Wheel(
        f"tuna_router-{version}-py3-none-any.whl",
        version,
        _build(files),
        _packed(files, f"{info}/RECORD"),
    )


def _metadata(text: str, version: str) -> bytes:
    """The metadata without its long description, for the version that the files say they are."""
    head = text.partition("\n\n")[0].splitlines()
    lines = [
        line for line in head if not line.startswith(("Version:", "Description-Content-Type:", "License-File:"))
    ]
    at = next((i for i, line in enumerate(lines) if line.startswith("Name:")), 0)
    return ("\n".join([*lines[: at + 1], f"Version: {version}", *lines[at + 1 :]]) + "\n").encode()


def _build(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:12]


def _packed(files: dict[str, bytes], record: str) -> bytes:
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, record: ("\n".join([*rows, f"{record},,"]) + "\n").encode()}.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return out.getvalue()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
