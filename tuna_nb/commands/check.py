"""`check`: what each provider still needs, one row a thing."""

from __future__ import annotations

from argparse import Namespace

from tuna_nb.backends import registry
from tuna_nb.backends.base import Check
from tuna_nb.commands.context import Context
from tuna_nb.deployments.checks import ProviderChecks
from tuna_nb.errors import BackendError


async def check(options: Namespace, context: Context) -> ProviderChecks:
    """All installed providers, or one. A provider whose package is missing is a failed row, not an error."""
    rows: list[tuple[str, Check]] = []
    names = [options.provider] if options.provider else registry.names()
    for name in names:
        try:
            checks = await context.workspace.backend(name).check()
        except BackendError as e:
            checks = [Check("package", False, e.message, e.hint)]
        rows += [(name, c) for c in checks]
    return ProviderChecks(tuple(rows))
