"""Everything that Azure must have before a deploy, each its own row; nothing is created to find out."""

from __future__ import annotations

import importlib.util
from typing import Any, Final

from tuna_nb.backends.azure import place as places
from tuna_nb.backends.azure.app import PROFILES
from tuna_nb.backends.azure.arm import SIGN_IN, Arm
from tuna_nb.backends.azure.environments import Environments, profile_in
from tuna_nb.backends.azure.place import Place
from tuna_nb.backends.base import Check, ServiceRequest
from tuna_nb.errors import BackendError, CredentialsError, NotFoundError, RequestError
from tuna_nb.secrets import hugging_face_token

PACKAGES: Final = ("azure.identity", "azure.mgmt.appcontainers")
NAMESPACES: Final = ("Microsoft.App", "Microsoft.OperationalInsights")
_QUOTA: Final = {
    "T4": "Managed Environment Consumption T4 Gpus",
    "A100_80GB": "Managed Environment Consumption NCA100 Gpus",
}


def installed() -> bool:
    """Whether the extra is here; imports none of it."""
    try:
        return all(importlib.util.find_spec(package) is not None for package in PACKAGES)
    except ModuleNotFoundError:
        return False


async def rows(arm: Arm, environments: Environments, request: ServiceRequest | None) -> list[Check]:
    """In the order in which they are to be mended; what needs an earlier row that failed is left out."""
    if not installed():
        return [Check("package", False, "Azure's SDK is not installed", "pip install 'tuna-nb[azure]'")]
    found = [Check("package", True, "Azure's SDK is installed")]
    try:
        place: Place | None = places.of(request) if request is not None else None
    except RequestError as exc:
        return [*found, Check("settings", False, exc.message, exc.hint)]
    subscription = place.subscription if place is not None else places.default_subscription()
    if not subscription:
        fix = f"export {places.SUBSCRIPTION}=$(az account show --query id -o tsv)"
        return [*found, Check("subscription", False, "no subscription is told", fix)]
    try:
        told = await arm.get(
            subscription, "the subscription", f"/subscriptions/{subscription}?api-version=2022-12-01"
        )
    except CredentialsError as exc:
        return [*found, Check("sign-in", False, exc.message, exc.hint)]
    except BackendError as exc:
        return [*found, Check("subscription", False, exc.message, exc.hint or SIGN_IN)]
    found += [
        Check("sign-in", True, "Azure accepts the credential"),
        Check(
            "subscription", True, f"subscription {told.get('displayName', subscription)!r} is {told.get('state')}"
        ),
    ]
    registered = [await _registration(arm, subscription, namespace) for namespace in NAMESPACES]
    found += registered
    if place is None:
        return found
    found.append(await _group(arm, place))
    if not found[-1].passed or not registered[0].passed:
        return found
    assert request is not None
    found.append(await _offer(environments, place, request.gpu))
    if found[-1].passed:
        found.append(await _quota(arm, place, request.gpu))
    found.append(await _environment(environments, place, request.gpu))
    if request.engine.gated:
        found.append(_token(request))
    return found


async def _registration(arm: Arm, subscription: str, namespace: str) -> Check:
    fix = f"az provider register --namespace {namespace} --wait"
    path = f"/subscriptions/{subscription}/providers/{namespace}?api-version=2021-04-01"
    try:
        state = (await arm.get(subscription, f"provider {namespace}", path))["registrationState"]
    except BackendError as exc:
        return Check(namespace, False, exc.message, fix)
    if state != "Registered":
        return Check(namespace, False, f"{namespace} is {state} in this subscription", fix)
    return Check(namespace, True, f"{namespace} is registered")


async def _group(arm: Arm, place: Place) -> Check:
    fix = f"az group create --name {place.group} --location {place.region}"
    path = f"/subscriptions/{place.subscription}/resourcegroups/{place.group}?api-version=2021-04-01"
    try:
        await arm.get(place.subscription, f"resource group {place.group}", path)
    except (NotFoundError, BackendError) as exc:
        return Check("resource group", False, exc.message, fix)
    return Check("resource group", True, f"resource group {place.group} is there")


async def _offer(environments: Environments, place: Place, gpu: str) -> Check:
    if gpu not in PROFILES:
        return Check("gpu", False, f"Azure Container Apps have no {gpu}", f"choose one of {', '.join(PROFILES)}")
    kind = PROFILES[gpu].kind
    fix = f"choose another --azure-region; `az containerapp env workload-profile list-supported -l {place.region}`"
    try:
        offered = await environments.offered(place)
    except BackendError as exc:
        return Check("gpu", False, exc.message, fix)
    if not any(places.same(kind, one) for one in offered):
        return Check("gpu", False, f"{place.region} does not offer {kind}", fix)
    return Check("gpu", True, f"{place.region} offers {kind}")


async def _quota(arm: Arm, place: Place, gpu: str) -> Check:
    """By the name of the GPU in the usage's name: Azure writes them with and without blanks."""

    def listed(client: Any) -> list[Any]:
        return list(client.usages.list(place.region))

    fix = f"Azure portal > Quotas > Azure Container Apps > {_QUOTA[gpu]!r} in {place.region} > New quota request"
    try:
        usages = await arm.call(place.subscription, f"quota of {place.region}", listed)
    except BackendError as exc:
        return Check("quota", False, exc.message, fix)
    card = gpu.partition("_")[0].lower()
    for usage in usages:
        name = f"{usage.name.value} {usage.name.localized_value or ''}".lower()
        if "gpu" in name and card in name and "consumption" in name:
            free = usage.limit - usage.current_value
            said = f"quota of {gpu} in {place.region}: {usage.current_value:g} of {usage.limit:g} used"
            return Check("quota", free >= 1, said, None if free >= 1 else fix)
    return Check("quota", True, f"Azure tells no quota of {gpu} in {place.region}: a deploy will show it")


async def _environment(environments: Environments, place: Place, gpu: str) -> Check:
    try:
        found = await environments.find(place)
    except (NotFoundError, BackendError) as exc:
        return Check("environment", False, exc.message, exc.hint or "look at it in the Azure portal")
    if found is None and place.environment is not None:
        said = f"resource group {place.group} has no environment {place.environment}"
        return Check("environment", False, said, "leave --azure-environment out, and Tuna makes its own")
    if found is None:
        return Check("environment", True, "there is none yet: the first deploy takes up to half an hour longer")
    if gpu in PROFILES and profile_in(found, gpu) is None:
        wanted = PROFILES[gpu]
        fix = f"az containerapp env workload-profile add -g {place.group} -n {found.name} "
        fix += f"--workload-profile-name {wanted.name} --workload-profile-type {wanted.kind}"
        return Check("environment", False, f"environment {found.name} has no {gpu}", fix)
    return Check("environment", True, f"environment {found.name} is used")


def _token(request: ServiceRequest) -> Check:
    if hugging_face_token() is None:
        return Check(
            "model", False, f"{request.engine.model} is gated and there is no token", "export HF_TOKEN=hf_..."
        )
    return Check("model", True, f"{request.engine.model} is gated: your token goes along as a secret of the app")
