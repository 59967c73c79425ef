"""The router as a process: the command line that other programs start it by."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import tuna_router
from tuna_router.auth import sha256_hex

from .backends import Seen, Wire
from .conftest import KEY, StartBackend

FOUNDING = ("SERVERLESS_BASE_URL", "SERVERLESS_AUTH_TOKEN", "SKYSERVE_BASE_URL", "API_KEY")


def environment(**more: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k not in FOUNDING}, **more}


class Process:
    """A started router."""

    def __init__(self, process: subprocess.Popen[str], card: dict[str, object]) -> None:
        self.process = process
        self.card = card
        self.url = str(card["url"])

    def get(self, path: str, key: str = KEY) -> httpx.Response:
        return httpx.get(self.url + path, headers={"x-api-key": key}, trust_env=False, verify=False)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


@contextmanager
def started(tmp_path: Path, *flags: str, **env: str) -> Iterator[Process]:
    port_file = tmp_path / "port.json"
    port = () if "--port" in flags else ("--port", "0")
    command = [sys.executable, "-m", "tuna_router", *port, "--port-file", str(port_file), *flags]
    with subprocess.Popen(command, env=environment(**env), stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 20
            while not port_file.exists():
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield Process(process, json.loads(port_file.read_text()))
        finally:
            if process.poll() is None:
                process.kill()


def run(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuna_router", *flags]
    return subprocess.run(command, env=environment(**env), capture_output=True, text=True, timeout=20, check=False)


def test_it_starts_on_a_free_port_says_where_and_ends_at_sigterm(tmp_path: Path) -> None:
    with started(tmp_path, "--api-key-env", "MY_KEY", MY_KEY=KEY) as router:
        card, path = router.card, tmp_path / "port.json"
        assert (card["pid"], card["host"]) == (router.process.pid, "127.0.0.1")
        assert card["url"] == f"http://127.0.0.1:{card['port']}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert router.get("/router/health", key="").json()["status"] == "ok"
        assert router.get("/router/config", key="wrong").status_code == 401
        assert KEY not in router.get("/router/config").text
        assert router.end() == 0
        assert not path.exists()
        assert router.process.stderr is not None
        assert KEY not in router.process.stderr.read()


async def test_flags_make_backends_and_ctrl_c_ends_it(tmp_path: Path, start_backend: StartBackend) -> None:
    first, second, spot = await start_backend(), await start_backend(), await start_backend()
    flags = [
        "--serverless",
        first.url,
        "--serverless",
        second.url + "/",
        "--spot",
        spot.url,
        "--max-concurrency",
        "5",
    ]

    def talk() -> tuple[list[tuple[str, str]], int, int]:
        with started(tmp_path, "--no-auth", *flags) as router:
            config = router.get("/router/config").json()
            backends = [(b["name"], b["url"]) for b in config["backends"]]
            return backends, config["max_concurrency"], router.end(signal.SIGINT)

    backends, limit, code = await asyncio.to_thread(talk)
    assert backends == [("serverless", first.url), ("serverless-2", second.url), ("spot", spot.url)]
    assert (limit, code) == (5, 0)


async def test_the_founding_variables_work_and_flags_win(tmp_path: Path, start_backend: StartBackend) -> None:
    backend, flagged = await start_backend(), await start_backend()
    env = {"SERVERLESS_BASE_URL": backend.url, "SERVERLESS_AUTH_TOKEN": "provider-token", "API_KEY": KEY}
    env["SKYSERVE_BASE_URL"] = "http://127.0.0.1:9"

    def talk() -> dict[str, str]:
        with started(tmp_path, "--serverless", flagged.url, **env) as router:
            assert router.get("/v1/x").status_code == 200
            urls = {b["kind"]: b["url"] for b in router.get("/router/config").json()["backends"]}
            assert router.end() == 0
            return urls

    assert await asyncio.to_thread(talk) == {"serverless": flagged.url, "spot": "http://127.0.0.1:9"}
    assert flagged.seen[0].headers["authorization"] == "Bearer provider-token"
    assert not backend.seen


def test_a_restart_keeps_the_configuration_but_not_a_key_that_came_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    path.write_text('{"max_concurrency": 3}')
    change = {"backends": [{"kind": "serverless", "url": "http://127.0.0.1:9", "headers": {"a": "b"}}]}
    with started(tmp_path, "--config", str(path), API_KEY=KEY) as router:
        answer = httpx.post(
            router.url + "/router/config", json=change, headers={"x-api-key": KEY}, trust_env=False, verify=False
        )
        assert answer.status_code == 200
        os.kill(router.process.pid, signal.SIGKILL)
        router.process.wait(5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "port.json").unlink()
    with started(tmp_path, "--config", str(path), API_KEY="rotated") as router:
        assert router.get("/router/config").status_code == 401
        config = router.get("/router/config", "rotated").json()
        assert config["max_concurrency"] == 3
        assert config["backends"][0]["url"] == "http://127.0.0.1:9"
        assert list(config["backends"][0]["headers"]) == ["a"]


async def test_sigterm_lets_a_stream_finish_and_refuses_new_connections(
    tmp_path: Path, start_backend: StartBackend
) -> None:
    go_on = asyncio.Event()

    async def slow(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await go_on.wait()
        await wire.token("two", "stop")
        await wire.done()

    backend = await start_backend(slow)
    with started(tmp_path, "--no-auth", "--serverless", backend.url) as router:
        async with (
            httpx.AsyncClient(trust_env=False, verify=False) as client,
            client.stream("POST", router.url + "/v1/completions", json={"stream": True}) as answer,
        ):
            pieces = answer.aiter_text()
            text = await anext(pieces)
            router.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 5
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", int(str(router.card["port"])))
                    writer.close()
                except (ConnectionRefusedError, ConnectionResetError):  # the latter: caught in the backlog
                    break
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            go_on.set()
            async for piece in pieces:
                text += piece
        assert text.endswith("[DONE]\n\n")
        assert await asyncio.to_thread(router.process.wait, 10) == 0


async def test_a_stream_that_outlives_the_shutdown_time_ends_with_an_error_event(
    tmp_path: Path, start_backend: StartBackend
) -> None:
    async def endless(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await wire.closed_by_peer()

    backend = await start_backend(endless)
    with started(tmp_path, "--no-auth", "--serverless", backend.url, "--shutdown-timeout-s", "1") as router:
        async with (
            httpx.AsyncClient(trust_env=False, verify=False) as client,
            client.stream("POST", router.url + "/v1/completions", json={"stream": True}) as answer,
        ):
            pieces = answer.aiter_text()
            text = await anext(pieces)
            router.process.send_signal(signal.SIGTERM)
            async for piece in pieces:
                text += piece
        assert json.loads(text.split("data: ")[-1])["error"]["code"] == "router_stopping"
        assert await asyncio.to_thread(router.process.wait, 10) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sighup_reads_the_configuration_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    entry = {"name": "new", "sha256": sha256_hex("new"), "role": "admin"}
    path.write_text('{"max_concurrency": 3}')
    with started(tmp_path, "--config", str(path), API_KEY=KEY) as router:
        assert router.get("/router/config").json()["max_concurrency"] == 3
        text = json.dumps({"max_concurrency": 4, "keys": [entry]})
        path.write_text(text)
        router.process.send_signal(signal.SIGHUP)
        wait_until(lambda: router.get("/router/config", "new").status_code == 200)
        assert router.get("/router/config", "new").json()["max_concurrency"] == 4
        assert router.get("/router/stats").status_code == 200, "the key of the command line stays"
        assert path.read_text() == text, "what was read is not written back"
        path.write_text('{"max_concurency": 5}')
        router.process.send_signal(signal.SIGHUP)
        assert router.process.stderr is not None
        while "did you mean" not in (line := router.process.stderr.readline()):
            assert line
        assert router.get("/router/config", "new").json()["max_concurrency"] == 4
        assert router.end() == 0


async def test_a_router_started_again_on_its_port_goes_on_where_it_was(
    tmp_path: Path, start_backend: StartBackend
) -> None:
    backend = await start_backend()
    config = tmp_path / "router.json"
    config.write_text("{}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ("--config", str(config), "--serverless", backend.url, "--port", port)

    def live(requests: int) -> dict[str, int]:
        with (
            started(tmp_path, *flags, API_KEY=KEY) as router,
            httpx.Client(trust_env=False, verify=False) as client,
        ):
            for _ in range(requests):  # on connections that the router closes: their ends stay in TIME_WAIT
                assert client.get(router.url + "/v1/x", headers={"x-api-key": KEY}).status_code == 200
            totals: dict[str, int] = router.get("/router/stats").json()["totals"]
            assert router.end() == 0
            return totals

    assert (await asyncio.to_thread(live, 3))["finished"] == 3
    assert (await asyncio.to_thread(live, 2))["finished"] == 5
    state = tmp_path / "router.state.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert KEY not in state.read_text()
    state.write_text("not ours")
    assert (await asyncio.to_thread(live, 1))["finished"] == 1
    assert [p.read_text() for p in tmp_path.glob("*.unusable-*")] == ["not ours"]


async def test_a_second_signal_ends_it_at_once(tmp_path: Path, start_backend: StartBackend) -> None:
    async def endless(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await wire.closed_by_peer()

    backend = await start_backend(endless)
    with started(tmp_path, "--no-auth", "--serverless", backend.url, "--shutdown-timeout-s", "600") as router:
        async with (
            httpx.AsyncClient(trust_env=False, verify=False) as client,
            client.stream("POST", router.url + "/v1/completions", json={"stream": True}) as answer,
        ):
            pieces = answer.aiter_text()
            await anext(pieces)
            for _ in range(2):
                router.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.1)
            assert await asyncio.to_thread(router.process.wait, 10) == 0


def test_systemd_is_told_when_it_listens_and_when_it_stops(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(10)
        with started(tmp_path, "--no-auth", NOTIFY_SOCKET=str(path)) as router:
            assert notify.recv(100) == b"READY=1"
            assert router.end() == 0
            assert notify.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    ("flags", "env", "code", "message"),
    [
        (["--port", "many"], {}, 2, "'many' is not a port"),
        (["--prot", "1"], {}, 2, "unrecognized arguments: --prot"),
        (["--spot", "x:1", "--no-auth"], {}, 2, "--spot is not an http or https URL: 'x:1'"),
        (["--spot", "http://u:secret@x", "--no-auth"], {}, 2, "--spot carries a user name or password"),
        ([], {}, 2, "no API key is configured"),
        (["--api-key-env", "NOT_SET"], {}, 2, "the environment variable NOT_SET is empty or not set"),
        (["--api-key-env", "A", "--no-auth"], {"A": "k"}, 2, "not allowed with argument"),
        (["--no-auth", "--config", "/no/such/file.json"], {}, 1, "there is no file /no/such/file.json"),
        (["--no-auth", "--host", "no.such.host.invalid"], {}, 1, "is no address of this machine"),
        (["--no-auth"], {"SERVERLESS_BASE_URL": "nonsense"}, 2, "--serverless is not an http or https URL"),
    ],
)
def test_a_bad_start_is_two_lines_and_an_exit_code(
    flags: list[str], env: dict[str, str], code: int, message: str
) -> None:
    result = run("--port", "0", *flags, **env)
    assert result.returncode == code
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert message in lines[0]
    assert lines[1].startswith("hint: ")
    assert "secret" not in result.stderr
    assert not result.stdout


def test_a_taken_port_is_two_lines_and_an_exit_code() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("--port", str(port), "--no-auth")
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == f"tuna-router: port {port} on 127.0.0.1 is taken"
    assert result.stderr.splitlines()[1].startswith("hint: ")


@pytest.mark.parametrize("text", ["{", "[]", '{"max_concurency": 1}', '{"backends": [{"url": "http://x"}]}'])
def test_a_bad_file_is_two_lines_and_an_exit_code(tmp_path: Path, text: str) -> None:
    path = tmp_path / "router.json"
    path.write_text(text)
    result = run("--port", "0", "--no-auth", "--config", str(path))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 2
    assert str(path) in result.stderr


def test_starting_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from tuna_router.command import parse, prepare; import tuna_router.app, tuna_router.serving;"
        "tuna_router.app.Router(prepare(parse(['--no-auth', '--spot', 'http://x']), {}).settings);"
        "heavy = {'fastapi', 'starlette', 'pydantic', 'prometheus_client', 'yaml', 'httpx', 'rich', 'pandas',"
        "'IPython', 'tuna_nb'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.strip() == "[]"


def test_help_names_every_flag_of_the_contract() -> None:
    result = run("--help")
    assert result.returncode == 0
    for flag in (
        "--host",
        "--port",
        "--serverless",
        "--spot",
        "--api-key-env",
        "--no-auth",
        "--config",
        "--port-file",
        "--state",
        "--access-log",
        "--log-format",
    ):
        assert flag in result.stdout


def test_the_router_knows_nothing_of_the_notebook() -> None:
    sources = Path(tuna_router.__file__).parent.rglob("*.py")
    assert not [
        str(path) for path in sources if "import tuna_nb" in path.read_text() or "from tuna_nb" in path.read_text()
    ]
