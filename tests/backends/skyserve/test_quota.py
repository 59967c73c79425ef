"""AWS's spot quota: real boto3 against a pretend Service Quotas."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tuna_nb.backends.skyserve.quota import WHERE, aws


class Quotas(FakeCloud):
    """vcpus: what it answers for the codes that it was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.vcpus: dict[str, float] = {}

    def routes(self) -> list[BaseRoute]:
        return [Route("/", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        assert request.headers["x-amz-target"] == "ServiceQuotasV20190624.GetServiceQuota"
        code = json.loads(await request.body())["QuotaCode"]
        if code not in self.vcpus:
            denied = {"__type": "AccessDeniedException", "message": "not allowed to look"}
            return Response(json.dumps(denied), 400, media_type="application/x-amz-json-1.1")
        told = {"Quota": {"QuotaCode": code, "Value": self.vcpus[code]}}
        return Response(json.dumps(told), media_type="application/x-amz-json-1.1")


@pytest.fixture
def quotas(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quotas]:
    with Quotas() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        yield running


def test_a_quota_of_nothing_is_told_with_the_request_that_mends_it(quotas: Quotas) -> None:
    quotas.vcpus = {"L-3819A6DF": 0.0, "L-7212CCBC": 96.0}
    row = aws("L4", "us-east-2")
    assert not row.passed
    assert "request-service-quota-increase" in str(row.fix)
    assert "--region us-east-2" in str(row.fix)
    assert aws("V100", "us-east-2").passed
    assert "96 vCPUs" in aws("V100", "us-east-2").message


def test_what_can_not_be_asked_is_said_and_is_no_failure(quotas: Quotas) -> None:
    row = aws("L4", "us-east-1")
    assert row.passed
    assert "not allowed to look" in row.message
    assert WHERE["aws"] in aws("B200", "us-east-1").message
