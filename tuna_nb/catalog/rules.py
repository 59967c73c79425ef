"""How each provider bills what it sells: the one place that says so, each rule with the page that it was read on.

A rule is about time: from when to when, rounded how. What the GPU and the things beside it cost is an offer's. None
of them bills a container that does not exist: scaled to zero is free everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tuna_nb.catalog.offers import Billing, OfferKind

_CHECKED: Final = "2026-11-22"


@dataclass(frozen=True, slots=True)
class Rule:
    """source: the provider's own page, empty where it has none. checked: the day on which that was read, ISO.

    assumed: nobody has published it; it is what costs most among the usual ways. note: what a reader of a bill
    should know beside the figures.
    """

    provider: str
    kind: OfferKind
    billing: Billing
    source: str = ""
    checked: str = ""
    note: str = ""
    assumed: bool = False


def rule(provider: str, kind: str) -> Rule:
    """Of a resource, by its provider's name and how it is sold, as an offer's or a backend's `kind` has it.

    A provider that nobody here knows, such as a plugin's, is assumed to bill by the second, boot and idle included;
    a kind that is no offer's, to be a machine that stays.
    """
    sold = _KINDS.get(kind, OfferKind.ON_DEMAND)
    return _BY_NAME.get((provider, sold)) or Rule(provider, sold, _ALL, assumed=True)


def of(provider: str, kind: str, cloud: str | None) -> Rule:
    """Of a deployment's resource: for a broker that rents in several clouds, the rule of the cloud."""
    found = rule(provider, kind)
    there = rule(cloud, kind) if found.assumed and cloud else found
    return found if there.assumed else there


def known() -> tuple[Rule, ...]:
    """All that are written down here."""
    return _RULES


_KINDS: Final = {kind.value: kind for kind in OfferKind}
_ALL: Final = Billing(boot=True, idle=True)
_AWS: Final = "https://aws.amazon.com/ec2/pricing/on-demand/"
_AWS_SPOT: Final = "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/billing-for-interrupted-spot-instances.html"
_GCP: Final = "https://cloud.google.com/compute/vm-instance-pricing"
_GCP_SPOT: Final = "https://cloud.google.com/compute/docs/instances/preemptible"
_AZURE: Final = "https://learn.microsoft.com/azure/virtual-machines/states-billing"
_VAST: Final = "https://docs.vast.ai/billing-help"
_TENSORDOCK: Final = "https://docs.tensordock.com/virtual-machines/spot-instances"
_RENTED: Final = "disk, address and egress are lines of their own"
_STOPPED: Final = "a stopped machine's disk goes on being billed"

_RULES: Final = (
    Rule(
        "modal",
        OfferKind.SERVERLESS,
        _ALL,
        "https://modal.com/docs/guide/billing",
        _CHECKED,
        "no minimum; memory and cores are billed at what was reserved or used, whichever is more",
    ),
    Rule(
        "runpod",
        OfferKind.SERVERLESS,
        _ALL,
        "https://docs.runpod.io/serverless/pricing",
        _CHECKED,
        "a worker is billed from its start to its full stop; its container disk with it",
    ),
    Rule(
        "cerebrium",
        OfferKind.SERVERLESS,
        Billing(boot=True, idle=True, free_start="placing the container, its image and its storage"),
        "https://docs.cerebrium.ai/calculating-cost",
        _CHECKED,
        "builds are billed, where the image has changed; loading the model is billed, what comes before is not",
    ),
    Rule(
        "baseten",
        OfferKind.SERVERLESS,
        Billing(60.0, 60.0, True, True, "placing the replica and pulling its image"),
        "https://docs.baseten.co/organization/billing",
        _CHECKED,
        "image builds are billed; a replica that never came up is not, nor what it takes to drain",
    ),
    Rule(
        "cloudrun",
        OfferKind.SERVERLESS,
        Billing(0.1, boot=True, idle=True),
        "https://cloud.google.com/run/pricing",
        _CHECKED,
        "with a GPU an instance is billed for its whole life",
    ),
    Rule(
        "azure",
        OfferKind.SERVERLESS,
        _ALL,
        "https://learn.microsoft.com/azure/container-apps/billing",
        _CHECKED,
        "the lower idle rate is not for containers with a GPU; HTTP requests beyond 2 million a month are a line",
    ),
    Rule("local", OfferKind.SERVERLESS, _ALL, "", _CHECKED, "pretended: nothing is charged"),
    Rule("local", OfferKind.SPOT, _ALL, "", _CHECKED, "pretended: nothing is charged"),
    Rule("aws", OfferKind.ON_DEMAND, Billing(minimum_s=60.0, boot=True, idle=True), _AWS, _CHECKED, _RENTED),
    Rule(
        "aws",
        OfferKind.SPOT,
        Billing(minimum_s=60.0, boot=True, idle=True, taken_free_s=3600.0),
        _AWS_SPOT,
        _CHECKED,
        f"what AWS takes away in its first hour is free; {_RENTED}",
    ),
    Rule("gcp", OfferKind.ON_DEMAND, Billing(minimum_s=60.0, boot=True, idle=True), _GCP, _CHECKED, _RENTED),
    Rule(
        "gcp",
        OfferKind.SPOT,
        Billing(minimum_s=60.0, boot=True, idle=True, taken_free_s=60.0),
        _GCP_SPOT,
        _CHECKED,
        f"what Google takes away in its first minute is free, as of preemptible machines; {_RENTED}",
    ),
    *(
        Rule(
            "azure",
            kind,
            Billing(boot=True, idle=True, free_start="allocating the machine"),
            _AZURE,
            _CHECKED,
            f"billed until it is deallocated; {_RENTED}",
        )
        for kind in (OfferKind.ON_DEMAND, OfferKind.SPOT)
    ),
    *(
        Rule(
            "skyserve",
            kind,
            Billing(minimum_s=60.0, boot=True, idle=True),
            note="its controller, a machine for all services of a user, is billed beside them and not counted here",
            assumed=True,
        )
        for kind in (OfferKind.ON_DEMAND, OfferKind.SPOT)
    ),
    *(
        Rule(
            "vast",
            kind,
            Billing(boot=True, idle=True, free_start="loading the image"),
            _VAST,
            _CHECKED,
            f"{_STOPPED}; traffic is billed by the byte",
        )
        for kind in (OfferKind.DEDICATED, OfferKind.INTERRUPTIBLE)
    ),
    Rule(
        "vast",
        OfferKind.SERVERLESS,
        Billing(boot=True, idle=True, free_start="recruiting the worker"),
        "https://docs.vast.ai/documentation/serverless/pricing",
        _CHECKED,
        "loading the model is billed; an inactive worker costs its disk and traffic alone",
    ),
    Rule("tensordock", OfferKind.DEDICATED, _ALL, _TENSORDOCK, _CHECKED, _STOPPED),
    Rule(
        "tensordock", OfferKind.INTERRUPTIBLE, _ALL, _TENSORDOCK, _CHECKED, f"the bid is the machine's; {_STOPPED}"
    ),
)
_BY_NAME: Final = {(one.provider, one.kind): one for one in _RULES}
