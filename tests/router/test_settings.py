"""The schema of the configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_router.errors import SettingsError
from tuna_router.settings import Settings, check_url, parse_settings, to_json


def test_what_is_shown_can_be_read_back() -> None:
    data = {
        "backends": [
            {
                "kind": "spot",
                "url": "https://a.example/v1/",
                "headers": {"X-A": "1"},
                "replicas_url": "http://b/r?x=1",
            },
            {"kind": "spot", "url": "http://[::1]:80"},
            {"name": "s", "kind": "serverless", "url": "http://c", "price_per_hour_usd": 1, "max_concurrency": 3},
        ],
        "max_concurrency": 7,
    }
    settings = parse_settings(data)
    assert [b.name for b in settings.backends] == ["spot", "spot-2", "s"]
    assert settings.backends[0].url == "https://a.example/v1"
    assert parse_settings(to_json(settings, mask=False)) == settings


def test_a_subset_changes_only_what_it_names() -> None:
    base = parse_settings({"max_concurrency": 7, "probe_interval_s": 3})
    assert parse_settings({"probe_interval_s": 4}, base).max_concurrency == 7
    assert parse_settings({}) == Settings()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://x",
        "http://",
        "http://u@x",
        "http://:p@x",
        "http://x:99999",
        "http://x:0",
        "http://x y",
        "http://x\n",
        "//x",
        "http://x#f",
        "http://[::1",
        3,
        None,
    ],
)
def test_what_is_no_plain_http_url_is_refused(url: object) -> None:
    with pytest.raises(SettingsError):
        check_url(url)


def test_models_are_a_list_or_a_mapping_and_weights_may_be_nothing() -> None:
    backend = {"kind": "spot", "url": "http://a", "weight": 0, "idle_window_s": 10}
    settings = parse_settings({"backends": [{**backend, "models": ["m"]}], "session_header": "X-Session"})
    assert settings.backends[0].models == {"m": "m"}
    assert (settings.backends[0].weight, settings.session_header) == (0, "x-session")
    assert parse_settings(to_json(settings, mask=True)) == settings
    mapped = parse_settings({"backends": [{**backend, "models": {"m": "own/m"}}]})
    assert mapped.backends[0].models == {"m": "own/m"}


@pytest.mark.parametrize(
    "data",
    [
        {"backends": [{"kind": "spot", "url": "http://a", "models": [1]}]},
        {"backends": [{"kind": "spot", "url": "http://a", "models": {"m": ""}}]},
        {"backends": [{"kind": "spot", "url": "http://a", "models": "m"}]},
        {"backends": [{"kind": "spot", "url": "http://a", "weight": None}]},
        {"backends": [{"kind": "spot", "url": "http://a", "weight": -1}]},
        {"session_header": "a b"},
        {"session_header": 3},
        {"batch_above_bytes": 0},
        {"overflow_wait_s": 0},
    ],
)
def test_choices_that_make_no_sense_are_refused(data: object) -> None:
    with pytest.raises(SettingsError):
        parse_settings(data)


def test_secrets_are_not_in_the_representation() -> None:
    settings = parse_settings(
        {
            "backends": [{"kind": "spot", "url": "http://a", "headers": {"x": "top-secret"}}],
            "api_key_sha256": ["ab" * 32],
        }
    )
    assert "top-secret" not in repr(settings)
    assert "abab" not in repr(settings)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
known = st.sampled_from(sorted(to_json(Settings(), mask=False)))


@given(st.dictionaries(known | st.text(max_size=5), values, max_size=4))
def test_anything_is_either_read_or_refused_with_a_hint(data: dict[str, object]) -> None:
    refusal = None
    try:
        parse_settings(data)
    except SettingsError as error:
        refusal = error
    assert refusal is None or (refusal.message and refusal.hint)
