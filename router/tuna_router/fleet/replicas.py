"""Replicas behind a balancer, addressed one by one: a set of them in, a list of backends out.

A balancer learns late that a replica is gone, and hides which one answers. So the router goes to each itself, as
to a backend of its own, with the balancer's headers, price and limits; the balancer is left for the time in which
no replica is known: one that was READY and is gone stands behind it, too, until it is forgotten.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tuna_router.errors import SettingsError
from tuna_router.settings import BackendSettings, check_url

MOST: Final = 100
_LONGEST_NAME: Final = 63
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica: `id` tells it from the others of its balancer, `url` is its base."""

    id: str
    url: str
    notice_url: str | None = None


def parse(data: object) -> list[Replica]:
    """A list of `{"id", "url", "notice_url"?}`. Raises SettingsError."""
    if not isinstance(data, list):
        raise SettingsError("replicas must be a list", 'for example [{"id": "1", "url": "http://10.0.0.1:8000"}]')
    if len(data) > MOST:
        raise SettingsError(f"{len(data)} replicas are too many", f"at most {MOST}")
    found: list[Replica] = []
    for item in data:
        if (
            not isinstance(item, dict)
            or item.keys() - {"id", "url", "notice_url"}
            or not {"id", "url"} <= item.keys()
        ):
            raise SettingsError("a replica is no {id, url, notice_url}", "give each an id and a url")
        name, notice = item["id"], item.get("notice_url")
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise SettingsError(f"{name!r} can't name a replica", "use letters, digits, '.', '_' and '-'")
        if any(other.id == name for other in found):
            raise SettingsError(f"two replicas are named {name!r}", "give every replica an id of its own")
        notice = None if notice is None else check_url(notice, "notice_url")
        found.append(Replica(name, check_url(item["url"]), notice))
    return found


def with_replicas(
    backends: Sequence[BackendSettings], balancer: str, replicas: Sequence[Replica]
) -> tuple[BackendSettings, ...]:
    """The backends with exactly these replicas of `balancer`, right after it.

    One at a known address keeps its name, whoever told of it. Raises SettingsError for what is no balancer's name.
    """
    behind = next((b for b in backends if b.name == balancer and b.balancer is None), None)
    if behind is None:
        raise SettingsError(f"there is no backend {balancer!r}", "known: " + ", ".join(b.name for b in backends))
    if any(len(behind.name) + 1 + len(replica.id) > _LONGEST_NAME for replica in replicas):
        raise SettingsError("the ids of these replicas are too long", f"{_LONGEST_NAME} with the balancer's name")
    result: list[BackendSettings] = []
    for backend in backends:
        if backend.balancer != balancer:
            result.append(backend)
        if backend is behind:
            known = {item.url: item for item in backends if item.balancer == balancer}
            result += [_backend(behind, replica, known.get(replica.url)) for replica in replicas]
    return tuple(result)


def with_headers_of_balancers(backends: Sequence[BackendSettings]) -> tuple[BackendSettings, ...]:
    """Every replica with the headers that its balancer has now."""
    headers = {backend.name: backend.headers for backend in backends}
    return tuple(
        backend if backend.balancer is None else dataclasses.replace(backend, headers=headers[backend.balancer])
        for backend in backends
    )


def _backend(behind: BackendSettings, replica: Replica, known: BackendSettings | None) -> BackendSettings:
    return dataclasses.replace(
        behind,
        name=known.name if known is not None else f"{behind.name}.{replica.id}",
        url=replica.url,
        balancer=behind.name,
        notice_url=replica.notice_url or (known.notice_url if known is not None else None),
        traffic_url=None,
        sync_url=None,
        replicas_url=None,
        keep_warm=False,
    )
