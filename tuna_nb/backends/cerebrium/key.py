"""A service account's key: a JWT, which names its project and may end."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Final

_CLAIMS: Final = ("project_id", "projectId", "sub", "project")


def project_of(key: str) -> str | None:
    """The project that a key was made for, from the claims that Cerebrium's own client looks at."""
    claims = _claims(key)
    inner = claims.get("custom")
    for where in (claims, inner if isinstance(inner, dict) else {}):
        for claim in _CLAIMS:
            value = where.get(claim)
            if isinstance(value, str) and value.startswith(("p-", "dev-p-")):
                return value
    return None


def ends_at(key: str) -> float | None:
    """Unix seconds from which the key is refused; None for one that lasts."""
    ends = _claims(key).get("exp")
    return float(ends) if isinstance(ends, int | float) else None


def _claims(key: str) -> dict[str, Any]:
    """What the key says of itself, its signature not looked at; empty for what is no JWT."""
    parts = key.split(".")
    if len(parts) != 3:
        return {}
    try:
        said = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
