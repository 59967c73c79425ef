"""One request's life, a module a step: client (intake), admit, choose (`tuna_router.policy`), forward,
relay, account.

Bytes come and go through asyncio Protocols: `client` on one side, `connection` and `upstream` on the
other, with httptools for heads (`request_head`, `response_head`) and framing of our own (`chunked`).
The seam is `exchange.Exchange`, the handler of one admitted request.
"""
