"""What a command gets besides its options."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tuna_nb.deployments.workspace import Workspace
from tuna_nb.grammar import BY_NAME
from tuna_nb.jobs import Jobs, LoopThread


@dataclass(frozen=True, slots=True)
class Context:
    """workspace: records, keys, providers. jobs: of this process. cell: the body of a `%%tuna` cell.

    until_spot: whether a deploy's job goes on until the first spot replica is ready. page: a result as one HTML
    page that reads anywhere; None where nobody can draw one.
    """

    workspace: Workspace
    jobs: Jobs = field(default_factory=Jobs)
    cell: str | None = None
    until_spot: bool = True
    page: Callable[[Any], str] | None = None


Command = Callable[[Namespace, Context], Awaitable[Any]]


def run(options: Namespace, context: Context) -> Any:
    """Run the verb on the loop thread and return its result: data for a view, or `jobs.Work` to be run as a job.

    Raises TunaError.
    """
    module, _, function = BY_NAME[options.verb].handler.partition(":")
    command: Command = getattr(importlib.import_module(module), function)

    async def call() -> Any:
        return await command(options, context)

    return LoopThread.run(call())
