"""`check`: what each provider still needs, one row a thing. Creates nothing."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Mapping
from typing import Final

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, Check, Engine, Kind, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.catalog import gpus, hub
from tuna_nb.commands.context import Context
from tuna_nb.commands.deploy import provider_settings
from tuna_nb.deployments.checks import ProviderChecks
from tuna_nb.deployments.plan import cloud_option
from tuna_nb.errors import BackendError, RequestError, did_you_mean
from tuna_nb.secrets import hugging_face_token

PATIENCE_S: Final = 60.0
HUB: Final = "hugging face"


async def check(options: Namespace, context: Context) -> ProviderChecks:
    """All installed providers at once, or one, or a cloud: what is served there, and who rents spot machines there.

    One whose package is missing is a failed row, not an error.
    """
    settings = provider_settings(options)
    gpu = None if options.gpu is None else gpus.find(options.gpu).name
    spot = _spot_at(context, options.provider)
    names = registry.names() if options.provider is None else [options.provider]
    if spot is not None and options.provider not in registry.names():
        names = []
    _known_somewhere(context, [*names, *([spot.name] if spot else [])], settings)

    async def of(name: str, cloud: Mapping[str, str] | None = None) -> list[Check]:
        try:
            backend = context.workspace.backend(name)
            async with asyncio.timeout(PATIENCE_S):
                return await backend.check(_request(backend, options, gpu, {**settings, **(cloud or {})}))
        except TimeoutError:
            return [Check("answer", False, f"no answer within {PATIENCE_S:g} s", "try again; is the network up?")]
        except BackendError as e:
            return [Check("package", False, e.message, e.hint)]

    unused = tuple(name for name in names if options.provider is None and not _set_up(context, name))
    found = await asyncio.gather(*map(of, names))
    rows = [(name, row) for name, checks in zip(names, found, strict=True) for row in checks]
    if spot is not None:
        named = f"{options.provider} (spot)"
        rows += [(named, row) for row in await of(spot.name, cloud_option(spot, options.provider))]
    if options.model is not None:
        rows.append((HUB, await _model(options.model)))
    return ProviderChecks(tuple(rows), unused)


def _spot_at(context: Context, cloud: str | None) -> Backend | None:
    """Who rents spot machines at a cloud of that name; None where it is no cloud's."""
    if cloud is None:
        return None
    try:
        backend = registry.for_cloud(cloud, context.workspace.backend)
    except RequestError:
        return None  # an unknown provider, which is said where it is asked for
    return backend if cloud in backend.clouds else None


def _set_up(context: Context, name: str) -> bool:
    try:
        return context.workspace.backend(name).configured()
    except BackendError:
        return True  # that it can't be loaded is a failure


async def _model(model: str) -> Check:
    token = hugging_face_token()
    try:
        access = await hub.access(model, token)
    except RequestError as e:
        return Check("model", False, e.message, e.hint)
    said = "" if access.known else " (the hub could not be asked)"
    if not access.gated:
        return Check("model", True, f"{model} is open{said}")
    if token is None:
        fix = f"accept its licence at {hub.URL}/{model}, then export HF_TOKEN=<your token>"
        return Check("model", False, f"{model} is gated, and there is no Hugging Face token{said}", fix)
    return Check("model", True, f"{model} is gated, and your token opens it{said}")


def _known_somewhere(context: Context, names: list[str], settings: Mapping[str, str]) -> None:
    known: set[str] = set()
    for name in names:
        try:
            known |= set(context.workspace.backend(name).options)
        except BackendError:
            return  # one that can't be loaded may know it
    for option in settings:
        if option not in known:
            raise RequestError(f"{' or '.join(names)} has no option {option!r}", did_you_mean(option, known))


def _request(
    backend: Backend, options: Namespace, gpu: str | None, settings: Mapping[str, str]
) -> ServiceRequest | None:
    """The smallest request that says what was asked about; None where nothing was."""
    own = {key: value for key, value in settings.items() if key in backend.options}
    if gpu is None and options.engine_cmd is None and not own:
        return None
    serverless = Kind.SERVERLESS in backend.kinds
    return ServiceRequest(
        deployment_id="check",
        name="check",
        kind=Kind.SERVERLESS if serverless else Kind.SPOT,
        engine=Engine(options.model or "any/model", options.engine_cmd),
        # Where only a cloud was named, no GPU is asked about.
        gpu=gpu or ("" if set(own) == {"cloud"} else "L4"),
        gpu_count=1,
        scaling=ServerlessScaling() if serverless else SpotScaling(),
        options=own,
    )
