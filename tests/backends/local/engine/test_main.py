"""The process: start, queue, disconnects, signals, bad flags."""

from __future__ import annotations

import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .engine_process import AT_ONCE, COMMAND, EngineProcess, client_of, idle_within, running
from .sse import CHAT, chat, stream

ENDLESS = {"ignore_eos": True, "max_tokens": 4000}


def test_headers_come_at_once_and_the_first_byte_when_scheduled() -> None:
    with EngineProcess("--max-num-seqs", "1") as engine, client_of(engine) as client:
        with client.stream("POST", CHAT, json=chat(stream=True, **ENDLESS)) as first:
            lines = first.iter_lines()  # kept: dropping the iterator would close the connection
            next(lines)
            with client.stream("POST", CHAT, json=chat(stream=True), timeout=httpx.Timeout(5, read=0.3)) as second:
                assert second.status_code == 200
                metrics = client.get("/metrics").text
                with pytest.raises(httpx.ReadTimeout):
                    next(second.iter_lines())
        assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0' in metrics
        assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0' in metrics


def test_a_full_queue_answers_503_without_retry_after_and_health_stays_well() -> None:
    flags = ("--max-num-seqs", "1", "--max-num-queued-reqs", "1")
    busy = chat(stream=True, **ENDLESS)
    with (
        EngineProcess(*flags) as engine,
        client_of(engine) as client,
        client.stream("POST", CHAT, json=busy) as first,
    ):
        assert first.status_code == 200
        refused = client.post(CHAT, json=chat(stream=True))
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "Service Unavailable"
        assert "retry-after" not in refused.headers
        assert client.get("/health").status_code == 200
        assert 'reason="max_num_queued_reqs"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_place_at_once_and_is_not_counted(streamed: bool) -> None:
    with EngineProcess() as engine, client_of(engine) as client:
        body = httpx.Request("POST", engine.url, json=chat(stream=streamed, **ENDLESS)).read()
        with socket.create_connection(("127.0.0.1", engine.port)) as sock:
            head = f"POST {CHAT} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            while running(client) == 0:
                pass
        assert idle_within(client, 2)  # 0.1 s on a quiet machine
        assert 'finished_reason="abort",model_name="tiny"} 0.0' in client.get("/metrics").text


def test_sigterm_aborts_streams_with_an_error_event_and_closes_the_port() -> None:
    with EngineProcess() as engine, client_of(engine) as client, ThreadPoolExecutor(2) as threads:
        streamed = threads.submit(stream, client, CHAT, **chat(**ENDLESS))
        whole = threads.submit(client.post, CHAT, json=chat(**ENDLESS))
        with client_of(engine) as watcher:
            while running(watcher) < 2:
                pass
        engine.terminate()
        result = streamed.result(5)
        assert result.error is not None
        assert result.done
        assert whole.result(5).status_code == 500
        assert engine.wait() == 0
        with pytest.raises(httpx.ConnectError):
            client_of(engine).get("/health")


def test_sigterm_with_a_timeout_drains_and_refuses_newcomers_while_health_is_well() -> None:
    flags = ("--decode-tokens-per-s", "50", "--shutdown-timeout", "20")
    with EngineProcess(*flags) as engine, client_of(engine) as client, ThreadPoolExecutor(1) as threads:
        running_one = threads.submit(stream, client, CHAT, **chat(max_tokens=200, ignore_eos=True))
        with client_of(engine) as other:
            while running(other) == 0:
                pass
            engine.terminate()
            # Short ones: what is let in before the signal is seen must not outlast the drain.
            refused = other.post(CHAT, json=chat(max_tokens=1))
            while refused.status_code == 200:
                refused = other.post(CHAT, json=chat(max_tokens=1))
            assert refused.status_code == 500
            assert refused.json()["error"]["message"] == "cannot schedule new futures after shutdown"
            assert other.get("/health").status_code == 200
        result = running_one.result(30)
        assert (result.finish, result.done, result.error) == (("length", None), True, None)
        assert engine.wait() == 0


def test_sigterm_may_leave_streams_hanging_with_the_port_closed() -> None:
    with EngineProcess("--hang-on-sigterm") as engine, client_of(engine) as client:
        body = chat(stream=True, **ENDLESS)
        with client.stream("POST", CHAT, json=body, timeout=httpx.Timeout(5, read=0.5)) as response:
            lines = response.iter_lines()
            next(lines)
            engine.terminate()
            with pytest.raises(httpx.ReadTimeout):
                for _ in lines:
                    pass
            with pytest.raises(httpx.ConnectError):
                client_of(engine).get("/health")
        assert engine.wait() == 0


def test_an_engine_may_die_at_start() -> None:
    done = subprocess.run([*COMMAND, "--model", "m", "--die-at-start"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert "engine core initialization failed" in done.stderr


def test_an_engine_may_never_become_ready_and_still_ends_on_sigterm() -> None:
    engine = EngineProcess("--never-ready")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            engine.process.wait(0.6)
        assert not engine.port_file.exists()
        engine.terminate()
        assert engine.wait() == 0
    finally:
        engine.end()


def test_a_startup_delay_passes_before_it_listens() -> None:
    began = time.monotonic()
    with EngineProcess("--startup-delay", "0.5"):
        assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize(
    ("flags", "says", "hint"),
    [
        ((), "--model", "--help"),
        (("--model", "m", "--max-num-seq", "2"), "--max-num-seq", "Did you mean --max-num-seqs?"),
        (("--model", "m", "--port", "99999"), "between 0 and 65535", "--help"),
        (("--model", "m", "--decode-tokens-per-s", "-1"), "0 or more", "--help"),
        (("--model", "m", "--fault", "flood"), "unknown fault 'flood'", "--help"),
        (("--model", " "), "the name is empty", "--help"),
    ],
)
def test_a_bad_flag_gives_two_lines_and_exit_status_2(flags: tuple[str, ...], says: str, hint: str) -> None:
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=10)
    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert says in first
    assert second.startswith("hint: ")
    assert hint in second


def test_a_taken_port_gives_two_lines_and_exit_status_2(engine: EngineProcess) -> None:
    flags = ("--model", "m", "--port", str(engine.port))
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert f"port {engine.port} on 127.0.0.1 is taken" in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) == 2


def test_starting_imports_nothing_heavy() -> None:
    code = (
        "import sys, tuna_nb.backends.local.engine.__main__\n"
        "heavy = {'fastapi', 'pydantic', 'numpy', 'uvicorn', 'httpx', 'pandas', 'IPython'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, done.stderr


def test_many_streams_at_once_all_end_well() -> None:
    with EngineProcess(*AT_ONCE) as engine, client_of(engine) as client, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: stream(client, CHAT, **chat(f"question {n}")), range(40)))
    assert all(result.done and result.finish == ("stop", None) for result in results)
