"""`scale`, `wake` and `check` as a person types them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.frontends.terminals import Done, deploy_words

pytestmark = pytest.mark.e2e

Tuna = Callable[..., Done]


def test_a_deployment_is_scaled_and_woken_from_the_command_line(tuna: Tuna) -> None:
    tuna(*deploy_words("s", "--serverless-only"))
    done = tuna("scale", "--service-name", "s", "--workers-min", "1", "-o", "json")
    assert done.json["name"] == "s"
    assert tuna("wake", "--service-name", "s", "-o", "json").json["state"] == "running"
    code, message = 2, "scale: nothing to change"
    assert message in tuna("scale", "--service-name", "s", code=code).refusal[0]
    assert "above its maximum" in tuna("scale", "--service-name", "s", "--workers-min", "5", code=code).refusal[0]
    # The same deploy would undo the change: it says so, instead of doing it.
    assert "another model, GPU or setting" in tuna(*deploy_words("s", "--serverless-only"), code=1).refusal[0]
    tuna("destroy", "--service-name", "s")


@pytest.mark.parametrize("provider", ["azure", "baseten", "cerebrium", "cloudrun", "modal", "runpod"])
def test_a_provider_that_is_not_set_up_is_refused_before_anything_is_recorded(
    tuna: Tuna, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    words = ["deploy", "--model", "Qwen/Qwen3-0.6B", "--gpu", "T4" if provider == "azure" else "L4"]
    words += ["--serverless-only", "--serverless-provider", provider, "--service-name", "x"]
    message, hint = tuna(*words, code=None).refusal
    # Azure's prices are a region's, so that its plan can't do without.
    said = "azure: no subscription is told" if provider == "azure" else f"{provider} is not set up here: "
    assert message.startswith(f"tuna: {said}")
    assert hint.startswith("hint: ")
    assert tuna("list", "-o", "json").json["deployments"] == []


def test_a_check_takes_a_gpu_a_model_and_a_providers_settings(tuna: Tuna, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    rows = tuna("check", "--provider", "local", "--gpu", "l4", "--model", "a/b", "-o", "json").json["rows"]
    assert {provider for provider, _ in rows} == {"local", "hugging face"}
    assert all(row["passed"] for _, row in rows)
    gated = tuna("check", "--provider", "local", "--model", "meta-llama/Llama-3.1-8B", "-o", "json", code=1).json[
        "rows"
    ]
    [row] = [row for _, row in gated if not row["passed"]]
    assert "is gated" in row["message"]
    assert "HF_TOKEN" in row["fix"]
    assert "unknown GPU" in tuna("check", "--gpu", "L44", code=2).refusal[0]
    refused = tuna("check", "--provider", "local", "--gcp-project", "p", code=2)
    assert refused.refusal[0].endswith("local has no option 'gcp_project'")
