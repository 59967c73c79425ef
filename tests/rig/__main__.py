"""`python -m tests.rig [pytest's arguments]`: the tests of the rig, in namespaces of their own.

Everything (moto, SkyPilot's server, the instances, pytest) runs in a network without a way out, in a process namespace
that ends with its first process, and with mounts that nobody else sees: whatever dies, nothing is left behind. Needs
root. Ends with 3, and says why, where it cannot run; `--can-it` asks only that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.rig import golden
from tests.rig.rig import environment, run_folder

ROOT = Path(__file__).parents[2]
TOOLS = ("ip", "unshare", "mount", "chroot", "tar", "ssh", "rsync", "apt-get")
INSIDE, CAN_IT = "--inside", "--can-it"


def missing() -> list[str]:
    """What is not there and cannot be done without."""
    if os.geteuid() != 0:
        return ["root"]
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if (
        not lacking
        and subprocess.run(["unshare", "--net", "--mount", "true"], check=False, capture_output=True).returncode
    ):
        lacking.append("the right to make namespaces")
    return lacking


def main(arguments: list[str]) -> int:
    """Returns only where the rig can't run, or was asked only whether it can."""
    if lacking := missing():
        print(f"the rig did NOT run: it needs {', '.join(lacking)}", file=sys.stderr)
        return 3
    if golden.folder().resolve().is_relative_to("/tmp"):
        print("the rig did NOT run: TUNA_RIG_DIR is under /tmp, of which the rig has its own", file=sys.stderr)
        return 3
    if arguments == [CAN_IT]:
        return 0
    golden.prepare()
    apart = ["unshare", "--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    command = [*apart, sys.executable, "-m", "tests.rig", INSIDE, *arguments]
    sys.stdout.flush()
    os.chdir(ROOT)
    # In this process's place: whoever ends this ends all that is in the namespaces.
    return os.execvpe(command[0], command, environment())


def inside(arguments: list[str]) -> int:
    """The first process of the namespace: starts pytest and buries what is orphaned."""
    subprocess.run("mount --make-rprivate / && mkdir -p /run/netns", shell=True, check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    folder = run_folder()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "memory").mkdir(parents=True)
    _own_tmp(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16g,mode=755", "tmpfs", folder / "memory"], check=True)
    # A plain script when the first argument is one, for a look by hand.
    script = arguments[:1] and arguments[0].endswith(".py") and not Path(arguments[0]).name.startswith("test_")
    how = [] if script else ["-m", "pytest", "-m", "rig", "-p", "no:cacheprovider"]
    tests = [] if script or any(not each.startswith("-") for each in arguments) else ["tests/rig"]
    process = subprocess.Popen([sys.executable, *how, *arguments, *tests])
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            return os.waitstatus_to_exitcode(status)


def _own_tmp(folder: Path) -> None:
    """An empty /tmp, but for this checkout and its Python where they lie there."""
    ours = [path for path in dict.fromkeys((ROOT, Path(sys.prefix))) if path.is_relative_to("/tmp")]
    held = [folder / f"held-{number}" for number in range(len(ours))]
    for path, hold in zip(ours, held, strict=True):
        hold.mkdir()
        subprocess.run(["mount", "--rbind", path, hold], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"], check=True)
    for path, hold in zip(ours, held, strict=True):
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--rbind", hold, path], check=True)
    os.chdir(ROOT)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(inside(given[1:]) if given[:1] == [INSIDE] else main(given))
