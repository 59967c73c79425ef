"""What Azure's words about an app, its revisions and replicas mean.

A GPU that is not free shows as a replica that Azure is still assigning (`AssigningReplica`), for hours at times
(microsoft/azure-container-apps#1579): it waits, and costs nothing. Which field has that word is written nowhere: it
is looked for in the details, and a replica without any container is taken for one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from tuna_nb.backends.azure.place import word
from tuna_nb.backends.base import Replica, State

_RESTARTS: Final = 3
_CRASHES: Final = ("crashloop", "activationfailed", "imagepull", "errimage")


def replica(found: Any) -> Replica:
    """One of the SDK's replicas."""
    told = found.properties
    containers = list(told.containers or [])
    details = [str(told.running_state_details or ""), *(str(c.running_state_details or "") for c in containers)]
    detail = next((text for text in details if text), word(told.running_state))
    started = told.created_time.timestamp() if told.created_time else time.time()
    return Replica(found.name, _replica_state(told, containers, detail), started, None, detail)


def _replica_state(told: Any, containers: Sequence[Any], detail: str) -> State:
    if word(told.running_state) == "Running" and containers and all(c.ready for c in containers):
        return State.READY
    plain = detail.replace(" ", "").lower()
    crashed = any((c.restart_count or 0) >= _RESTARTS for c in containers)
    if crashed or any(word in plain for word in _CRASHES):
        return State.FAILED
    # Nothing runs of it: Azure has found no machine yet.
    if "assigning" in plain or not containers:
        return State.WAITING
    return State.STARTING


def judge(app: Any, revisions: Sequence[Any], replicas: Sequence[Replica]) -> tuple[State, str]:
    """State and Azure's words for the whole app. revisions: the active ones, newest last."""
    provisioning = word(app.properties.provisioning_state)
    if provisioning == "Deleting":
        return State.STOPPING, "Azure is deleting it"
    states = {one.state for one in replicas}
    if State.READY in states:
        return State.READY, ""
    why = failure(revisions)
    if provisioning == "Failed":
        return State.FAILED, why or "provisioning failed"
    for state in (State.FAILED, State.STARTING, State.WAITING):
        if state in states:
            detail = next(one.detail for one in replicas if one.state is state)
            if state is State.WAITING:
                return state, f"Azure is looking for a machine with that GPU: {detail}"
            return state, detail
    if why:
        return State.FAILED, why
    running = word(revisions[-1].properties.running_state) if revisions else ""
    if provisioning == "InProgress" or running in ("Activating", "Processing", "Unknown", "AssigningReplica"):
        return State.STARTING if running != "AssigningReplica" else State.WAITING, running or provisioning
    return State.IDLE, running


def failure(revisions: Sequence[Any]) -> str:
    """Why the newest revision failed, empty where it did not."""
    if not revisions:
        return ""
    told = revisions[-1].properties
    if told.provisioning_error:
        return str(told.provisioning_error)
    running = word(told.running_state)
    if "failed" in running.lower() or word(told.provisioning_state) == "Failed":
        return f"revision {revisions[-1].name} is {running or 'Failed'}"
    return ""
