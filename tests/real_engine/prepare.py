"""Makes the venv with real vLLM on CPU that the tests in this folder run: `python tests/real_engine/prepare.py`.

The venv is `.venv-vllm` at the root of the repository, or the folder that TUNA_VLLM_VENV names. It is made anew when
requirements.txt has changed, and otherwise left as it is. Only the standard library is used here.

uv installs in seconds what takes pip minutes, but it does not read pip's configuration, so that is handed on.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
UV = "uv==0.13.8"

UV_NAMES = {
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
"""pip's settings, and the environment variables by which uv takes the same."""


class PrepareError(Exception):
    """The venv can't be made; `hint` is what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def venv_folder() -> Path:
    """Where the venv is, or is to be."""
    return Path(os.environ.get("TUNA_VLLM_VENV") or ROOT / ".venv-vllm").absolute()


def stamp_of(venv: Path) -> Path:
    """The file that says with what a finished venv was made."""
    return venv / ".tuna-prepared"


def fingerprint() -> str:
    """What the venv depends on."""
    made_of = [REQUIREMENTS.read_text(), UV, platform.python_version(), platform.machine()]
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()


def is_ready(venv: Path) -> bool:
    """Whether the venv is finished, was made for these requirements, and its Python still runs."""
    stamp = stamp_of(venv)
    if not stamp.is_file() or stamp.read_text().strip() != fingerprint():
        return False
    python = venv / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", ""], check=False).returncode == 0


def pip_settings(listing: str) -> dict[str, str]:
    """The settings that `pip config list` shows, by their bare names; the environment beats a file, as for pip."""
    found: dict[str, tuple[int, str]] = {}
    ranks = {"global": 0, "install": 1, ":env:": 2}
    for line in listing.splitlines():
        name, equals, text = line.partition("=")
        section, dot, option = name.rpartition(".")
        if not equals or not dot or section not in ranks:
            continue
        rank = ranks[section]
        if rank >= found.get(option, (-1, ""))[0]:
            found[option] = (rank, str(ast.literal_eval(text)))
    return {option: text for option, (_, text) in found.items()}


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with pip's settings as uv's; what is set for uv already stays."""
    # pip takes the best version from all of its indexes, uv only from the first that knows the package.
    made = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option, name in UV_NAMES.items():
        if settings.get(option):
            words = settings[option].split()
            made[name] = (",".join if option == "find-links" else " ".join)(words)
    return {**made, **environment}


def prepare(venv: Path) -> None:
    """Make the venv. Raises PrepareError where it can't be made."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise PrepareError(
            f"vLLM for CPU is pinned for Linux on x86_64, not {sys.platform} on {platform.machine()}",
            "run `make test` here, and this stage on a Linux x86_64 machine",
        )
    if venv.exists():
        if not (venv / "pyvenv.cfg").is_file() and (not venv.is_dir() or any(venv.iterdir())):
            raise PrepareError(f"{venv} is there and is no venv", "set TUNA_VLLM_VENV to a folder for it alone")
        say(f"{venv} is unfinished or was made for other requirements: making it anew")
        shutil.rmtree(venv)
    say(f"making {venv}")
    run([sys.executable, "-m", "venv", str(venv)], "Python can't make a venv", "install Python's venv module")
    python = str(venv / "bin" / "python")
    say(f"installing {UV}")
    quietly = ["--quiet", "--disable-pip-version-check"]
    reach = "see that pip can install packages here (`pip config list` shows from where)"
    run([python, "-m", "pip", "install", *quietly, UV], f"{UV} can't be installed", reach)
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    environment = uv_environment(pip_settings(listing.stdout), os.environ)
    say(f"installing {REQUIREMENTS.name} (about 0.6 GB to fetch, 2 GB on disk)")
    install = [str(venv / "bin" / "uv"), "pip", "install", "--quiet", "--no-deps", "--compile-bytecode"]
    run(
        [*install, "--python", python, "--requirement", str(REQUIREMENTS)],
        "vLLM for CPU can't be installed",
        "torch's +cpu wheel is on no default index: name a place that has it in PIP_FIND_LINKS or "
        "PIP_EXTRA_INDEX_URL",
        environment,
    )
    say("checking that it starts")
    probe = "import torch, vllm.version; print(torch.__version__, vllm.version.__version__)"
    run([python, "-c", probe], "vLLM was installed but can't be imported", "look at the traceback above")
    stamp_of(venv).write_text(fingerprint() + "\n")


def run(command: list[str], failed: str, hint: str, environment: Mapping[str, str] | None = None) -> None:
    try:
        subprocess.run(command, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        status = exc.returncode if isinstance(exc, subprocess.CalledProcessError) else exc
        raise PrepareError(f"{failed} ({status})", hint) from exc


def say(text: str) -> None:
    print(f"real_engine: {text}", flush=True)


def main() -> NoReturn:
    venv = venv_folder()
    started = time.monotonic()
    if is_ready(venv):
        say(f"{venv} is ready")
        sys.exit(0)
    try:
        prepare(venv)
    except (PrepareError, OSError) as exc:
        hint = exc.hint if isinstance(exc, PrepareError) else "see that the folder can be written"
        print(f"real_engine: {exc}\n  {hint}", file=sys.stderr)
        sys.exit(1)
    say(f"{venv} is ready after {time.monotonic() - started:.0f} s")
    sys.exit(0)


if __name__ == "__main__":
    main()
