"""How each provider bills: by its own published examples, and the one place that everything else reads."""

from __future__ import annotations

import math
from datetime import date

import pytest

from tuna_nb.backends import registry
from tuna_nb.backends.base import Kind
from tuna_nb.backends.local.bill import GRANULARITY_S
from tuna_nb.catalog import rules, snapshot
from tuna_nb.catalog.offers import Billing, OfferKind
from tuna_nb.catalog.rules import rule


def billed_s(provider: str, kind: OfferKind, up_s: float, *, taken: bool = False) -> float:
    return rule(provider, kind).billing.billed_s(up_s, taken=taken)


def test_modal_has_no_minimum_and_a_warm_container_is_paid_like_a_busy_one() -> None:
    """https://modal.com/docs/guide/billing: no minimum increments of usage. Its pricing page shows an H100 at
    0.001097 USD a second: one minute of work and a window of five cost six minutes."""
    modal = rule("modal", OfferKind.SERVERLESS).billing
    assert modal.billed_s(1) == 1
    assert modal.billed_s(60 + 300) * 0.001097 == pytest.approx(0.39492)
    assert modal.idle
    assert modal.boot


def test_runpod_rounds_a_worker_up_to_the_next_second() -> None:
    """https://docs.runpod.io/serverless/pricing: from a worker's start to its full stop, start, execution and idle
    time-out (5 s by default), rounded up. A flex worker of 24 GB at 0.00019 USD a second."""
    start_s, works_s, idle_s = 3.2, 1.1, 5.0
    worker_s = billed_s("runpod", OfferKind.SERVERLESS, start_s + works_s + idle_s)
    assert worker_s == 10
    assert worker_s * 0.00019 == pytest.approx(0.0019)


def test_cerebrium_bills_loading_the_model_and_not_the_cold_start_before_it() -> None:
    """https://docs.cerebrium.ai/calculating-cost: an A10 at 0.000306, 2 cores at 0.00000655, 20 GB at 0.00000222 USD a
    second; 300 cold starts a month with 2 s of loading each, and 100,000 requests of 2 s."""
    cerebrium = rule("cerebrium", OfferKind.SERVERLESS).billing
    each_s = 0.000306 + 2 * 0.00000655 + 20 * 0.00000222
    seconds = 300 * cerebrium.billed_s(2) + 100_000 * cerebrium.billed_s(2)
    assert seconds * each_s == pytest.approx(72.9180, abs=1e-3)
    assert cerebrium.boot
    assert cerebrium.free_start


def test_baseten_rounds_partial_minutes_up() -> None:
    """https://docs.baseten.co/organization/billing: by the minute, model load included, image pull not. An A100 at
    0.06667 USD a minute (its instance type reference)."""
    assert billed_s("baseten", OfferKind.SERVERLESS, 61) == 120
    assert billed_s("baseten", OfferKind.SERVERLESS, 1) == 60
    assert billed_s("baseten", OfferKind.SERVERLESS, 120) / 60 * 0.06667 == pytest.approx(0.13334)
    assert "pulling its image" in rule("baseten", OfferKind.SERVERLESS).billing.free_start


def test_cloud_run_rounds_up_to_a_tenth_of_a_second() -> None:
    """https://cloud.google.com/run/pricing: to the nearest 100 ms, 0.000018 USD a vCPU-second with instance-based
    billing, for the whole life of the instance."""
    assert billed_s("cloudrun", OfferKind.SERVERLESS, 0.05) == pytest.approx(0.1)
    assert billed_s("cloudrun", OfferKind.SERVERLESS, 12.34) == pytest.approx(12.4)
    assert billed_s("cloudrun", OfferKind.SERVERLESS, 3600) * 8 * 0.000018 == pytest.approx(0.5184)


def test_azure_container_apps_bill_an_idle_gpu_in_full() -> None:
    """https://learn.microsoft.com/azure/container-apps/billing: GPU-seconds, by the second; the idle rate wants that
    no GPU is allocated. 24 vCPUs at 0.000024 USD a second for an hour."""
    azure = rule("azure", OfferKind.SERVERLESS)
    assert azure.billing.billed_s(3600) * 24 * 0.000024 == pytest.approx(2.0736)
    assert azure.billing.idle
    assert "idle" in azure.note


