"""The machine image of the rig's cloud: what differs from this machine's own root, built once and kept as a tar file.

An instance's root is an overlay: the golden layer over this machine's `/`. The layer holds what SkyPilot would
otherwise fetch while it sets a machine up (its Python environments, Ray, uv, rsync, sshd), so that an instance needs
nothing from outside. Overlay refuses an upper layer that lies inside its lower one, so it is unpacked into memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

USER = "ubuntu"
UID = 2000
"""Of the images' user; this machine may have a user 1000 of its own."""

PACKAGES = "cron openssh-server rsync sudo iproute2 iptables netcat-openbsd procps curl lsof psmisc ca-certificates python3-venv"
RAY = "2.9.3"
"""What SkyPilot 0.14 installs on an instance: sky/skylet/constants.py, SKY_REMOTE_RAY_VERSION."""

SERVING = ("fastapi", "httptools", "uvloop", "certifi", "prometheus-client", "pyyaml", "httpx", "h11", "hatchling")
"""What the stand-in engine and the router import, and what builds the router's wheel; versions as in this environment."""

WHEELS = "/opt/tuna-wheels"
"""On the instances."""

PASSED = ("PIP_", "UV_", "SSL_", "REQUESTS_", "CURL_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
"""Beginnings of the variables that say how packages are fetched on this machine."""


def folder() -> Path:
    """Where the rig keeps the golden layer and a run's files: TUNA_RIG_DIR, or a folder of its own in /var/tmp."""
    return Path(os.environ.get("TUNA_RIG_DIR", "/var/tmp/tuna-rig"))


def recipe() -> str:
    """What the layer is made of, in short: another recipe is another file."""
    parts = (Path(__file__).read_text(), importlib.metadata.version("skypilot"), os.uname().release)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def archive() -> Path:
    return folder() / f"golden-{recipe()}.tar"


def wheels() -> Path:
    """What SkyPilot's server needs to build the wheel that it sends to its instances."""
    return folder() / f"wheels-{recipe()}"


def prepare() -> None:
    """Builds the layer where it is missing: three to five minutes, and the only time that anything is fetched."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _prepare()


def _prepare() -> None:
    if archive().exists() and wheels().exists():
        return
    for old in folder().glob("golden-*"):
        old.unlink()
    for old in folder().glob("wheels-*"):
        shutil.rmtree(old)
    own = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child=SIGKILL",
        sys.executable,
        "-m",
        "tests.rig.golden",
    ]
    subprocess.run(own, check=True, cwd=Path(__file__).parents[2])


def unpack(into: Path) -> None:
    """Fills `into`, an empty folder of a tmpfs, with the layer."""
    subprocess.run(["tar", "--xattrs", "--xattrs-include=*", "-xf", archive(), "-C", into], check=True)


def build() -> None:
    """Runs in mount and process namespaces of its own: nothing of it is left behind, however it ends."""
    work = folder() / "build"
    work.mkdir(exist_ok=True)
    subprocess.run("mount --make-rprivate /", shell=True, check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8g,mode=755", "tmpfs", work], check=True)
    for name in ("upper", "work", "root"):
        (work / name).mkdir()
    root = work / "root"
    layers = f"lowerdir=/,upperdir={work}/upper,workdir={work}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, root], check=True)
    subprocess.run(["mount", "--rbind", "/dev", root / "dev"], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "tmp"], check=True)
    _install_system(root)
    _install_python(root)
    wheels().mkdir(exist_ok=True)
    wanted = [sys.executable, "-m", "pip", "download", "-q", "-d", str(wheels()), "setuptools", "wheel"]
    subprocess.run(wanted, check=True)
    unfinished = archive().with_suffix(".part")
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-cf", unfinished, "-C", work / "upper", "."], check=True
    )
    unfinished.rename(archive())


def _install_system(root: Path) -> None:
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    _inside(root, "apt-get update -qq && apt-get install -y -qq --no-install-recommends " + PACKAGES)
    _inside(root, f"useradd -m -s /bin/bash -u {UID} -p '*' {USER}")  # '*': sshd refuses the key of a locked user
    (root / "etc/sudoers.d/90-rig").write_text(f"{USER} ALL=(ALL) NOPASSWD:ALL\n")
    systemctl = root / "usr/local/bin/systemctl"
    systemctl.write_text("#!/bin/sh\nexit 0\n")
    systemctl.chmod(0o755)
    _inside(root, "ssh-keygen -A")
    _inside(root, "apt-get clean; rm -rf /var/lib/apt/lists/*")


def _install_python(root: Path) -> None:
    """The environments where SkyPilot looks for them, and what the stand-in engine and the router import."""
    version = importlib.metadata.version("skypilot")
    subprocess.run(["install", "-d", "-o", str(UID), "-g", str(UID), root / WHEELS.lstrip("/")], check=True)
    _inside(root, "python3 -m venv /opt/uv && /opt/uv/bin/pip install -q uv", user=USER, prepare="/opt/uv")
    needs = f"wheel 'setuptools<70' 'click<8.3.0' 'ray[default]=={RAY}' pydantic-core==2.41.1"
    requirements = [each.partition(";")[0].strip() for each in importlib.metadata.requires("tuna-router") or ()]
    router = " ".join(f"'{each}'" for each in requirements)
    serving = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in SERVING)
    steps = (
        "mkdir -p ~/.local/bin && cp /opt/uv/bin/uv ~/.local/bin/",
        "uv=~/.local/bin/uv",
        "$uv venv -q --seed --python /usr/bin/python3 ~/skypilot-runtime",
        "$uv venv -q --seed --relocatable --system-site-packages --python /usr/bin/python3 ~/sky-user-env",
        f"VIRTUAL_ENV=~/skypilot-runtime $uv pip install -q {needs} 'skypilot[aws,remote]=={version}'",
        "VIRTUAL_ENV=~/skypilot-runtime $uv pip uninstall -q skypilot",
        f"VIRTUAL_ENV=~/sky-user-env $uv pip install -q {serving}",
        "~/skypilot-runtime/bin/python -m compileall -q ~/skypilot-runtime/lib || true",
        # What is built or installed on the machines later: SkyPilot's wheel by its controller, the router by Tuna.
        f"/opt/uv/bin/pip download -q -d {WHEELS} setuptools wheel {router}",
        "rm -rf ~/.cache",
    )
    _inside(root, "set -e; " + "; ".join(steps), user=USER)


def _inside(root: Path, command: str, user: str | None = None, prepare: str | None = None) -> None:
    """Runs a line of shell in the layer. prepare: a folder to be made for the user first."""
    home = f"/home/{user}" if user else "/"
    variables = {k: v for k, v in os.environ.items() if k.startswith(PASSED)} | {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home,
        "DEBIAN_FRONTEND": "noninteractive",
    }
    if prepare:
        subprocess.run(["install", "-d", "-o", str(UID), "-g", str(UID), root / prepare.lstrip("/")], check=True)
    who = [f"--userspec={UID}:{UID}"] if user else []
    command = f"cd {home}; {command}"
    subprocess.run(
        ["chroot", *who, root, "/bin/bash", "-c", command], env=variables, check=True, stdin=subprocess.DEVNULL
    )


if __name__ == "__main__":
    build()
