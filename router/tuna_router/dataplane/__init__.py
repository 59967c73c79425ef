"""One request's life, a module a step: admit, intake, choose (`tuna_router.policy`), forward, relay, account.

This first data plane is plain ASGI with httpcore upstream. Its seam is `exchange.serve`:
nothing outside this package knows how a request is read or how bytes reach a backend.
"""
