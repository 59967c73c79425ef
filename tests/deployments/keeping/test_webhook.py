"""A webhook is told in words that Slack understands, signed, again where it was not heard, and never in the open."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployments.receiver import Receiver, receiving
from tuna_nb.deployments.keeping import webhook
from tuna_nb.deployments.keeping.webhook import TRIES, Webhook, kept, masked, read_url, signature, tell
from tuna_nb.errors import RequestError
from tuna_nb.secrets import Secrets
from tuna_nb.settings import Settings

NOW = 1_800_000_000.7


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


class Waits:
    """What was waited, in seconds, none of it spent."""

    def __init__(self) -> None:
        self.s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.s.append(seconds)


async def send(receiver: Receiver, waits: Waits, key: str = "k") -> str | None:
    return await tell(Webhook(receiver.url, key), "said", {"level": 80}, lambda: NOW, waits)


async def test_slack_reads_its_text_and_others_our_fields(receiver: Receiver) -> None:
    waits = Waits()
    assert await send(receiver, waits) is None
    assert receiver.got == [{"text": "said", "tuna": {"level": 80}}]
    assert (receiver.wrong, waits.s) == ([], [])


def test_the_signature_is_what_the_documentation_says() -> None:
    # printf '1800000000.{}' | openssl dgst -sha256 -hmac k
    by_openssl = "cdd93e246b17200236861b3061e5be1099fa09298de6cebf58e528db933f5c62"
    assert signature("k", 1_800_000_000, b"{}") == f"v1={by_openssl}"
    assert signature("k", 1, b"x") != signature("k", 2, b"x"), "the time is signed too"
    assert signature("k", 1, b"x") != signature("l", 1, b"x")


async def test_it_is_told_again_where_it_was_busy_broken_or_away(receiver: Receiver) -> None:
    receiver.answers = [(429, {"Retry-After": "7"}), (503, {}), (0, {})]
    waits = Waits()
    assert await send(receiver, waits) is None
    assert len(receiver.got) == 1, "and heard once"
    assert waits.s[0] == 7, "not sooner than it asked for"
    assert waits.s == sorted(waits.s)
    assert sum(waits.s) <= webhook.WITHIN_S


async def test_it_is_given_up_within_a_bound(receiver: Receiver) -> None:
    receiver.answers = [(500, {})] * 50
    waits = Waits()
    assert await send(receiver, waits) == "it answered 500"
    assert receiver.asked == TRIES
    receiver.answers = [(429, {"Retry-After": "86400"})] * 50
    assert await send(receiver, waits) == "it answered 429", "a day is not waited for"
    assert receiver.asked == TRIES + 1


async def test_a_refusal_is_final(receiver: Receiver) -> None:
    receiver.answers = [(404, {})]
    assert await send(receiver, Waits()) == "it answered 404"
    assert await send(receiver, Waits(), key="another") == "it answered 403"
    assert receiver.asked == 2


async def test_nothing_that_is_logged_or_told_has_the_address(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    gone = Webhook("http://127.0.0.1:9/very-secret", "k-very-secret")
    with caplog.at_level(logging.DEBUG):
        why = await tell(gone, "said", {}, lambda: NOW, Waits())
        assert await send(receiver, Waits()) is None
    assert why == "ConnectError"
    assert "very-secret" not in caplog.text + repr(gone)
    assert masked(receiver.url) == "http://127.0.0.1/..."


@pytest.mark.parametrize(
    "given", ["ftp://x/secret-1", "http://slack.example/secret-1", "https://", "not a url secret-1", "NO_SUCH_NAME"]
)
def test_what_is_no_address_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(RequestError) as e:
        read_url(given, {})
    assert "secret-1" not in f"{e.value.message} {e.value.hint}"


def test_an_address_is_read_from_a_variable_and_kept_with_a_key(tmp_path: Path) -> None:
    assert read_url("HOOK", {"HOOK": "https://a.example/b"}) == ("https://a.example/b", False)
    assert read_url("https://a.example/b", {}) == ("https://a.example/b", True)
    secrets = Secrets(Settings.load({"TUNA_DATA_DIR": str(tmp_path)}))
    assert kept(secrets, "all") is None
    webhook.keep(secrets, "all", "https://a.example/b", {})
    first = kept(secrets, "all")
    assert first is not None
    assert first.key.startswith("tuna-")
    webhook.keep(secrets, "all", "https://a.example/c", {})
    assert kept(secrets, "all") == Webhook("https://a.example/c", first.key), "its key stays"
    webhook.keep(secrets, "all", "https://a.example/c", {"TUNA_WEBHOOK_KEY": "mine"})
    assert kept(secrets, "all") == Webhook("https://a.example/c", "mine")
