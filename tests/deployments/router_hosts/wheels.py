"""A wheel of an installed package, made of its installed files."""

from __future__ import annotations

import zipfile
from importlib.metadata import distribution
from pathlib import Path


def rebuilt(name: str, into: Path) -> Path:
    """For the Python and platform that it is installed for."""
    found = distribution(name)
    lines = (found.read_text("WHEEL") or "").splitlines()
    tag = next(line.partition(": ")[2] for line in lines if line.startswith("Tag: "))
    stem = (found.metadata["Name"]).replace("-", "_").replace(".", "_")
    path = into / f"{stem}-{found.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in found.files or ():
            inside = not str(file).startswith("..") and "__pycache__" not in str(file)
            if inside and file.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                archive.write(str(found.locate_file(file)), str(file))
        record = next(str(f) for f in found.files or () if str(f).endswith(".dist-info/RECORD"))
        archive.writestr(record, "".join(f"{n},,\n" for n in archive.namelist()))
    return path
