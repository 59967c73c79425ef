"""How many spot GPUs an account may rent: a new one often none, and then every launch fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tuna_nb.backends.base import Check

WHERE: Final[Mapping[str, str]] = {
    "aws": "Service Quotas, EC2, 'All G and VT Spot Instance Requests' and its likes",
    "gcp": "IAM & Admin, Quotas, 'Preemptible <GPU> GPUs' in the region and 'GPUs (all regions)'",
    "azure": "Usage + quotas, 'Total Regional Spot vCPUs' in the region",
}
_CODES: Final[Mapping[str, tuple[str, str]]] = {
    "T4": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "L4": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "A10G": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "L40S": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "V100": ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    "A100_40GB": ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    "A100_80GB": ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    "H100": ("L-C4BD4855", "All P5 Spot Instance Requests"),
}
"""EC2's quota of a GPU's machines, in vCPUs (AWS Service Quotas, "EC2 spot instance limits")."""
_SECONDS: Final = 5


def aws(gpu: str, region: str) -> Check:
    """Asks AWS, which takes a second; in a thread. Where it does not tell, that is said and is no failure."""
    if gpu not in _CODES:
        return Check("quota", True, f"not asked: look at {WHERE['aws']} in {region}")
    code, named = _CODES[gpu]
    try:
        import boto3
        from botocore.config import Config

        limits = Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1})
        client = boto3.client("service-quotas", region_name=region, config=limits)
        value = float(client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
    except Exception as exc:  # noqa: BLE001 - boto makes its errors' classes at run time
        told = " ".join(str(exc).split())[:200]
        return Check("quota", True, f"{named} in {region} could not be asked: {told}")
    if value <= 0:
        fix = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code}"
        wanted = f"{fix} --desired-value 32 --region {region}"
        return Check("quota", False, f"{named} in {region} is 0 vCPUs: no such spot machine may start", wanted)
    return Check("quota", True, f"{named} in {region}: {value:g} vCPUs")
