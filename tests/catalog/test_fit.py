"""Which GPUs hold a model, what they cost, and what would fit where a plan does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.catalog.models.configs import model
from tuna_nb.catalog.fit import Fit, FitList, Holds, cheapest, fit, fits, refusal
from tuna_nb.catalog.gpus import GPUS, Gpu, find
from tuna_nb.catalog.models.memory import Wanted
from tuna_nb.catalog.offers import Lines, Offer, OfferKind
from tuna_nb.errors import RequestError

QWEN = "Qwen/Qwen3-32B"
FEW = [find(g) for g in ("T4", "L4", "L40S", "A100_80GB", "H100", "H200")]


def offer(gpu: str, price: float | None, kind: OfferKind = OfferKind.SPOT, **change: Any) -> Offer:
    values = {"provider": "aws", "region": "us-east-1", "observed_at": 1.8e9, "source": "a test"} | change
    return Offer(kind=kind, gpu=gpu, price_per_hour_usd=price, **values)


def listed(name: str = QWEN, gpus: list[Gpu] = FEW, **change: Any) -> FitList:
    tp_size, offers = change.pop("tp_size", None), change.pop("offers", ())
    return fits(model(name), gpus, Wanted(**change), tp_size, offers)


def row(found: FitList, gpu: str) -> Fit:
    return next(f for f in found.fits if f.gpu == gpu)


def test_of_each_gpu_the_fewest_that_hold_it() -> None:
    found = listed()
    assert {f.gpu: f.tp_size for f in found.fits if f.holds is Holds.YES} == {
        "H200": 1, "A100_80GB": 2, "H100": 2, "L40S": 4, "L4": 8
    }  # fmt: skip
    few = row(found, "T4")
    assert (few.holds, few.tp_size) == (Holds.FEWER, 8)
    assert "of 32 requests at once" in few.why


def test_what_holds_it_has_room_for_all_that_was_asked() -> None:
    for one in listed().fits:
        need = one.need
        if one.holds is Holds.YES:
            assert need.requests >= 32
            assert need.longest >= 4096
            assert need.bytes + need.doubt_bytes <= need.budget_bytes
        else:
            assert need.requests < 32
            assert need.longest < 4096


def test_one_gpu_is_shown_with_every_number_of_it() -> None:
    found = listed(gpus=[find("H100")])
    assert [(f.tp_size, f.holds) for f in found.fits] == [
        (1, Holds.FEWER), (2, Holds.YES), (4, Holds.YES), (8, Holds.YES)
    ]  # fmt: skip
    assert [f.tp_size for f in listed(gpus=[find("H100")], tp_size=4).fits] == [4]


def test_where_the_gpu_that_was_asked_for_never_holds_it_what_would_is_said() -> None:
    found = listed("moonshotai/Kimi-K2-Instruct", [find("L4")])
    assert {f.holds for f in found.fits} == {Holds.NO}
    assert "what would fit: --gpu H200" in found.notes


def test_a_gpu_that_never_holds_it_is_passed_over_with_the_reason() -> None:
    found = listed("deepseek-ai/DeepSeek-V3", [find("L4"), find("P100"), find("MI300X"), find("H200")])
    assert [f.gpu for f in found.fits] == ["H200"]
    why = dict(found.passed_over)
    assert "needs" in why["L4"]
    assert "too old" in why["P100"]
    assert "AMD" in why["MI300X"]


def test_what_vllm_has_no_kernels_for_is_passed_over() -> None:
    assert dict(listed("openai/gpt-oss-20b", [find("T4"), find("L4")]).passed_over) == {"T4": "Turing has no mxfp4"}
    assert "V100" in dict(listed("Qwen/Qwen3-8B-AWQ", [find("V100"), find("T4")]).passed_over)


def test_quantized_it_fits_a_smaller_gpu_and_says_what_that_takes() -> None:
    assert row(listed(quantization="awq"), "L4").tp_size < row(listed(), "L4").tp_size
    assert any("needs a checkpoint" in note for note in listed(quantization="awq").notes)
    assert not any("needs a checkpoint" in note for note in listed(quantization="fp8").notes)
    assert any("vLLM 0.32 has no bitsandbytes" in note for note in listed(quantization="bitsandbytes").notes)
    assert listed(quantization="fp8").model.quantization == "fp8"


def test_an_8_bit_cache_holds_twice_as_many() -> None:
    plain, eight = (fit(model(QWEN), find("H100"), 2, Wanted(kv_cache_dtype=d)) for d in ("auto", "fp8"))
    assert eight.need.requests == pytest.approx(2 * plain.need.requests, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp_size": 3}, "3 does not divide the 64 heads"),
        ({"tp_size": 0}, "size of 0 is not possible"),
        ({"max_model_len": 100_000}, "takes 40,960 tokens at most"),
        ({"quantization": "awk"}, "unknown quantization 'awk'"),
    ],
)
def test_what_can_not_be_asked_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        listed(**change)
    assert refused.value.hint


# -- prices --------------------------------------------------------------------------------------------------


def test_the_cheapest_of_each_kind_is_found_all_in() -> None:
    offers = [
        offer("H100", 3.0), offer("H100", 2.0, region="eu"), offer("L4", 0.1), offer("H100", None),
        offer("H100", 4.0, OfferKind.SERVERLESS, provider="modal", lines=Lines(vcpu=0.05, memory_gib=0.01)),
    ]  # fmt: skip
    spot, serverless = sorted(cheapest(offers, "H100", 1), key=lambda p: p.usd_per_hour)
    assert (spot.kind, spot.usd_per_hour, spot.region) == (OfferKind.SPOT, 2.0, "eu")
    # Eight vCPUs and 32 GiB come with a GPU of a container.
    assert serverless.usd_per_hour == pytest.approx(4.0 + 8 * 0.05 + 32 * 0.01)
    assert serverless.whole


def test_a_line_that_is_not_known_makes_the_price_the_least() -> None:
    (price,) = cheapest([offer("L4", 0.5, lines=Lines(vcpu=None))], "L4", 1)
    assert (price.usd_per_hour, price.whole) == (0.5, False)


def test_gpus_of_one_model_are_in_one_machine_which_is_paid_whole() -> None:
    single, eight = offer("H100", 2.0), offer("H100", 2.5, gpu_count=8)
    assert [p.usd_per_hour for p in cheapest([single, eight], "H100", 4)] == [20.0]
    assert cheapest([single], "H100", 2) == ()
    # With the vCPUs and memory of all eight.
    (billed,) = cheapest([offer("H100", 2.5, gpu_count=8, lines=Lines(vcpu=0.01))], "H100", 4)
    assert billed.usd_per_hour == pytest.approx(20 + 64 * 0.01)
    # A container whose GPUs can be counted out has as many as it takes, each at the price of one.
    modal = offer("H100", 4.0, OfferKind.SERVERLESS, provider="modal")
    assert cheapest([modal], "H100", 2) == ()
    (price,) = cheapest([replace(modal, most_gpus=8)], "H100", 2)
    assert price.usd_per_hour == 8.0


def test_with_prices_the_cheapest_comes_first_and_what_does_not_hold_it_last() -> None:
    offers = [offer("H200", 3.0), offer("L4", 0.2, gpu_count=8), offer("T4", 0.01, gpu_count=8)]
    found = listed(offers=offers)
    assert [f.gpu for f in found.fits][:2] == ["L4", "H200"]
    assert found.fits[-1].gpu == "T4"


# -- a plan that can't be ---------------------------------------------------------------------------------------


def test_a_plan_that_can_not_fit_is_refused_with_all_that_would() -> None:
    refused = refusal(model(QWEN), find("L40S"), 1, Wanted(max_model_len=32_768))
    assert refused is not None
    assert "does not fit 1x L40S" in refused.message
    hint = str(refused.hint)
    for what in ("--tp-size 2 --gpu-count 2", "--gpu A100_80GB", "--quantization awq with"):
        assert what in hint


def test_every_change_that_is_proposed_does_fit() -> None:
    wanted = Wanted(max_model_len=40_960, graphs=False)
    for gpu in (find("L4"), find("L40S"), find("A100_40GB"), find("H100")):
        for name in (QWEN, "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-30B-A3B"):
            refused = refusal(model(name), gpu, 1, wanted)
            words = "" if refused is None else str(refused.hint).replace(",", "")
            if "--tp-size" in words:
                size = int(words.partition("--tp-size ")[2].split()[0])
                assert refusal(model(name), gpu, size, wanted) is None
                assert refusal(model(name), gpu, size // 2, wanted) is not None
            if "--gpu " in words:
                other = words.partition("--gpu ")[2].split()[0]
                assert refusal(model(name), find(other), 1, wanted) is None
            if "--max-model-len" in words:
                length = int(words.partition("--max-model-len ")[2].split()[0])
                assert refusal(model(name), gpu, 1, Wanted(max_model_len=length, graphs=False)) is None


def test_a_shorter_context_is_proposed_where_that_is_enough() -> None:
    refused = refusal(model("Qwen/Qwen3-8B"), find("L4"), 1, Wanted(max_model_len=40_960))
    assert refused is not None
    assert "--max-model-len 16384" in str(refused.hint)


def test_only_what_would_not_even_start_is_refused() -> None:
    """32 requests of that length don't fit at once, and may wait for each other."""
    described, wanted = model(QWEN), Wanted(concurrency=1000)
    assert fit(described, find("H100"), 1, wanted).holds is Holds.FEWER
    assert refusal(described, find("H100"), 1, wanted) is None


def test_the_largest_models_take_the_largest_gpus() -> None:
    refused = refusal(model("moonshotai/Kimi-K2-Instruct"), find("B200"), 1, Wanted())
    assert refused is not None
    assert "--tp-size 8" in str(refused.hint)
    huge = refusal(model("moonshotai/Kimi-K2-Instruct"), find("H100"), 8, Wanted())
    assert huge is not None
    assert huge.hint == "what would fit: --gpu H200"
    none = refusal(model("moonshotai/Kimi-K2-Instruct"), find("L4"), 8, Wanted())
    assert none is not None
    assert "H200" in str(none.hint)


def test_a_size_that_does_not_divide_is_refused_as_such() -> None:
    refused = refusal(model("microsoft/phi-4"), find("L4"), 4, Wanted())
    assert refused is not None
    assert "does not divide" in refused.message


def test_all_gpus_are_weighed_quickly() -> None:
    import time

    started = time.process_time()
    fits(model("Qwen/Qwen3.5-27B"), list(GPUS), Wanted())
    assert time.process_time() - started < 0.3
