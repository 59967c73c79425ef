"""Tuna in the rig: the terminal as its user types in it, and a load that misses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conftest import nothing_may_be_left
from tests.frontends.terminals import Done, Terminal, until
from tests.rig.network import GATEWAY
from tests.rig.rig import ENGINE, Rig, processes, runs_here

MODEL = "tiny"
SPOT = "spot"
CLOUD = "aws"
SERVERLESS = "serverless"
NOTICED_S = 15.0
"""A machine that is gone without a word is noticed in about five seconds; these two cores are busy."""
REACHABLE = ("--option", f"listen={GATEWAY}")
"""The serverless side where the machines of the cloud reach it, as a provider's is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent and how long it took (seconds), which backend answered, and what was wrong."""

    sent: float
    took_s: float
    backend: str
    wrong: str | None

    @property
    def side(self) -> str:
        return self.backend.partition(".")[0]


@dataclass
class Load:
    """Streams of tokens without a break, as many at once as there are clients. Times are of time.monotonic()."""

    url: str
    key: str
    clients: int = 4
    pause_s: float = 0.5
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join(60)

    @property
    def wrong(self) -> list[Answer]:
        return [each for each in self.answers if each.wrong is not None]

    def sides(self, last_s: float) -> Counter[str]:
        """Which side answered what was sent in the last so many seconds."""
        since = time.monotonic() - last_s
        return Counter(each.side for each in self.answers if each.sent >= since)

    def only(self, side: str, last_s: float = 5.0) -> bool:
        return set(self.sides(last_s)) == {side}

    def replicas(self, last_s: float = 10.0) -> set[str]:
        """The spot replicas that answered what was sent in the last so many seconds.

        To be waited for, unlike `tuna status`: that imports SkyPilot each time, which takes seconds of a processor.
        """
        since = time.monotonic() - last_s
        return {each.backend for each in self.answers if each.sent >= since and each.side == SPOT}

    def longest(self, since: float) -> float:
        """Seconds of the slowest answer among those sent since."""
        return max((each.took_s for each in self.answers if each.sent >= since), default=0.0)

    def slow(self, since: float) -> list[str]:
        """Who answered late, when it was asked and how long that took, of those sent since."""
        late = [each for each in self.answers if each.sent >= since and each.took_s > NOTICED_S]
        return [f"{each.backend}: sent after {each.sent - since:.1f} s, took {each.took_s:.1f} s" for each in late]

    async def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with (
            httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, trust_env=False) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self.clients):
                group.create_task(self._client(http))

    async def _client(self, http: httpx.AsyncClient) -> None:
        while not self._over.is_set():
            self.answers.append(await ask(http))
            await asyncio.sleep(self.pause_s)


async def ask(http: httpx.AsyncClient, tokens: int = 16) -> Answer:
    """One streamed answer, read to its end. An error is an Answer, too."""
    sent, backend = time.monotonic(), "nobody"
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me more"}],
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
    }
    wrong: str | None = None
    try:
        async with http.stream("POST", "chat/completions", json=body) as answer:
            backend = answer.headers.get("x-tuna-backend", backend)
            said = (await answer.aread()).decode()
            if answer.status_code != 200 or not said.rstrip().endswith("[DONE]") or '"error"' in said:
                wrong = f"{answer.status_code} {said[-300:]}"
    except httpx.HTTPError as error:
        wrong = repr(error)
    return Answer(sent, time.monotonic() - sent, backend, wrong)


class Service:
    """One deployment of a user's."""

    def __init__(self, rig: Rig, terminal: Terminal, name: str) -> None:
        self._rig = rig
        self._terminal = terminal
        self.name = name
        self._words: tuple[str, ...] = ()
        self.url = ""
        self.key = ""

    def start_deploy(self, *more: str) -> subprocess.Popen[str]:
        """The words of the issue's own example, with the stand-in as the engine."""
        words = f"deploy --model {MODEL} --gpu L4 --service-name {self.name} --serverless-provider local".split()
        quick = ["--option", "cold_start_s=0", "--option", "probe=health", "--spots-cloud", CLOUD]
        self._words = (*words, "--engine-cmd", ENGINE, *quick, *more)
        return self._terminal.start(*self._words)

    def deploy_again(self) -> None:
        """As `tuna` advises where something has to be mended."""
        self.ended(deploying := self._terminal.start(*self._words), 600)
        self.connect(deploying)

    def connect(self, deploying: subprocess.Popen[str]) -> None:
        """Waits for the endpoint as `tuna connect` does, and before that for the deployment to be known."""

        def connected() -> Done | None:
            assert deploying.poll() in (None, 0), deploying.communicate()
            done = self._terminal("connect", self.name, "--env", code=None, timeout_s=120)
            assert done.code == 0 or "no deployment named" in done.err, done
            return done if done.code == 0 else None

        done = until(connected, within_s=120)
        told = dict(shlex.split(line)[1].split("=", 1) for line in done.out.splitlines())
        self.url, self.key = told["OPENAI_BASE_URL"], told["OPENAI_API_KEY"]

    def answered_by(self) -> Answer:
        async def once() -> Answer:
            headers = {"Authorization": f"Bearer {self.key}"}
            async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, trust_env=False) as http:
                return await ask(http, tokens=4)

        return asyncio.run(once())

    def load(self, clients: int = 4) -> Load:
        return Load(self.url, self.key, clients)

    def status(self) -> Any:
        """`tuna status -o json` of this deployment."""
        return json.loads(self._terminal("status", "--service-name", self.name, "-o", "json", timeout_s=120).out)

    def spot(self) -> Any:
        return next(each for each in self.status()["components"] if each["role"] == SPOT)

    def ready(self) -> list[Any]:
        """The spot replicas that `tuna status` calls ready."""
        return [each for each in self.spot()["replicas"] if each["state"] == "ready"]

    def router(self) -> Any:
        """`tuna router status -o json`."""
        return json.loads(
            self._terminal("router", "status", "--service-name", self.name, "-o", "json", timeout_s=120).out
        )

    def scale(self, *words: str) -> None:
        self._terminal("scale", "--service-name", self.name, *words, timeout_s=300)

    def upgrade_router(self) -> None:
        self._terminal("router", "upgrade", "--service-name", self.name, timeout_s=300)

    def destroy(self) -> None:
        self._terminal("destroy", "--service-name", self.name, "--wait", timeout_s=600)

    def end(self) -> None:
        """Destroys it; fails the test where anything is left."""
        self._rig.timed("destroy", self.destroy)
        nothing_left(self._rig, self._terminal)
        nothing_may_be_left(self._terminal.folder)

    def ended(self, process: subprocess.Popen[str], within_s: float) -> str:
        """What a command said that has ended well."""
        return self._terminal.finish(process, 0, within_s).out


def remote_routers() -> list[int]:
    """The processes of routers on machines of the cloud."""
    return [pid for pid, words in processes() if "-m tuna_router " in words and not runs_here(pid)]


def nothing_left(rig: Rig, terminal: Terminal) -> None:
    """SkyPilot, the cloud's books and Tuna's store know of nothing any more, but for SkyServe's shared controller."""
    import sky
    from sky import serve

    from tests.deployments import leftovers

    with contextlib.suppress(sky.exceptions.ClusterNotUpError):
        assert sky.get(serve.status(None)) == []
    others = [each for each in rig.instances() if not each.name.startswith("sky-serve-controller")]
    assert others == []
    assert leftovers.live_names(terminal.folder) == []
