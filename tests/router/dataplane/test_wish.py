"""What is read off a request for the choice of a backend."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuna_router.dataplane.request_head import RequestHead, parse_request_head
from tuna_router.dataplane.wish import BadWish, Wishes, model_of, with_model
from tuna_router.policy import PLAIN, Priority, Wish
from tuna_router.settings import parse_settings

MAPPED = {"backends": [{"kind": "serverless", "url": "http://a", "models": ["m"]}]}


def head(*lines: str) -> RequestHead:
    return parse_request_head("\r\n".join(["POST /v1/completions HTTP/1.1", "host: x", *lines, "", ""]).encode())[0]


def wish(*lines: str, body: bytes = b"", **configured: Any) -> Wish | BadWish:
    return Wishes(parse_settings(configured)).read(head(*lines), [body] if body else [], len(body))


def test_an_ordinary_request_wants_nothing_in_particular_and_its_body_is_not_looked_at() -> None:
    assert wish("x-session: s", body=b'{"model": "m"}') is PLAIN


def test_a_header_says_that_nobody_waits_for_the_answer() -> None:
    assert wish("X-Tuna-Priority: Batch") == Wish(Priority.BATCH)
    assert wish("x-tuna-priority: interactive", body=b"x" * 10, batch_above_bytes=5) is PLAIN
    assert wish(body=b"x" * 10, batch_above_bytes=5) == Wish(Priority.BATCH)
    assert wish(body=b"x" * 5, batch_above_bytes=5) is PLAIN


def test_a_priority_that_there_is_not_is_said_so() -> None:
    refused = wish("x-tuna-priority: urgent")
    assert isinstance(refused, BadWish)
    assert "interactive or batch" in refused.message


def test_the_session_and_the_model_are_read_where_they_are_configured() -> None:
    assert wish("x-session: s1", session_header="X-Session") == Wish(session=b"s1")
    assert wish("x-session:", session_header="X-Session") is PLAIN
    assert wish(body=b'{"model": "m"}', **MAPPED) == Wish(model="m")
    reader = Wishes(parse_settings(MAPPED))
    assert reader.read(head(), [b'{"mod', b'el": "m"}'], 14) == Wish(model="m")


def test_a_model_is_found_at_the_top_level_only() -> None:
    messages = '"messages": [{"role": "user", "content": "a \\"model\\": \\"b\\" {"}]'
    assert model_of(f'{{{messages}, "model": "m", "stream_options": {{"include_usage": true}}}}'.encode()) == "m"
    assert model_of(f'{{"model": "m", {messages}}}'.encode()) == "m"
    assert model_of(f'{{{messages}, "model": "m", "tools": [{{"a": {{"model": "x"}}}}]}}'.encode()) == "m"
    assert model_of(f'{{{messages}, "metadata": {{"model": "x"}}}}'.encode()) is None
    assert model_of(b'[{"model": "m"}]') is None
    assert model_of(b'{"a\\"model": "x"}') is None
    assert model_of(b'{"mode\\u006c": "m"}') == "m"
    assert model_of(b'{"model": "a", "model": "b"}') == "b"
    assert model_of(b'{"model": "a", "mode\\u006c": "b"}') == "b"
    assert model_of(b'{"model": ["a"]}') is None
    assert model_of(b'{"model": "m\xff"}') is None
    assert model_of(b'{"model": "m", "prompt": "only the begin') == "m", "of a body too long to be collected"
    assert model_of(b"[" * 100_000 + b'"model"') is None


names = st.sampled_from(["model", "a", "prompt", "x\\", 'q"', "modèle"])
texts = st.sampled_from(['"model": "x"', "\\", '"', "m", "", "model", "é{[", "\u006d", "}"]) | st.text(max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def dumped(pairs: list[tuple[str, object]], ascii_only: bool, indent: bool) -> bytes:
    gap = "\n " if indent else ""
    inner = f",{gap}".join(
        f"{json.dumps(k, ensure_ascii=ascii_only)}:{gap}{json.dumps(v, ensure_ascii=ascii_only)}" for k, v in pairs
    )
    return f"{gap}{{{gap}{inner}{gap}}}{gap}".encode()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(names, values), max_size=5), st.booleans(), st.booleans())
@example([("a", {"model": "x"}), ("model", "m")], True, False)
def test_the_model_found_is_the_one_that_a_json_reader_finds(
    pairs: list[tuple[str, object]], ascii_only: bool, indent: bool
) -> None:
    body = dumped(pairs, ascii_only, indent)
    read = json.loads(body)
    model = read.get("model")
    assert model_of(body) == (model if isinstance(model, str) else None)
    changed = json.loads(with_model(body, 'own/"näme"'))
    assert changed == ({**read, "model": 'own/"näme"'} if isinstance(model, str) else read)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model"', b'{"model":', b'{"model": "', b"\xff", b"}{", b'"', b"[[[{"]
)
def test_what_is_no_json_has_no_model_and_is_passed_on_as_it_is(body: bytes) -> None:
    assert model_of(body) is None
    assert with_model(body, "x") == body


def test_reading_a_body_made_to_be_slow_ends() -> None:
    slow = b'{"a": [' + b'"x", ' * 50_000 + b'], "model": "m", ' + b'"b": [' + b"1 " * 50_000 + b"} " * 50_000
    assert model_of(slow) == "m"
    many = b'{"a": ' + b'{"b": "c", ' * 20_000 + b'"model": "m"' + b', "b": 1}' * 20_000
    assert model_of(many) is None
    assert with_model(many, "x") == many
