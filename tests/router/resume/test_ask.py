"""Which requests are recorded, and what is added to them."""

from __future__ import annotations

import json

import pytest

from tuna_router.resume.ask import ask, context_length_of, refuses_token_ids

CHAT, TEXT = b"/v1/chat/completions", b"/v1/completions"
BODY = b' {\n "stream" : true, "messages":[{"role":"user","content":"a \\"stream\\":false"}]}'


def test_one_field_is_added_and_every_other_byte_stays() -> None:
    asked = ask(CHAT, BODY)
    assert asked is not None
    assert asked.body == BODY.replace(b"{", b'{"return_token_ids":true,', 1)
    assert json.loads(asked.body) == {**json.loads(BODY), "return_token_ids": True}
    assert (asked.hides_ids, asked.chat, asked.refusal) == (True, True, None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/v1/embeddings", BODY),
        (CHAT, BODY.replace(b"true", b"false")),
        (CHAT, b'{"messages":[],"tools":[{"stream": true}]}'),
        (CHAT, b'{"stream": true'),
        (CHAT, b'["stream", {"stream": true}]'),
        (TEXT, b""),
    ],
)
def test_what_is_no_stream_of_a_completion_is_not_asked_about(path: bytes, body: bytes) -> None:
    assert ask(path, body) is None


@pytest.mark.parametrize("value", [b"true", b"false", b"null"])
def test_a_client_that_speaks_of_ids_itself_gets_what_it_asked_for(value: bytes) -> None:
    body = BODY.replace(b"{", b'{"return_token_ids": %b,' % value, 1)
    asked = ask(CHAT, body)
    assert asked is not None
    assert asked.body is body
    assert not asked.hides_ids


def test_a_backend_that_refuses_ids_gets_the_request_unchanged() -> None:
    asked = ask(CHAT, BODY, token_ids=False)
    assert asked is not None
    assert asked.body is BODY
    assert not asked.hides_ids


@pytest.mark.parametrize("prompt", [["a", "b"], ["a"], [[1], [2]], [], None, [1, "a"]], ids=str)
def test_several_prompts_are_not_continued(prompt: object) -> None:
    asked = ask(TEXT, json.dumps({"prompt": prompt, "stream": True}).encode())
    assert asked is not None
    assert asked.refusal == "it has several prompts"


def test_refusals_of_ids_and_of_lengths_are_recognised() -> None:
    assert refuses_token_ids(422, b'{"detail":"Unexpected fields in the request: {\'return_token_ids\'}"}')
    assert refuses_token_ids(400, b'{"error":{"message":"Unrecognized request argument: return_token_ids"}}')
    assert not refuses_token_ids(400, b'{"error":{"message":"max_tokens"}}')
    assert not refuses_token_ids(500, b"return_token_ids")
    said = b'{"error":{"message":"max_tokens=9999 cannot be greater than max_model_len=2048. Please"}}'
    assert context_length_of(400, said) == 2048
    assert context_length_of(200, said) is None
