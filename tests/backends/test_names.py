"""Names at providers: short enough for all of them, and known again."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tuna_nb.backends.names import LONGEST, deployment_of, resource_name

SERVICES = st.from_regex(r"[a-z]([a-z0-9]|-[a-z0-9]){0,38}", fullmatch=True)
IDS = st.text("0123456789abcdef", min_size=10, max_size=10)
ROLES = st.sampled_from(["serverless", "spot", "router"])


@given(SERVICES, IDS, ROLES)
def test_every_provider_takes_the_name_and_it_tells_its_deployment(service: str, id_: str, role: str) -> None:
    name = resource_name(service, id_, role)
    assert len(name) <= LONGEST == 32
    assert re.fullmatch(r"[a-z]([a-z0-9]|-(?!-))*[a-z0-9]", name)
    assert deployment_of(name) == id_


def test_what_others_call_theirs_is_not_ours() -> None:
    for name in ("tuna", "tuna-salad", "my-tuna-0123456789-serverless", "tuna-x-0123456789-serverless-fb", ""):
        assert deployment_of(name) is None
