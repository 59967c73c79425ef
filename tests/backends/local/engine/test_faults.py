"""Every fault that can be ordered, seen by a client."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tuna_nb.backends.local.engine.faults import FaultBook, FaultKind, parse_fault, parse_fault_flag

from .engine_process import AT_ONCE, EngineProcess, client_of, idle_within, running
from .sse import CHAT, chat, stream

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@pytest.fixture(scope="module")
def faulty() -> Iterator[httpx.Client]:
    with EngineProcess(*AT_ONCE, "--allow-faults") as engine, client_of(engine) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_fault_is_left(faulty: httpx.Client) -> None:
    faulty.delete("/-/faults")


def order(client: httpx.Client, kind: str, **settings: int) -> None:
    assert client.post("/-/faults", json={"kind": kind, "times": 1, **settings}).status_code == 200


def test_an_error_event_comes_with_done_and_a_clean_end_under_200(faulty: httpx.Client) -> None:
    order(faulty, "error_event", after_tokens=3)
    result = stream(faulty, CHAT, **chat(return_token_ids=True))
    assert len(result.ids) == 3
    assert result.error == {"message": DEAD, "type": "InternalServerError", "param": None, "code": 500}
    assert result.done
    order(faulty, "error_event", after_tokens=3)
    assert faulty.post(CHAT, json=chat()).status_code == 500
    assert stream(faulty, CHAT, **chat()).finish == ("stop", None)


def test_a_stream_may_end_without_done_and_without_finish_reason(faulty: httpx.Client) -> None:
    order(faulty, "end_without_done", after_tokens=3)
    result = stream(faulty, CHAT, **chat(return_token_ids=True))
    assert (len(result.ids), result.done, result.finish) == (3, False, (None, None))


@pytest.mark.parametrize(("kind", "error"), [("cut", httpx.RemoteProtocolError), ("reset", httpx.ReadError)])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_connection_may_be_cut_or_reset(
    faulty: httpx.Client, kind: str, error: type[Exception], streamed: bool
) -> None:
    order(faulty, kind, after_tokens=3)
    with pytest.raises((error, httpx.RemoteProtocolError)):
        faulty.post(CHAT, json=chat(stream=streamed))


@pytest.mark.parametrize("after", [0, 2])
def test_a_stall_sends_headers_and_then_nothing_and_keeps_its_place(faulty: httpx.Client, after: int) -> None:
    order(faulty, "stall", after_tokens=after)
    with faulty.stream("POST", CHAT, json=chat(stream=True), timeout=httpx.Timeout(5, read=0.3)) as response:
        assert response.status_code == 200
        # Had it not stalled, it would have ended before this one, which came later.
        assert stream(faulty, CHAT, **chat()).done
        assert running(faulty) == 1
        with pytest.raises(httpx.ReadTimeout):
            list(response.iter_lines())
    assert idle_within(faulty, 1)


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [("broken", 500, DEAD), ("draining", 500, "cannot schedule new futures after shutdown")],
)
def test_requests_may_fail_while_health_is_well(faulty: httpx.Client, kind: str, status: int, message: str) -> None:
    order(faulty, kind)
    answer = faulty.post(CHAT, json=chat(stream=True))
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
    assert faulty.get("/health").status_code == 200


def test_other_engines_refuse_with_retry_after(faulty: httpx.Client) -> None:
    order(faulty, "refuse", status=429, retry_after_s=7)
    answer = faulty.post(CHAT, json=chat())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


def test_health_may_fail_while_requests_are_answered(faulty: httpx.Client) -> None:
    faulty.post("/-/faults", json={"kind": "unhealthy"})
    assert faulty.get("/health").status_code == 503
    assert faulty.post(CHAT, json=chat()).status_code == 200


def test_an_order_that_makes_no_sense_is_refused(faulty: httpx.Client) -> None:
    for wrong in ({"kind": "flood"}, {"kind": "reset", "after": 1}, {"kind": "reset", "times": "x"}, 5):
        assert faulty.post("/-/faults", json=wrong).status_code == 400
    assert faulty.get("/-/faults").json() == []


@pytest.mark.parametrize(("kind", "status"), [("engine_death", 0), ("die", 137)])
def test_the_whole_engine_may_die_under_a_stream(kind: str, status: int) -> None:
    with EngineProcess(*AT_ONCE, "--fault", f"{kind}:after_tokens=2") as engine, client_of(engine) as client:
        if kind == "die":
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                stream(client, CHAT, **chat())
        else:
            result = stream(client, CHAT, **chat())
            assert result.error is not None
            assert result.done
        assert engine.wait() == status


def test_orders_are_taken_only_where_allowed(engine: EngineProcess) -> None:
    assert httpx.post(f"{engine.url}/-/faults", json={"kind": "reset"}, trust_env=False).status_code == 404


def test_a_fault_counts_down_and_flags_mean_the_same_as_json() -> None:
    fault = parse_fault_flag("reset:after_tokens=5,times=2")
    assert fault == parse_fault({"kind": "reset", "after_tokens": 5, "times": 2})
    book = FaultBook((fault,))
    assert [book.claim() is fault for _ in range(3)] == [True, True, False]
    assert parse_fault_flag("stall").kind is FaultKind.STALL
