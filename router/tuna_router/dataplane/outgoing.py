"""The request as one backend gets it: its head, and of its body what there is."""

from __future__ import annotations

from tuna_router.dataplane.chunked import chunk_of
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.dataplane.wish import with_model
from tuna_router.fleet.live import LiveBackend
from tuna_router.resume.ask import Ask


def whole_request(
    backend: LiveBackend,
    head: RequestHead,
    request_id: bytes,
    body: list[bytes],
    size: int,
    *,
    asked: Ask | None,
    model: str | None,
) -> list[bytes]:
    """A request whose body, `size` bytes in pieces, is complete.

    `asked` is how it is sent to an engine that tells token ids; `model` the public name of the model, where
    backends call it by other names.
    """
    if asked is not None and backend.token_ids:
        body, size = [asked.body], len(asked.body)
    if model is not None and backend.models is not None:
        body = [with_model(b"".join(body), backend.own_model(model))]
        size = len(body[0])
    begins = head.begins(backend.route)
    if size or head.framed or head.may_have_body:
        return [b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (begins, request_id, size), *body]
    return [b"%bx-request-id: %b\r\n\r\n" % (begins, request_id)]


def begun_request(
    backend: LiveBackend, head: RequestHead, request_id: bytes, body: list[bytes], length: int | None
) -> list[bytes]:
    """A request whose body is still coming: `length` bytes, None for a chunked one; `body` is what is here."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    begins = b"%bx-request-id: %b\r\n%b\r\n\r\n" % (head.begins(backend.route), request_id, framing)
    return [begins, *(map(chunk_of, body) if length is None else body)]


def rest_request(
    backend: LiveBackend, head: RequestHead, request_id: bytes, path: bytes, body: bytes, *, model: str | None
) -> list[bytes]:
    """A request for the rest of a stream, which may be one for another `path`."""
    if model is not None and backend.models is not None:
        body = with_model(body, backend.own_model(model))
    begins = head.begins_at(backend.route, path)
    return [b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (begins, request_id, len(body)), body]
