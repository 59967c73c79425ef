"""The whole life of a deployment in a terminal, and what ends it early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import nothing_may_be_left
from tests.deployments.leftovers import live_names, processes_of
from tests.frontends.terminals import MODEL, Done, Terminal, chat, deploy_words, until

pytestmark = pytest.mark.e2e

Tuna = Callable[..., Done]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A running deployment named `life`, shared by the tests that only look."""
    terminal = Terminal(tmp_path_factory.mktemp("life") / "data")
    terminal(*deploy_words("life", "--wait", "-o", "json"))
    yield terminal
    terminal("destroy", "--all")
    nothing_may_be_left(terminal.folder)


@pytest.fixture
def there(life: Terminal, tuna: Tuna, monkeypatch: pytest.MonkeyPatch) -> Tuna:
    """`tuna` in this process, on the shared deployment."""
    monkeypatch.setenv("TUNA_DATA_DIR", str(life.folder))
    return tuna


def endpoint(tuna: Tuna, name: str = "life") -> tuple[str, str]:
    """(base URL, key) as a shell would get them from `eval "$(tuna connect NAME --env)"`."""
    out = tuna("connect", name, "--env").out
    shell = subprocess.run(
        ["bash", "-c", 'eval "$(cat)"; echo "$OPENAI_BASE_URL"; echo "$OPENAI_API_KEY"'],
        input=out, capture_output=True, text=True, check=True,
    )  # fmt: skip
    url, key = shell.stdout.split()
    return url, key


# -- looking --------------------------------------------------------------------------------------------


def test_status_shows_every_part_as_it_is(there: Tuna) -> None:
    status = there("status", "--service-name", "life", "-o", "json").json
    assert status["state"] == "running"
    assert {c["role"]: c["state"] for c in status["components"]} == {
        "serverless": "ready", "router": "ready", "spot": "ready",
    }  # fmt: skip
    assert status["spot_state"] == "READY"
    text = there("status", "--service-name", "life").out
    assert text.startswith("life is running")
    assert all(c["role"] in text for c in status["components"])
    assert f"{status['endpoint_url']}/v1" in text


@pytest.mark.parametrize("columns", [None, "60"])
def test_a_table_has_what_the_json_has_however_narrow_the_terminal(life: Terminal, columns: str | None) -> None:
    """An address that is cut off or folded can't be copied."""
    done = subprocess.run(
        [sys.executable, "-m", "tuna_nb", "list"], capture_output=True, text=True, check=True,
        env=life.environ | ({"COLUMNS": columns} if columns else {}),
    )  # fmt: skip
    (shown,) = life("list", "-o", "json").json["deployments"]
    (row,) = [line for line in done.stdout.splitlines() if line.strip().startswith("life ")]
    for value in (shown["name"], shown["state"], shown["model"], shown["gpu"], shown["endpoint_url"]):
        assert value in row
    assert "$/h now" in done.stdout


def test_list_filters_by_state(there: Tuna) -> None:
    def names(*words: str) -> list[str]:
        return [d["name"] for d in there("list", "-o", "json", *words).json["deployments"]]

    assert names() == names("--status", "active") == ["life"]
    assert names("--status", "destroyed") == names("--status", "failed") == []


