"""Where in Azure: subscription, resource group, region and environment, from options, the environment or `az`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuna_nb.backends.base import ServiceRequest
from tuna_nb.errors import BackendError, RequestError

SUBSCRIPTION: Final = "AZURE_SUBSCRIPTION_ID"
GROUP: Final = "AZURE_RESOURCE_GROUP"
REGION: Final = "AZURE_REGION"
ENVIRONMENT: Final = "AZURE_CONTAINERAPPS_ENVIRONMENT"
_ID: Final = re.compile(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/.*/([^/]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """environment: the user's own by name, or None for Tuna's."""

    subscription: str
    group: str
    region: str
    environment: str | None = None


def of(request: ServiceRequest) -> Place:
    """Raises RequestError where something is told nowhere."""
    options = request.options
    subscription = options.get("azure_subscription") or default_subscription()
    group = options.get("azure_resource_group") or os.environ.get(GROUP, "").strip()
    where = request.region or options.get("azure_region") or os.environ.get(REGION, "").strip()
    if not subscription:
        raise RequestError(
            "azure: no subscription is told",
            f"--azure-subscription ID, or export {SUBSCRIPTION}=$(az account show --query id -o tsv)",
        )
    if not group:
        raise RequestError(
            "azure: no resource group is told", f"--azure-resource-group NAME, or export {GROUP}=NAME"
        )
    if not where:
        raise RequestError("azure: no region is told", f"--azure-region swedencentral, or export {REGION}=...")
    environment = options.get("azure_environment") or os.environ.get(ENVIRONMENT, "").strip()
    return Place(subscription, group, region(where), environment or None)


def default_subscription(environ: Mapping[str, str] | None = None) -> str:
    """AZURE_SUBSCRIPTION_ID, else the one that `az account set` has chosen; empty where there is neither."""
    env = os.environ if environ is None else environ
    if told := env.get(SUBSCRIPTION, "").strip():
        return told
    profile = Path(env.get("AZURE_CONFIG_DIR") or "~/.azure").expanduser() / "azureProfile.json"
    try:
        # `az` writes it with a byte-order mark.
        known = json.loads(profile.read_text(encoding="utf-8-sig"))["subscriptions"]
        return next((str(one["id"]) for one in known if one.get("isDefault")), "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def default_region() -> str:
    """AZURE_REGION, else one in the US, whose prices are the published ones."""
    return region(os.environ.get(REGION, "").strip() or "eastus")


def region(name: str) -> str:
    """`West US 3`, as ARM shows a region, is `westus3`, as it takes one."""
    return name.replace(" ", "").lower()


def parts(resource_id: str) -> tuple[str, str, str]:
    """Subscription, resource group and name of an ARM id. Raises BackendError."""
    found = _ID.fullmatch(resource_id)
    if found is None:
        raise BackendError(f"azure: {resource_id!r} is no id of a resource", "find it by its name instead")
    return found[1], found[2], found[3]


def word(told: object) -> str:
    """An SDK's enumeration, which may be a member or plain text, as Azure's own word; empty for None."""
    return "" if told is None else str(getattr(told, "value", told))


def same(one: str, other: str) -> bool:
    """ARM's ids and names differ in case from call to call."""
    return one.lower() == other.lower()
