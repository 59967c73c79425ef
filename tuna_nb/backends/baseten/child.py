"""`truss push` in a process of its own.

The push is truss's to know: which questions come before it, how the archive is made and signed, which mutation
creates. Baseten also documents a push for programs by REST alone; it was not chosen, for it would be ours to keep
like truss's. In a process of its own, because in ours truss takes all AWS_* variables out of the process while it
uploads, reads `~/.trussrc`, `~/.aws` and the keyring, asks PyPI for a newer truss, and can't be stopped.

The process gets a home that is empty and goes away with it; the key reaches it as an environment variable only.

Source: https://docs.baseten.co/reference/cli/truss/overview, and truss 0.18.35 itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import site
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuna_nb.backends.base import Progress, ServiceRequest
from tuna_nb.backends.baseten import push
from tuna_nb.backends.lifecycle import unbroken
from tuna_nb.backends.rest import words
from tuna_nb.errors import (
    BackendError,
    CapacityError,
    ConflictError,
    CredentialsError,
    TunaError,
    UnclearError,
)

# truss.cli.cli can't be run as a module, and the script `truss` need not be on the PATH of a notebook.
_RUN: Final = "import sys; from truss.cli.cli import truss_cli; sys.exit(truss_cli(prog_name='truss'))"
_MOST_S: Final = 600.0
"""For a whole push, where each question of truss may take two minutes."""
_GRACE_S: Final = 30.0
"""For a push that is cancelled: as long as any other call that creates gets."""
_KILL_S: Final = 5.0
_TELL_S: Final = 15.0
_SETTINGS: Final = "[preferences]\ncheck_for_updates = false\ninclude_git_info = false\n"
_LEFT_OUT: Final = re.compile(
    r"(AWS|BASETEN|TRUSS|XDG)_.*|USER_TRUSSRC_PATH|.*(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)(_.*)?",
    re.IGNORECASE,
)
"""Variables that the child has no use for: settings of the user's truss and AWS, and everybody's keys."""


@dataclass(frozen=True)
class Account:
    """url: of the console, whose GraphQL truss speaks. s3_url: in place of AWS's own. sign_in: what mends a key."""

    url: str
    key: str
    s3_url: str | None
    sign_in: str

    def __repr__(self) -> str:
        return f"<account at {self.url}>"


async def run(request: ServiceRequest, account: Account, progress: Progress, pace: float) -> str:
    """Push, and return the model's id.

    Cancelled, it goes on for half a minute and is then ended, and only then CancelledError goes on: a create that
    is under way can't be called back, and after this call nobody makes anything any more, so that a listing tells
    all there is. Raises CredentialsError, ConflictError, CapacityError and BackendError where Baseten refused;
    UnclearError for every other end, which may be that of a create.
    """
    if importlib.util.find_spec("truss") is None:
        raise BackendError("baseten: truss is not installed", "pip install 'tuna-nb[baseten]'")
    stop = asyncio.Event()
    pushing = asyncio.ensure_future(_pushed(request, account, stop))
    progress(f"truss pushes {request.name}", None)
    try:
        while not (await asyncio.wait({pushing}, timeout=_TELL_S))[0]:
            progress(f"truss is still pushing {request.name}", None)
    except BaseException:  # cancelled, too: a push that is under way must be over when this is
        timer = asyncio.get_running_loop().call_later(_GRACE_S * pace, stop.set)
        # What became of it is for the next listing to tell.
        with contextlib.suppress(asyncio.CancelledError, TunaError):
            await unbroken(pushing)
        timer.cancel()
        raise
    return pushing.result()


