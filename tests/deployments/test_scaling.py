"""The scaling policy: defaults, then the file, then flags; a typo never passes."""

from __future__ import annotations

import pytest

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.deployments import scaling
from tuna_nb.errors import UsageError


def test_defaults_are_the_founding_documents() -> None:
    assert scaling.merge({}) == (ServerlessScaling(32, 60, 600, 0, 1, 4), SpotScaling(0, 5, 10, 5, 300))


def test_the_file_goes_over_defaults_and_flags_over_the_file() -> None:
    policy = scaling.parse(
        "spot:\n  max_replicas: 3\nserverless:\n  concurrency: 8\n  scaledown_window: 20\n", "f.yaml"
    )
    serverless, spot = scaling.merge(policy, flags={"concurrency": 64, "workers_max": None})
    assert (serverless.concurrency, serverless.scaledown_window, spot.max_replicas) == (64, 20, 3)
    assert spot.target_qps == 10


def test_no_scale_to_zero_keeps_a_replica_and_a_longer_window() -> None:
    serverless, spot = scaling.merge({"spot": {"min_replicas": 0}}, no_scale_to_zero=True)
    assert (spot.min_replicas, serverless.scaledown_window) == (1, 300)
    _, kept = scaling.merge({"spot": {"min_replicas": 2}}, no_scale_to_zero=True)
    assert kept.min_replicas == 2


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("spot:\n  max_replica: 3\n", "cell line 3, column 3: unknown key 'max_replica'", "did you mean 'max_replicas'?"),
        ("spott:\n  max_replicas: 3\n", "cell line 2, column 1: unknown key 'spott'", "did you mean 'spot'?"),
        ("spot:\n  max_replicas: many\n", "cell line 3, column 17: spot.max_replicas is 'many'", "whole number"),
        ("spot:\n  max_replicas: 1.5\n", "spot.max_replicas is '1.5'", "whole number"),
        ("spot:\n  max_replicas: true\n", "spot.max_replicas is 'true'", "whole number"),
        ("spot:\n  upscale_delay: [1]\n", "spot.upscale_delay is", "number"),
        ("spot: 3\n", "cell line 2, column 7: spot must be a mapping", "key: value"),
        ("- spot\n", "cell line 2, column 1: the policy must be a mapping", "key: value"),
        ("spot:\n  max_replicas: 1\n  max_replicas: 2\n", "cell line 4, column 3: 'max_replicas' is given twice", "keep one"),
        ("spot: {max_replicas: 3\n", "not valid YAML", "sections spot: and serverless:"),
        ("spot:\n\tmax_replicas: 3\n", "cell line 3, column 1: not valid YAML", ""),
        ("!!python/object/apply:os.system ['true']\n", "must be a mapping", ""),
    ],
)  # fmt: skip
def test_a_wrong_policy_is_refused_with_its_place(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as e:
        scaling.parse(text, "cell", first_line=2)
    assert message in e.value.message
    assert hint in str(e.value.hint)


def test_an_empty_policy_is_no_policy() -> None:
    assert scaling.parse("", "cell") == {}
    assert scaling.parse("# nothing\n", "cell") == {}
