"""Names of resources at providers: ours are told by them, where a provider has neither tags nor labels.

32 characters at most, the narrowest limit (Azure Container Apps): lower-case letters, digits, single dashes.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 32
_OURS: Final = re.compile(r"tuna-(?:[a-z0-9-]+-)?([0-9a-f]{10})-(serverless|spot|router)")


def resource_name(service_name: str, deployment_id: str, role: str) -> str:
    """Unique at the provider by the deployment's id, and begun like the deployment for a reader of its console."""
    readable = service_name[: LONGEST - len(f"tuna--{deployment_id}-{role}")].strip("-")
    return "-".join(("tuna", *((readable,) if readable else ()), deployment_id, role))


def deployment_of(name: str) -> str | None:
    """The deployment's id in a name of ours; None for anybody else's."""
    ours = _OURS.fullmatch(name)
    return ours[1] if ours else None
