"""Whatever a person types wrong: two lines with a hint, an exit code that is not 0, and nothing left behind."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deployments.leftovers import live_names, processes_of
from tests.frontends.terminals import MODEL, Done, Terminal, deploy_words

Tuna = Callable[..., Done]
DEPLOY = deploy_words("bad")


def assert_refused(done: Done, code: int, message: str, hint: str) -> None:
    """Exactly two lines, both of them useful, and no trace of Python."""
    assert done.code == code
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("tuna: ")
    assert message in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["deplpy"], "unknown verb 'deplpy'", "did you mean 'deploy'?"),
        (["frobnicate"], "unknown verb 'frobnicate'", "known: benchmark, budget, cancel"),
        ([*DEPLOY, "--gpu-cout", "1"], "deploy: unknown argument '--gpu-cout'", "did you mean --gpu-count?"),
        (["deploy", "--modle", MODEL, "--gpu", "L4"], "unknown argument '--modle'", "did you mean --model?"),
        (["deploy", "--gpu", "L4"], "deploy: the following arguments are required: --model", "`tuna deploy --help`"),
        ([*DEPLOY, "--gpu"], "argument --gpu: expected one argument", "`tuna deploy --help`"),
        ([*DEPLOY, "--gpu", "L44"], "unknown GPU 'L44'", "did you mean 'L4"),
        ([*DEPLOY, "--gpu", "abacus"], "unknown GPU 'abacus'", "known: "),
        ([*DEPLOY, "--gpu", ""], "unknown GPU ''", ""),
        ([*DEPLOY, "--serverless-provider", "locl"], "unknown provider 'locl'", "did you mean 'local'?"),
        ([*DEPLOY, "--spots-cloud", "gcp2"], "unknown provider 'gcp2'", "did you mean 'gcp'?"),
        ([*DEPLOY, "--model", "a b"], "'a b' is not a model name", "owner/name"),
        ([*DEPLOY, "--model", "../../etc/passwd"], "is not a model name", "owner/name"),
        ([*DEPLOY, "--model", "a/..b"], "is not a model name", "owner/name"),
        ([*DEPLOY, "--model", "a\nb"], "is not a model name", "owner/name"),
        ([*DEPLOY, "--service-name", "Not A Name"], "'Not A Name' is not a service name", "lower-case letter"),
        ([*DEPLOY, "--service-name", "x\ny"], "is not a service name", "lower-case letter"),
        ([*DEPLOY, "--gpu-count", "-1"], "--gpu-count is -1", "at least 1"),
        ([*DEPLOY, "--gpu-count", "two"], "argument --gpu-count: invalid int value: 'two'", "--help"),
        ([*DEPLOY, "--max-model-len", "-5"], "--max-model-len is -5", "at least 1"),
        ([*DEPLOY, "--concurrency", "-3"], "serverless.concurrency is -3", "at least 1"),
        ([*DEPLOY, "--workers-max", "0"], "serverless.workers_max is 0", "at least 1"),
        ([*DEPLOY, "--tp-size", "4"], "--tp-size 4 needs as many GPUs", "add --gpu-count 4"),
        ([*DEPLOY, "--port", "-1"], "--port is -1", "from 1 to 65535"),
        ([*DEPLOY, "--port", "99999"], "--port is 99999", "from 1 to 65535"),
        ([*DEPLOY, "--option", "boot_s=-1"], "option boot_s: must not be negative", ""),
        ([*DEPLOY, "--option", "boot_s=nan"], "option boot_s: 'nan' is not a finite number", ""),
        ([*DEPLOY, "--option", "boots=1"], "local has no option 'boots'", "did you mean 'boot_s'?"),
        ([*DEPLOY, "--option", "boot_s"], "--option 'boot_s' has no value", "KEY=VALUE"),
        ([*DEPLOY, "--engine-cmd", "'x"], "the engine command can't be split", "close the quotes"),
        ([*DEPLOY, "--engine-cmd", ""], "the engine command is empty", "vllm serve"),
        ([*DEPLOY, "--engine-cmd", "x {modle}"], "unknown placeholder {modle}", "did you mean 'model'?"),
        ([*DEPLOY, "--cold-start-mode", "fast"], "unknown value for --cold-start-mode: 'fast'", "did you mean 'fast_boot'?"),
        ([*DEPLOY, "--serverless-only", "--region", "x"], "--serverless-only has no spot side", "--region"),
        ([*DEPLOY, "--use-different-vm-for-lb"], "no router can run on 'vm': no cloud is set up here", "tuna check"),
        (["show-gpus", "--explore"], "show-gpus: --explore can't be shown in a terminal", "%tuna show-gpus --explore"),
        (["show-gpus", "--gpu", "L44"], "unknown GPU 'L44'", "did you mean 'L4'?"),
        (["show-gpus", "--chart", "pie"], "unknown value for --chart: 'pie'", "did you mean 'prices'?"),
        (["show-gpus", "--min-vram", "lots"], "argument --min-vram: invalid float value: 'lots'", "--help"),
        (["fit", "--model", "nobody/knows"], "nobody/knows", ""),
        (["destroy"], "one of the arguments --service-name --all --orphans is required", "--help"),
        (["destroy", "--all", "--service-name", "x"], "not allowed with", "--help"),
        (["status"], "status: the following arguments are required: --service-name", "--help"),
        (["list", "-o", "xml"], "unknown value for -o/--output: 'xml'", "json"),
        (["check", "--provider", "locl"], "unknown provider 'locl'", "did you mean 'local'?"),
        (["local"], "local: the following arguments are required: ACTION", "--help"),
        (["local", "prempt"], "unknown action 'prempt'", "did you mean 'preempt'?"),
        (["demo", "--requests", "0"], "--requests is 0", "at least 1"),
        (["connect", "x", "as"], "connect x as ...: the variable is missing", "as client"),
        (["connect", "x", "as", "1x"], "'1x' is not a variable name", "as client"),
        (["connect", "x", "as", "class"], "'class' is not a variable name", "as client"),
    ],
    ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else None,
)  # fmt: skip
def test_a_mistake_is_told_in_two_lines_and_creates_nothing(
    home: Terminal, tuna: Tuna, words: list[str], message: str, hint: str
) -> None:
    assert_refused(tuna(*words, code=None), 2, message, hint)
    assert processes_of(home.folder) == []
    assert live_names(home.folder) == []


def test_help_is_no_error(home: Terminal, tuna: Tuna) -> None:
    for words in ([], ["--help"], ["-h"], ["--version"], ["deploy", "--help"], ["local", "preempt", "-h"]):
        done = tuna(*words)
        assert done.out.strip()
        assert done.err == ""
    assert not home.folder.exists()


def test_verbose_adds_the_traceback_and_only_verbose_does(home: Terminal, tuna: Tuna) -> None:
    assert "Traceback" not in tuna(*DEPLOY, "--gpu", "L44", code=2).err
    assert "Traceback" in tuna(*DEPLOY, "--gpu", "L44", "-v", code=2).err


# -- what is wrong shows itself only once things have been started ---------------------------------------


def assert_rolled_back(home: Terminal, tuna: Tuna, done: Done, message: str, hint: str) -> None:
    assert done.code == 1
    assert done.out == ""
    assert "Traceback" not in done.err
    said, advice = done.refusal
    assert said.startswith("tuna: ")
    assert message in said
    assert advice.startswith("hint: ")
    assert hint in advice
    assert live_names(home.folder) == []
    failed = tuna("list", "--status", "failed", "-o", "json").json["deployments"]
    assert [d["state"] for d in failed] == ["failed"]
    assert message in failed[0]["error"]


def test_a_port_that_is_taken(home: Terminal, tuna: Tuna) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tuna(*DEPLOY, "--port", str(port), code=1)
    assert_rolled_back(home, tuna, done, str(port), "--port")


def test_an_engine_that_dies_at_start(home: Terminal, tuna: Tuna) -> None:
    engine = shlex.join([sys.executable, "-c", "import sys; print('no weights here'); sys.exit(3)"])
    done = tuna(*DEPLOY, "--engine-cmd", engine, code=1)
    assert_rolled_back(home, tuna, done, f"the engine for {MODEL} can't start", "--engine-cmd")
    # Its own last words are what tells the user why.
    assert "no weights here" in done.err


def test_an_engine_that_is_not_there(home: Terminal, tuna: Tuna) -> None:
    done = tuna(*DEPLOY, "--engine-cmd", "no-such-engine --port {port}", code=1)
    assert_rolled_back(home, tuna, done, "no-such-engine", "--engine-cmd")


def test_an_engine_that_never_becomes_ready(home: Terminal, tuna: Tuna) -> None:
    words = ["--option", "engine_start_timeout_s=1", "--option", "engine_args=--never-ready"]
    done = tuna(*DEPLOY, *words, code=1)
    assert_rolled_back(home, tuna, done, f"the engine for {MODEL} can't start", "--engine-cmd")


def test_an_engine_that_serves_another_model(home: Terminal, tuna: Tuna) -> None:
    words = ["--option", "engine_args=--served-model-name other", "--option", "engine_start_timeout_s=1"]
    done = tuna(*DEPLOY, "--serverless-only", *words, code=1)
    assert_rolled_back(home, tuna, done, f"the engine for {MODEL} can't start", "--model")


# -- the folder and what is in it -------------------------------------------------------------------------


def test_a_data_folder_that_cant_be_written(home: Terminal, tuna: Tuna) -> None:
    """A file is in its way; a mode would not stop root."""
    home.folder.write_text("in the way")
    for words in (DEPLOY, ["list"], ["status", "--service-name", "x"], ["destroy", "--all"], ["jobs"]):
        assert_refused(
            tuna(*words, code=None), 1, f"the data folder {home.folder} is not writable", "TUNA_DATA_DIR"
        )
    home.folder.unlink()


def test_a_data_folder_below_a_file(tuna: Tuna, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNA_DATA_DIR", str(tmp_path / "file" / "data"))
    assert_refused(tuna(*DEPLOY, code=None), 1, "is not writable", "TUNA_DATA_DIR")


def test_a_corrupt_database(home: Terminal, tuna: Tuna) -> None:
    home.folder.mkdir()
    database = home.folder / "tuna.db"
    database.write_bytes(b"this is no database, and it is long enough to be read as one" * 100)
    for words in (DEPLOY, ["list"], ["destroy", "--all"], ["cost", "--service-name", "x"], ["jobs"]):
        assert_refused(tuna(*words, code=None), 1, f"the store {database} is damaged", "--orphans")
    assert processes_of(home.folder) == []
    database.unlink()


def test_the_hint_of_a_damaged_store_works(home: Terminal, tuna: Tuna) -> None:
    """Moved away as the hint says, `destroy --orphans` ends everything that the lost records had named."""
    tuna(*DEPLOY)
    database = home.folder / "tuna.db"
    for path in (Path(f"{database}-wal"), Path(f"{database}-shm")):
        path.unlink(missing_ok=True)
    database.write_bytes(b"\0" * 10_000)
    hint = tuna("list", code=1).refusal[1]
    move = hint[hint.index("(") + 1 : hint.index(")")]
    subprocess.run(shlex.split(move), check=True)
    (home.folder / "tuna.db.damaged").unlink()
    shown = tuna("list", "-o", "json").json
    assert shown["deployments"] == []
    assert {role for _, role, _ in shown["orphans"]} == {"serverless", "spot", "router"}
    assert "owned by no deployment" in tuna("list").out
    # They may be another store's: destroying all of this one's leaves them alone.
    tuna("destroy", "--all")
    assert len(tuna("list", "-o", "json").json["orphans"]) == 3
    tuna("destroy", "--orphans")
    assert tuna("list", "-o", "json").json["orphans"] == []


def test_a_database_url_that_makes_no_sense(home: Terminal, tuna: Tuna, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("mysql+nothing://x", "postgresql+psycopg://user:secret-password@127.0.0.1:9/x"):
        monkeypatch.setenv("TUNA_DATABASE_URL", url)
        done = tuna("list", code=1)
        assert_refused(done, 1, "", "TUNA_DATABASE_URL" if "9/x" in url else "")
        assert "secret-password" not in done.err
    monkeypatch.delenv("TUNA_DATABASE_URL")


def test_a_local_cloud_whose_folder_is_blocked(home: Terminal, tuna: Tuna) -> None:
    home.folder.mkdir()
    blocked = home.folder / "local-cloud"
    blocked.write_text("in the way")
    message, hint = tuna(*DEPLOY, code=1).refusal
    assert str(blocked) in message
    assert hint.startswith("hint: ")
    blocked.unlink()
    # What failed without ever reaching the cloud is in the books as failed, not as something alive.
    tuna("destroy", "--all")