def test_aws_bills_a_minute_at_least_and_what_it_takes_back_in_the_first_hour_is_free() -> None:
    """https://aws.amazon.com/about-aws/whats-new/2017/10/announcing-amazon-ec2-per-second-billing/ and the user
    guide's table of interrupted spot instances: theirs in the first hour nothing, later the seconds; ours always."""
    for kind in (OfferKind.ON_DEMAND, OfferKind.SPOT):
        assert billed_s("aws", kind, 10) == 60
        assert billed_s("aws", kind, 60.2) == 61
    assert billed_s("aws", OfferKind.SPOT, 3599, taken=True) == 0
    assert billed_s("aws", OfferKind.SPOT, 3600, taken=True) == 3600
    assert billed_s("aws", OfferKind.SPOT, 3599) == 3599
    assert billed_s("aws", OfferKind.ON_DEMAND, 3599, taken=True) == 3599


def test_google_bills_thirty_seconds_as_a_minute() -> None:
    """https://cloud.google.com/compute/vm-instance-pricing: 30 seconds are billed as one minute, then by the second.
    A preemptible machine that Google takes in its first minute is free (it was ten minutes once)."""
    for kind in (OfferKind.ON_DEMAND, OfferKind.SPOT):
        assert billed_s("gcp", kind, 30) == 60
        assert billed_s("gcp", kind, 61) == 61
    assert billed_s("gcp", OfferKind.SPOT, 59, taken=True) == 0
    assert billed_s("gcp", OfferKind.SPOT, 61, taken=True) == 61


def test_azure_bills_a_machine_that_starts_and_not_one_that_is_allocated() -> None:
    """https://learn.microsoft.com/azure/virtual-machines/states-billing: creating is not billed, starting and
    stopping are."""
    for kind in (OfferKind.ON_DEMAND, OfferKind.SPOT):
        assert billed_s("azure", kind, 90) == 90
        assert rule("azure", kind).billing.boot
        assert "allocating" in rule("azure", kind).billing.free_start


def test_vast_bills_ten_minutes_as_ten_minutes_and_loading_not_at_all() -> None:
    """https://docs.vast.ai/billing-help: deleted after ten minutes, ten are paid, not an hour; an
    instance that is loading is not. On its serverless side loading a model is, recruiting a worker is not."""
    for kind in (OfferKind.DEDICATED, OfferKind.INTERRUPTIBLE):
        assert billed_s("vast", kind, 600) == 600
        assert "loading" in rule("vast", kind).billing.free_start
    assert "recruiting" in rule("vast", OfferKind.SERVERLESS).billing.free_start
    assert rule("vast", OfferKind.SERVERLESS).billing.boot


def test_tensordock_bills_no_minimum() -> None:
    """https://docs.tensordock.com/virtual-machines/spot-instances: 0.35 USD an hour bid and 200 GB at 0.00005 an hour
    make 0.36 while it runs and 0.01 while it is outbid."""
    assert billed_s("tensordock", OfferKind.DEDICATED, 1) == 1
    assert "disk goes on" in rule("tensordock", OfferKind.INTERRUPTIBLE).note


def test_the_local_cloud_bills_as_its_own_bill_does() -> None:
    for kind in Kind:
        assert rule("local", kind).billing.granularity_s == GRANULARITY_S


def test_a_plugins_provider_is_assumed_to_bill_everything_by_the_second_and_said_to_be() -> None:
    unknown = rule("acme", Kind.SERVERLESS)
    assert unknown.assumed
    assert unknown.billing == Billing(1.0, 0.0, boot=True, idle=True)
    assert not unknown.source
    assert rule("aws", "a kind of tomorrow").kind is OfferKind.ON_DEMAND


def test_every_rule_that_is_not_assumed_has_its_page_and_its_day() -> None:
    for one in rules.known():
        assert one.assumed or one.provider == "local" or one.source.startswith("https://")
        assert one.assumed or date.fromisoformat(one.checked).toordinal() <= date.today().toordinal()
        assert one.billing.boot is not None
        assert one.billing.idle is not None
    assert len({(one.provider, one.kind) for one in rules.known()}) == len(rules.known())


def test_whatever_is_deployed_on_or_priced_here_has_a_rule() -> None:
    written = {(one.provider, one.kind) for one in rules.known()}
    for name in registry.names():
        assert {(name, OfferKind(kind)) for kind in registry.get(name).kinds} <= written
    assert {(o.provider, o.kind) for o in snapshot.offers()} <= written
    assert all(o.billing == rule(o.provider, o.kind).billing for o in snapshot.offers())


@pytest.mark.parametrize("one", rules.known(), ids=lambda one: f"{one.provider}-{one.kind}")
def test_no_rule_bills_less_than_the_time_or_falls_as_it_grows(one: rules.Rule) -> None:
    spans = [0, 0.01, 0.1, 1, 59.999, 60, 60.001, 61, 3599.5, 3600, 86_400.3]
    billed = [one.billing.billed_s(s) for s in spans]
    assert billed == sorted(billed)
    assert all(b >= s or math.isclose(b, s) for b, s in zip(billed, spans, strict=True))
