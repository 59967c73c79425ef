"""`connect`: a client bound to a deployment's endpoint and key."""

from __future__ import annotations

import keyword
from argparse import Namespace

from tuna_nb.commands.context import Context
from tuna_nb.deployments.connection import Connection, await_endpoint, connection
from tuna_nb.errors import UsageError


async def connect(options: Namespace, context: Context) -> Connection:
    if (options.as_ is None) != (options.variable is None):
        raise UsageError(
            f"connect {options.name} as ...: the variable is missing", f"write: connect {options.name} as client"
        )
    if options.variable is not None and (
        not options.variable.isidentifier() or keyword.iskeyword(options.variable)
    ):
        raise UsageError(f"{options.variable!r} is not a variable name", f"write: connect {options.name} as client")
    link = await connection(context.workspace, await await_endpoint(context.workspace, options.name))
    if options.env and link.needs_headers:
        raise UsageError(
            f"{link.name} is opened by headers that a shell variable can't carry ({', '.join(link.headers)})",
            "connect from Python, where the client sends them; with a router (no --serverless-only) one key does",
        )
    return link