def test_the_endpoint_answers_to_its_key_and_to_nothing_else(there: Tuna) -> None:
    url, key = endpoint(there)
    with httpx.Client(base_url=url, trust_env=False) as http:
        answer = http.post("/chat/completions", json=chat(), headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
        assert answer.headers["x-tuna-backend"] in ("spot", "serverless")
        assert http.post("/chat/completions", json=chat(), headers={"x-api-key": key}).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": key[:-1]}):
            assert http.post("/chat/completions", json=chat(), headers=headers).status_code == 401
        # The users' key is not the owner's.
        control = {"Authorization": f"Bearer {key}"}
        root = url.removesuffix("/v1")
        assert http.post(f"{root}/router/config", json={"backends": []}, headers=control).status_code == 403


def test_connect_shows_no_key_unless_asked(there: Tuna) -> None:
    url, key = endpoint(there)
    for words in ([], ["-o", "json"], ["as", "client"]):
        done = there("connect", "life", *words)
        assert key not in done.out + done.err
        assert url in done.out
    assert there("connect", "life", "-o", "json").json == {"name": "life", "model": MODEL, "base_url": url}


def test_cost_is_the_local_clouds_own_bill(there: Tuna) -> None:
    bill = there("cost", "--service-name", "life", "-o", "json").json
    own = there("local", "bill", "--service-name", "life", "-o", "json").json
    per_second = bill["rate_usd_per_hour"] / 3600
    assert bill["rate_usd_per_hour"] == pytest.approx(0.8 + 0.22)
    assert abs(bill["usd"] - own["usd"]) <= 3 * per_second
    assert {s["role"] for s in bill["sides"]} == {"serverless", "spot"}
    assert there("cost", "--service-name", "life").out.startswith("life has cost $0.0")


def test_logs_have_all_three_voices(there: Tuna) -> None:
    lines = [json.loads(line) for line in there("logs", "--service-name", "life", "-o", "json").out.splitlines()]
    assert {line["role"] for line in lines} == {"serverless", "router", "spot"}
    only = there("logs", "--service-name", "life", "--role", "router").out.splitlines()
    assert only
    assert all(" router " in line for line in only)
    assert there("logs", "--service-name", "life", "--role", "spot", "--since", "0").out == ""


def test_followed_logs_end_at_an_interrupt(life: Terminal) -> None:
    process = life.start("logs", "--service-name", "life", "--follow")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in life.finish(process, 0, 10).err


def test_check_names_what_is_there(there: Tuna) -> None:
    checks = there("check", "-o", "json").json
    assert checks["passed"], "what nobody has set up is no failure"
    assert checks["unused"] == ["azure", "baseten", "cerebrium", "cloudrun", "modal", "runpod", "skyserve"]
    assert {provider for provider, _ in checks["rows"]} == {"local", *checks["unused"]}
    assert all(check["passed"] for provider, check in checks["rows"] if provider == "local")
    assert all(check["fix"] for _, check in checks["rows"] if not check["passed"])


def test_check_fails_for_an_engine_that_is_not_installed(there: Tuna) -> None:
    done = there("check", "--engine-cmd", "no-such-engine --port {port}", code=1)
    assert "no-such-engine" in done.out


def test_the_deploy_is_among_the_ended_jobs(there: Tuna) -> None:
    assert there("jobs", "-o", "json").json == []
    (job,) = [j for j in there("jobs", "--all", "-o", "json").json if j["name"] == "life"][:1]
    assert (job["verb"], job["state"], job["fraction"]) == ("deploy", "done", 1.0)
    assert there("jobs", "life", "-o", "json").json[0]["name"] == "life"
    assert there("cancel", "life", code=1).refusal[0] == "tuna: no job named 'life' is under way"


def test_deploying_the_same_again_finds_what_is_there(life: Terminal, there: Tuna) -> None:
    before = there("status", "--service-name", "life", "-o", "json").json
    again = there(*deploy_words("life", "--wait", "-o", "json")).json
    assert (again["id"], again["endpoint_url"]) == (before["id"], before["endpoint_url"])
    replicas = [[r["id"] for r in c["replicas"]] for c in again["components"]]
    assert replicas == [[r["id"] for r in c["replicas"]] for c in before["components"]]
    assert live_names(life.folder) == ["life"]


@pytest.mark.parametrize(
    "change",
    [["--model", "gpt2"], ["--gpu", "H100"], ["--public"], ["--option", "notice_s=1"], ["--serverless-only"]],
)
def test_another_deployment_cant_take_a_name_that_is_in_use(there: Tuna, change: list[str]) -> None:
    message, hint = there(*deploy_words("life"), *change, code=1).refusal
    assert message == "tuna: life exists with another model, GPU or setting (running)"
    assert "tuna destroy --service-name life" in hint


def test_a_dry_run_of_a_name_in_use_changes_nothing(there: Tuna) -> None:
    planned = there(*deploy_words("life"), "--dry-run").out
    assert planned.startswith("life: would be created (nothing is yet)")
    assert there("status", "--service-name", "life", "-o", "json").json["state"] == "running"


def test_a_reader_that_goes_away_is_no_crash(life: Terminal) -> None:
    """As in `tuna logs ... | head -1`."""
    for words in (["logs", "--service-name", "life"], ["list"], ["--help"], []):
        process = life.start(*words, buffered=words != ["--help"])
        assert process.stdout is not None
        process.stdout.close()
        process.wait(30)
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        assert said == "", words
        assert process.returncode in (0, 1)


# -- a life of one's own --------------------------------------------------------------------------------


def test_a_dry_run_creates_nothing(home: Terminal, tuna: Tuna) -> None:
    plan = tuna(*deploy_words("planned"), "--dry-run", "-o", "json").json
    assert plan["request"]["service_name"] == "planned"
    text = tuna(*deploy_words("planned"), "--dry-run").out
    assert "worst case  $1.900 per hour" in text  # 1 serverless at 0.80, 5 spot at 0.22
    assert processes_of(home.folder) == []
    assert not (home.folder / "tuna.db").exists() or live_names(home.folder) == []
    assert not (home.folder / "local-cloud").exists()


def test_a_deployment_without_a_name_gets_one(home: Terminal, tuna: Tuna) -> None:
    name = tuna("deploy", "--model", MODEL, "--gpu", "L4", "--dry-run", "-o", "json").json["request"][
        "service_name"
    ]
    assert name.startswith("tuna-")


def test_what_is_destroyed_is_gone_and_stays_in_the_books(home: Terminal, tuna: Tuna) -> None:
    tuna(*deploy_words("short"))
    assert tuna("destroy", "--service-name", "short").out.strip() == "gone: short"
    assert tuna("list").out.strip() == "no deployments"
    assert [d["name"] for d in tuna("list", "--status", "destroyed", "-o", "json").json["deployments"]] == ["short"]
    again = tuna("destroy", "--service-name", "short")
    assert again.out.strip() == "short was already destroyed"
    assert tuna("status", "--service-name", "short").out.startswith("short is destroyed")
    # The bill outlives the deployment, and agrees with the cloud's own.
    bill = tuna("cost", "--service-name", "short", "-o", "json").json
    own = tuna("local", "bill", "--service-name", "short", "-o", "json").json
    assert bill["usd"] == pytest.approx(own["usd"], abs=1e-9)
    assert bill["usd"] > 0
    assert bill["rate_usd_per_hour"] == 0
    assert bill["requests"] == 1
    assert tuna("connect", "short", code=1).refusal[0] == "tuna: short has no endpoint (destroyed)"
    # And so does its log, as long as the provider keeps it.
    assert "is destroyed" in tuna("logs", "--service-name", "short").out.splitlines()[-1]


def test_names_that_never_were_are_refused(home: Terminal, tuna: Tuna) -> None:
    for words in (
        ["destroy", "--service-name", "nobody"],
        ["status", "--service-name", "nobody"],
        ["cost", "--service-name", "nobody"],
        ["logs", "--service-name", "nobody"],
        ["connect", "nobody"],
        ["local", "preempt", "--service-name", "nobody"],
        ["local", "bill", "--service-name", "nobody"],
    ):
        done = tuna(*words, code=1)
        assert done.refusal == ("tuna: no deployment named 'nobody'", "hint: `tuna list` shows none; deploy first")
    assert tuna("cancel", "nobody", code=1).refusal[0] == "tuna: no job named 'nobody' is under way"
    assert tuna("jobs", "nobody", code=1).refusal[0] == "tuna: no job named 'nobody'"
    assert tuna("destroy", "--all").out.strip() == "nothing to destroy"


def test_serverless_only_answers_without_a_router(home: Terminal, tuna: Tuna) -> None:
    status = tuna(*deploy_words("alone", "--serverless-only", "-o", "json")).json
    assert [c["role"] for c in status["components"]] == ["serverless"]
    url, key = endpoint(tuna, "alone")
    assert httpx.post(f"{url}/chat/completions", json=chat()).status_code == 401
    answer = httpx.post(f"{url}/chat/completions", json=chat(), headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert key not in tuna("connect", "alone", "-o", "json").out
    assert tuna("cost", "--service-name", "alone", "-o", "json").json["requests"] is None
    refused = tuna("local", "preempt", "--service-name", "alone", code=2)
    assert refused.refusal[0] == "tuna: alone has no spot side on the local cloud"
    tuna("destroy", "--service-name", "alone")


def test_public_needs_no_key_but_its_controls_stay_closed(home: Terminal, tuna: Tuna) -> None:
    tuna(*deploy_words("open", "--public"))
    url, key = endpoint(tuna, "open")
    assert key == "none"
    root = url.removesuffix("/v1")
    assert httpx.post(f"{url}/chat/completions", json=chat()).status_code == 200
    assert httpx.get(f"{root}/router/health").status_code == 200
    for method in ("GET", "POST"):
        assert httpx.request(method, f"{root}/router/config", json={}).status_code == 403
    tuna("destroy", "--service-name", "open")


def test_a_scaling_policy_is_read_from_a_file_and_flags_go_over_it(
    home: Terminal, tuna: Tuna, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("spot:\n  max_replicas: 2\nserverless:\n  concurrency: 8\n  workers_max: 3\n")
    words = [*deploy_words("scaled"), "--dry-run", "-o", "json", "--scaling-policy", str(policy)]
    request = tuna(*words, "--concurrency", "4").json["request"]
    assert (request["spot"]["max_replicas"], request["serverless"]["workers_max"]) == (2, 3)
    assert request["serverless"]["concurrency"] == 4


def test_a_wrong_policy_file_is_refused_with_line_and_column(home: Terminal, tuna: Tuna, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("spot:\n  max_replica: 2\n")
    message, hint = tuna(*deploy_words("scaled", "--scaling-policy", str(policy)), code=2).refusal
    assert message == f"tuna: {policy} line 2, column 3: unknown key 'max_replica'"
    assert hint == "hint: did you mean 'max_replicas'?"
    missing = tuna(*deploy_words("scaled", "--scaling-policy", str(tmp_path / "none.yaml")), code=2)
    assert missing.refusal[0].endswith("No such file or directory")
    policy.write_bytes(b"spot:\n  max_replicas: \xff\n")
    assert "not UTF-8" in tuna(*deploy_words("scaled", "--scaling-policy", str(policy)), code=2).refusal[0]


# -- ended early ----------------------------------------------------------------------------------------


def booting(home: Terminal, name: str) -> subprocess.Popen[str]:
    """A deploy in another process that waits for a spot machine that takes a minute to boot."""
    process = home.start(*deploy_words(name, "--wait", boot_s=60))
    watched = Watched(home)
    until(lambda: watched.step(name).startswith("spot is booting"))
    return process


class Watched:
    """The job's step as another process sees it: in the records."""

    def __init__(self, home: Terminal) -> None:
        self.folder = home.folder

    def step(self, name: str) -> str:
        import sqlite3

        if not (self.folder / "tuna.db").exists():
            return ""
        db = sqlite3.connect(self.folder / "tuna.db")
        try:
            rows = db.execute("SELECT step FROM jobs WHERE name=? AND ended_at IS NULL", (name,)).fetchall()
        except sqlite3.OperationalError:
            return ""
        finally:
            db.close()
        return rows[0][0] if rows else ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_waiting_deploy_takes_everything_down(home: Terminal, number: signal.Signals) -> None:
    process = booting(home, "stopped")
    process.send_signal(number)
    done = home.finish(process, 130)
    assert "stopped: deploy was cancelled; everything it had created is gone" in done.err
    assert "Traceback" not in done.err
    nothing_may_be_left(home.folder)


def test_cancel_from_another_terminal_takes_everything_down(home: Terminal, tuna: Tuna) -> None:
    process = booting(home, "called-off")
    (job,) = tuna("jobs", "-o", "json").json
    assert (job["name"], job["verb"], job["pid"]) == ("called-off", "deploy", process.pid)
    assert tuna("list", "-o", "json").json["deployments"][0]["state"] == "running"
    assert f"asked process {process.pid}" in tuna("cancel", "called-off").out
    assert "everything it had created is gone" in home.finish(process, 130).err
    nothing_may_be_left(home.folder)


def test_destroy_ends_a_deploy_under_way_in_another_terminal(home: Terminal, tuna: Tuna) -> None:
    process = booting(home, "overtaken")
    assert tuna("destroy", "--service-name", "overtaken").code == 0
    home.finish(process, 130)
    nothing_may_be_left(home.folder)


def test_two_terminals_cant_build_one_thing(home: Terminal, tuna: Tuna) -> None:
    process = booting(home, "contested")
    message, hint = tuna(*deploy_words("contested", "--wait", boot_s=60), code=1).refusal
    assert message == f"tuna: contested: a deploy is under way in process {process.pid} on {os.uname().nodename}"
    assert "tuna cancel contested" in hint
    process.send_signal(signal.SIGINT)
    home.finish(process, 130)


@pytest.mark.parametrize("delay_s", [0.6, 0.9, 1.2])
def test_an_interrupt_at_any_moment_leaves_nothing(home: Terminal, delay_s: float) -> None:
    process = home.start(*deploy_words("early", "--wait", boot_s=60))
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    home.finish(process, None)
    assert process.returncode != 0
    nothing_may_be_left(home.folder)


STRUCK_IN_A_DESTRUCTOR = """
import os, signal, sys

class Struck:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})

class AtImportOf:
    def find_spec(self, name, path=None, target=None):
        if name == "tuna_nb.jobs":
            sys.meta_path.remove(self)
            Struck()

sys.meta_path.insert(0, AtImportOf())
from tuna_nb.frontends.terminal import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_python_itself_drops_is_no_less_heard(home: Terminal, number: str) -> None:
    """Whatever strikes while a destructor runs, Python shows and forgets."""
    process = subprocess.Popen(
        [sys.executable, "-c", STRUCK_IN_A_DESTRUCTOR.format(number=number), *deploy_words("deaf", "--wait", boot_s=60)],
        env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    home.finish(process, 130, timeout_s=30)
    nothing_may_be_left(home.folder)


def test_without_wait_a_deploy_returns_when_the_endpoint_answers(home: Terminal, tuna: Tuna) -> None:
    status = tuna(*deploy_words("soon", "-o", "json", boot_s=60)).json
    assert status["state"] == "running"
    assert status["spot_state"] != "READY"
    url, key = endpoint(tuna, "soon")
    answer = httpx.post(f"{url}/chat/completions", json=chat(), headers={"Authorization": f"Bearer {key}"})
    assert answer.headers["x-tuna-backend"] == "serverless"
    tuna("destroy", "--service-name", "soon")


def test_a_life_in_real_processes(home: Terminal) -> None:
    """The same in processes of their own, as a person starts them: nothing lives in the memory of one."""
    deployed = home(*deploy_words("real", "-o", "json"))
    assert deployed.json["state"] == "running"
    assert "serverless on local" in deployed.err
    assert home("status", "--service-name", "real", "-o", "json").json["id"] == deployed.json["id"]
    assert home("local", "preempt", "--service-name", "real", "--notice", "0").out.startswith("real: spot replica ")
    assert home("destroy", "--service-name", "real").out == "gone: real\n"
    assert home("list").out == "no deployments\n"