async def _pushed(request: ServiceRequest, account: Account, stop: asyncio.Event) -> str:
    with tempfile.TemporaryDirectory(prefix="tuna-baseten-", ignore_cleanup_errors=True) as told:
        folder = Path(told)
        await asyncio.to_thread(_fill, folder, request, account.s3_url)
        process = await asyncio.create_subprocess_exec(
            *argv(folder, request),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env=environment(folder, account, os.environ),
            # Ctrl-C in a terminal is for us to act on, not for truss in the middle of a create.
            start_new_session=True,
        )
        talking = asyncio.ensure_future(process.communicate())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({talking, stopping}, timeout=_MOST_S, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for end in (process.terminate, process.kill):
            if not talking.done():
                with contextlib.suppress(ProcessLookupError):
                    end()
                await asyncio.wait({talking}, timeout=_KILL_S)
        out, err = await talking
    return _model(request.name, process.returncode, out.decode(errors="replace"), err, account)


def argv(folder: Path, request: ServiceRequest) -> list[str]:
    """The command line; no secret is in it."""
    line = [sys.executable, "-c", _RUN, "push", str(folder / "model"), "--non-interactive", "--output=json"]
    line += [f"--environment={push.ENVIRONMENT}", f"--deploy-timeout-minutes={push.DEPLOY_TIMEOUT_MINUTES}"]
    line.append(f"--labels={json.dumps({'tuna-deployment': request.deployment_id})}")
    if "team" in request.options:
        line.append(f"--team={request.options['team']}")
    return line


def environment(folder: Path, account: Account, ours: Mapping[str, str]) -> dict[str, str]:
    """Ours, less what is not truss's to see, with a home of its own."""
    kept = {name: value for name, value in ours.items() if not _LEFT_OUT.fullmatch(name)}
    home = folder / "home"
    return {
        **kept,
        "HOME": str(home),
        "USERPROFILE": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "USER_TRUSSRC_PATH": str(home / ".trussrc"),
        # A truss that is installed for the user alone is below the real home.
        "PYTHONUSERBASE": site.getuserbase(),
        "TMPDIR": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        "BASETEN_TRUSS_AUTH_REMOTE_URL": account.url,
        "BASETEN_TRUSS_AUTH_API_KEY": account.key,
        "BASETEN_TRUSS_AUTH_KEYRING_DISABLED": "true",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
        "PYTHONIOENCODING": "utf-8",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "1000",
    }


def _fill(folder: Path, request: ServiceRequest, s3_url: str | None) -> None:
    import yaml

    settings = folder / "home" / ".config" / "truss" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(_SETTINGS)
    model = folder / "model"
    model.mkdir()
    (model / "config.yaml").write_text(yaml.safe_dump(push.config(request), sort_keys=False))
    if s3_url is not None:
        # truss takes AWS_ENDPOINT_URL away before it uploads; this file it lets botocore read.
        aws = folder / "home" / ".aws" / "config"
        aws.parent.mkdir()
        aws.write_text(
            f"[default]\nendpoint_url = {s3_url}\nregion = us-east-1\ns3 =\n    addressing_style = path\n"
        )


def _model(name: str, rc: int | None, out: str, err: bytes, account: Account) -> str:
    """The model's id, from what truss said. Raises what `run` raises."""
    try:
        told: Any = json.loads(out)
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    if rc == 0 and told.get("model_id"):
        return str(told["model_id"])
    error = told.get("error")
    error = error if isinstance(error, dict) else {}
    status = int(error.get("status_code") or 0)
    said = str(error.get("message") or "")
    if error.get("response_body"):
        said = words(json.dumps(error["response_body"])) or said
    if not said:
        lines = err.decode(errors="replace").strip().splitlines()
        said = (lines[-1].strip() if lines else "") or f"truss ended with {rc} and without a word"
    # Nothing that truss says has the key in it, as far as we know it; a server's answer may repeat anything.
    said = f"baseten: truss push of {name}: {' '.join(said.replace(account.key, '***').split())[:400]}"
    said += f" ({status})" if status else ""
    if status in (401, 403):
        raise CredentialsError(said, account.sign_in)
    if status == 409:
        raise ConflictError(said)
    if (400 <= status < 500 and status != 408) or error.get("error_code"):
        if any(word in said.lower() for word in ("capacity", "quota", "limit exceeded")):
            raise CapacityError(said, "choose another GPU, or ask Baseten for quota")
        if status == 429:
            raise BackendError(said, "it limits how often it may be asked; try again in a minute")
        raise BackendError(said, "Baseten refuses this; truss's own words are above")
    raise UnclearError(said, f"try again; is {account.url} reachable from here?")
