"""Container Apps environments: one of Tuna's per resource group and region, made once in half an hour, reused.

An environment without apps costs nothing, so destroying a deployment leaves it, unless the user asks otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

from tuna_nb.backends.azure.app import PROFILES
from tuna_nb.backends.azure.arm import Arm
from tuna_nb.backends.azure.place import Place, parts, region, same, word
from tuna_nb.backends.base import Progress
from tuna_nb.backends.lifecycle import create_once, until_gone
from tuna_nb.errors import BackendError, CapacityError, NotFoundError

TAG: Final = "tuna-environment"
USUAL_S: Final = 1800.0
LONGEST_S: Final = 3600.0
_GONE_S: Final = 1800.0
_POLL_S: Final = 15.0


def name_in(where: str) -> str:
    """Of Tuna's own environment in a region."""
    return f"tuna-env-{where}"[:32]


def is_ours(environment: Any) -> bool:
    return TAG in (environment.tags or {})


def profile_in(environment: Any, gpu: str) -> str | None:
    """What the environment calls the GPU's workload profile; None where it has none."""
    wanted = PROFILES[gpu].kind
    for profile in environment.properties.workload_profiles or []:
        if same(profile.workload_profile_type, wanted):
            return str(profile.name)
    return None


class Environments:
    """All of a subscription's, by way of `arm`."""

    def __init__(self, arm: Arm, pace: float) -> None:
        self._arm = arm
        self._pace = pace

    async def find(self, place: Place) -> Any:
        """The user's named one, else Tuna's in that group and region; None where there is none."""

        def listed(client: Any) -> list[Any]:
            return list(client.managed_environments.list_by_resource_group(place.group))

        found = await self._arm.call(place.subscription, f"environments of {place.group}", listed)
        if place.environment is not None:
            return next((e for e in found if same(e.name, place.environment)), None)
        there = [e for e in found if region(e.location) == place.region]
        taken = [e for e in there if same(e.name, name_in(place.region)) and not is_ours(e)]
        if taken:
            raise BackendError(
                f"azure: environment {taken[0].name} is there and is not Tuna's",
                f"use it with --azure-environment {taken[0].name}, or rename it",
            )
        return next((e for e in there if is_ours(e)), None)

    async def ensure(self, place: Place, gpu: str, progress: Progress) -> Any:
        """Ready to take apps with that GPU. Raises BackendError with Azure's words."""
        if place.environment is not None:
            found = await self.find(place)
            if found is None:
                raise NotFoundError(
                    f"azure: resource group {place.group} has no environment {place.environment}",
                    "leave --azure-environment out, and Tuna makes its own",
                )
        else:
            found = await create_once(
                lambda: self.find(place), lambda: self._create(place, gpu, progress), pace=self._pace
            )
        if profile_in(found, gpu) is None:
            wanted = PROFILES[gpu]
            raise BackendError(
                f"azure: environment {found.name} has no workload profile with a {gpu}",
                f"az containerapp env workload-profile add -g {place.group} -n {found.name} "
                f"--workload-profile-name {wanted.name} --workload-profile-type {wanted.kind}",
            )
        return await self._ready(place, found, progress)

    async def offered(self, place: Place) -> list[str]:
        """Workload profile types that Azure offers in the region."""

        def listed(client: Any) -> list[str]:
            return [str(one.name) for one in client.available_workload_profiles.get(place.region)]

        return await self._arm.call(place.subscription, f"workload profiles of {place.region}", listed)

    async def remove_idle(self, subscription: str, only: str | None = None) -> list[str]:
        """Names of Tuna's environments that held no app and are gone now. only: the id of the one to look at."""

        def listed(client: Any) -> tuple[list[Any], list[Any]]:
            # The environments first: an app that comes after is seen, and its environment is kept.
            environments = list(client.managed_environments.list_by_subscription())
            return environments, list(client.container_apps.list_by_subscription())

        environments, apps = await self._arm.call(subscription, "the list of environments", listed)
        used = {str(app.properties.managed_environment_id).lower() for app in apps}
        removed = []
        for one in environments:
            if is_ours(one) and one.id.lower() not in used and (only is None or same(one.id, only)):
                await self._remove(subscription, one)
                removed.append(str(one.name))
        return removed

    async def _remove(self, subscription: str, environment: Any) -> None:
        _, group, name = parts(environment.id)
        with contextlib.suppress(NotFoundError):
            await self._arm.call(
                subscription,
                f"environment {name}",
                lambda client: client.managed_environments.begin_delete(group, name, polling=False).result(),
            )

        async def is_there() -> bool:
            def listed(client: Any) -> Sequence[Any]:
                return list(client.managed_environments.list_by_subscription())

            found = await self._arm.call(subscription, "the list of environments", listed)
            return any(same(one.id, environment.id) for one in found)

        await until_gone(
            is_there,
            f"azure: environment {name}",
            within_s=_GONE_S,
            poll_s=_POLL_S * self._pace,
            hint=f"az containerapp env delete -g {group} -n {name}",
        )

    async def _create(self, place: Place, gpu: str, progress: Progress) -> Any:
        from azure.mgmt.appcontainers import models

        offered = [kind.lower() for kind in await self.offered(place)]
        if PROFILES[gpu].kind.lower() not in offered:
            raise CapacityError(f"azure: {place.region} offers no {gpu}", "choose another --azure-region")
        name = name_in(place.region)
        progress(f"creating environment {name} in {place.region}: up to half an hour, once", 0.0)
        kinds = [(p.name, p.kind) for p in PROFILES.values() if p.kind.lower() in offered]
        profiles = [
            models.WorkloadProfile(name=n, workload_profile_type=kind)
            for n, kind in [("Consumption", "Consumption"), *kinds]
        ]
        made = models.ManagedEnvironment(
            location=place.region,
            tags={TAG: "true"},
            properties=models.ManagedEnvironmentProperties(workload_profiles=profiles),
        )

        def create(client: Any) -> Any:
            begun = client.managed_environments.begin_create_or_update(place.group, name, made, polling=False)
            return begun.result()

        return await self._arm.call(place.subscription, f"environment {name}", create, creates=True)

    async def _ready(self, place: Place, environment: Any, progress: Progress) -> Any:
        _, group, name = parts(environment.id)
        began = time.monotonic()
        while True:
            state = word(environment.properties.provisioning_state)
            if state in ("Succeeded", "UpgradeFailed", "UpgradeRequested"):
                return environment
            passed = time.monotonic() - began
            if state in ("Failed", "Canceled", "ScheduledForDelete") or passed > LONGEST_S:
                why = environment.properties.deployment_errors or f"it is {state} after {passed:.0f} s"
                raise BackendError(
                    f"azure: environment {name} can't be used: {why}",
                    f"az containerapp env delete -g {group} -n {name}",
                )
            progress(f"environment {name}: {state}, {passed / 60:.0f} min", min(0.95, passed / USUAL_S))
            await asyncio.sleep(_POLL_S * self._pace)
            environment = await self._arm.call(
                place.subscription,
                f"environment {name}",
                lambda client: client.managed_environments.get(group, name),
            )
