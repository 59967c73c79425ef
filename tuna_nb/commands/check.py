"""`check`: what each provider still needs, one row a thing."""

from __future__ import annotations

from argparse import Namespace

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, Check, Engine, Kind, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.commands.context import Context
from tuna_nb.deployments.checks import ProviderChecks
from tuna_nb.errors import BackendError


async def check(options: Namespace, context: Context) -> ProviderChecks:
    """All installed providers, or one. A provider whose package is missing is a failed row, not an error."""
    rows: list[tuple[str, Check]] = []
    names = [options.provider] if options.provider else registry.names()
    for name in names:
        try:
            backend = context.workspace.backend(name)
            checks = await backend.check(_with_engine(backend, options.engine_cmd))
        except BackendError as e:
            checks = [Check("package", False, e.message, e.hint)]
        rows += [(name, c) for c in checks]
    return ProviderChecks(tuple(rows))


def _with_engine(backend: Backend, command: str | None) -> ServiceRequest | None:
    """The smallest request that names the engine; None where no engine was asked about."""
    if command is None:
        return None
    serverless = Kind.SERVERLESS in backend.kinds
    return ServiceRequest(
        deployment_id="check",
        name="check",
        kind=Kind.SERVERLESS if serverless else Kind.SPOT,
        engine=Engine("any/model", command),
        gpu="L4",
        gpu_count=1,
        scaling=ServerlessScaling() if serverless else SpotScaling(),
    )
