"""What the daemon and its clients say to each other, both directions, so that neither side guesses."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tuna_nb import errors
from tuna_nb.backends.base import Kind, Replica, State
from tuna_nb.errors import TunaError

ANNOUNCEMENT: Final = "cloud.json"
LOG_FILE: Final = "cloud.log"
LOCK_FILE: Final = "cloud.lock"


class Leaving(TunaError):
    """The daemon is on its way out and takes nothing new; the next one will. Clients ask again by themselves."""


@dataclass(frozen=True, slots=True)
class ResourceView:
    """One resource as the cloud shows it. observed_at: Unix seconds, by the daemon's clock."""

    name: str
    uid: str
    deployment_id: str
    kind: Kind
    url: str
    state: State
    replicas: tuple[Replica, ...]
    billing: bool
    detail: str
    observed_at: float


def resource_to_json(view: ResourceView) -> dict[str, Any]:
    return asdict(view)


def resource_from_json(shown: Mapping[str, Any]) -> ResourceView:
    """Raises KeyError, TypeError or ValueError where `shown` is none."""
    replicas = tuple(Replica(**{**r, "state": State(r["state"])}) for r in shown["replicas"])
    return ResourceView(
        **{**shown, "kind": Kind(shown["kind"]), "state": State(shown["state"]), "replicas": replicas}
    )


def error_to_json(error: TunaError) -> dict[str, Any]:
    return {"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}


def error_from_json(shown: Mapping[str, Any]) -> TunaError:
    """The same error that was raised in the daemon; BackendError where its kind is not known here."""
    told = shown["error"]
    if told["kind"] == Leaving.__name__:
        return Leaving(told["message"], told["hint"])
    known = getattr(errors, str(told["kind"]), None)
    if not (isinstance(known, type) and issubclass(known, TunaError)):
        known = errors.BackendError
    return known(told["message"], told["hint"])


@dataclass(frozen=True, slots=True)
class Announcement:
    """How to reach the daemon: the content of cloud.json, which only its owner can read."""

    pid: int
    create_time: float
    port: int
    token: str

    def __repr__(self) -> str:
        return f"<Announcement pid={self.pid} port={self.port}>"

    @property
    def is_alive(self) -> bool:
        """Whether the very process that wrote it still runs."""
        import psutil

        if self.pid == os.getpid():
            return True
        try:
            process = psutil.Process(self.pid)
            # Seconds of slack: the time of birth moves with a corrected clock. The token decides in the end.
            return abs(process.create_time() - self.create_time) < 5 and (process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def read_announcement(folder: Path) -> Announcement | None:
    """What cloud.json says; None where there is none. Raises BackendError where it can't be read."""
    try:
        return Announcement(**json.loads((folder / ANNOUNCEMENT).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as exc:
        raise errors.BackendError(
            f"{folder / ANNOUNCEMENT} can't be read: {exc}", "remove it and try again"
        ) from exc
