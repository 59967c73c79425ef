"""`%tuna` and `%%tuna` in an IPython shell: help, values, expansion, errors, completion, unloading."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter

from tests.conftest import nothing_may_be_left
from tests.deployments.leftovers import live_names, processes_of
from tests.frontends.shells import TestingShell
from tests.frontends.terminals import MODEL, Terminal, deploy_words
from tuna_nb.errors import CancelledError, NotFoundError, RequestError, TunaError, UsageError
from tuna_nb.frontends import mode
from tuna_nb.frontends.magic import Shown

DEPLOY = " ".join(deploy_words("cell"))
DRY = DEPLOY + " --dry-run"


@pytest.fixture(scope="module")
def bare_shell() -> Iterator[TestingShell]:
    TestingShell.clear_instance()
    shell = TestingShell.instance()
    yield shell
    TestingShell.clear_instance()


@pytest.fixture
def shell(bare_shell: TestingShell, home: Terminal) -> Iterator[TestingShell]:
    """With the extension loaded, in the test's own folder."""
    bare_shell.reset(new_session=False)
    bare_shell.run("%load_ext tuna_nb")
    yield bare_shell
    if "tuna_nb" in bare_shell.extension_manager.loaded:
        bare_shell.run("%unload_ext tuna_nb")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A running deployment named `served` in a folder of its own."""
    terminal = Terminal(tmp_path_factory.mktemp("served") / "data")
    terminal(*deploy_words("served", "--wait"))
    yield terminal
    terminal("destroy", "--all")
    nothing_may_be_left(terminal.folder)


@pytest.fixture
def there(shell: TestingShell, served: Terminal, monkeypatch: pytest.MonkeyPatch) -> TestingShell:
    """The shell, in the folder where `served` runs."""
    monkeypatch.setenv("TUNA_DATA_DIR", str(served.folder))
    return shell


# -- help -------------------------------------------------------------------------------------------------


def test_alone_it_prints_a_short_help(shell: TestingShell) -> None:
    said = shell.printed("%tuna")
    assert "%tuna deploy --model" in said
    assert len(said.splitlines()) < 15
    assert shell.run("%tuna") is None


def test_help_lists_every_verb_and_every_flag(shell: TestingShell) -> None:
    said = shell.printed("%tuna --help")
    for verb in (
        "deploy",
        "destroy",
        "status",
        "list",
        "cost",
        "check",
        "logs",
        "connect",
        "jobs",
        "cancel",
        "local",
    ):
        assert verb in said
    assert "--scaling-policy" in shell.printed("%tuna deploy --help")
    assert "--notice" in shell.printed("%tuna local preempt --help")
    assert shell.printed("%tuna --version").startswith("tuna ")


def test_a_question_mark_shows_the_same_help(shell: TestingShell) -> None:
    assert "%tuna deploy --model" in str(shell.magics_manager.magics["line"]["tuna"].__doc__)


# -- values -----------------------------------------------------------------------------------------------


def test_a_table_comes_as_a_plain_dataframe(there: TestingShell) -> None:
    df = there.run("df = %tuna list\ndf")
    assert type(df) is pd.DataFrame
    assert list(df["name"]) == ["served"]
    assert df["rate_usd_per_hour"].dtype == float
    assert str(df["created_at"].dt.tz) == "UTC"
    assert type(there.run("%tuna jobs --all")) is pd.DataFrame
    # Read, and typed off: a DataFrame would cut the commands that mend things.
    shown = there.run("%tuna check --provider runpod")
    assert "RUNPOD_API_KEY=&lt;a key from https://www.runpod.io/console/user/settings&gt;" in shown._repr_html_()
    assert not shown.result.passed


def test_prices_come_as_a_dataframe_a_chart_or_an_explorer(shell: TestingShell, capsys: Any) -> None:
    df = shell.run("%tuna show-gpus --spot")
    assert type(df) is pd.DataFrame
    assert {"gpu", "provider", "price_per_hour_usd", "all_in_usd_per_hour", "observed_at", "stale"} <= set(
        df.columns
    )
    assert df.query("kind == 'spot'")["saves_serverless"].notna().any()
    for flag in ("--chart prices", "--explore"):
        bundle = shell.run(f"%tuna show-gpus {flag}")._repr_mimebundle_()
        assert {"text/plain", "text/html"} <= set(bundle)
    history = shell.run("%tuna show-gpus --history")
    assert history.empty
    assert list(history.columns)[:3] == ["at", "provider", "kind"]


def test_an_empty_table_is_an_empty_dataframe_with_its_columns(shell: TestingShell) -> None:
    df = shell.run("%tuna list")
    assert df.empty
    assert {"name", "state", "endpoint_url", "rate_usd_per_hour"} <= set(df.columns)
    assert shell.run("%tuna jobs").empty


def test_anything_else_shows_itself_and_carries_its_data(
    there: TestingShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = there.run("%tuna status --service-name served")
    assert isinstance(status, Shown)
    assert status.result.state == "running"
    bundle = status._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"].startswith("served is running")
    assert repr(status) == bundle["text/plain"]
    # Shown again an hour later, it is not an hour's running that was seen.
    later = time.time() + 3600
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: later)
        assert repr(status) == bundle["text/plain"]
    assert there.run("%tuna cost --service-name served").result.usd > 0


def test_out_stores_and_shows_nothing(there: TestingShell) -> None:
    assert there.run("%tuna list --out table") is None
    assert list(there.user_ns["table"]["name"]) == ["served"]
    assert there.run(f"%%tuna {DRY} --out plan\nspot:\n  max_replicas: 2\n") is None
    assert there.user_ns["plan"].result.request.spot.max_replicas == 2


@pytest.mark.parametrize("name", ["1x", "a b", "class", "a.b"])
def test_out_needs_a_name_that_python_can_use(shell: TestingShell, name: str) -> None:
    with pytest.raises(UsageError, match="is not a variable name"):
        shell.run(f"%tuna list --out '{name}'")


def test_a_semicolon_silences(there: TestingShell) -> None:
    assert there.printed("%tuna list;") == ""
    assert there.printed("%tuna list").startswith("1 deployment runs: ")


# -- expansion --------------------------------------------------------------------------------------------


def plan(shell: TestingShell, more: str) -> Any:
    return shell.run(f"%tuna {DRY} {more}").result.request


def test_names_and_expressions_are_filled_in_word_by_word(shell: TestingShell) -> None:
    shell.run("gpu = 'H100'; count = 2; policy = {'n': 3}")
    request = plan(shell, "--gpu $gpu --gpu-count {count * 2} --workers-max {policy['n']}")
    assert (request.gpu, request.gpu_count, request.serverless.workers_max) == ("H100", 4, 3)


def test_a_value_with_blanks_stays_one_word(shell: TestingShell) -> None:
    shell.run("command = 'serve --flag \"a b\" --port {port}'; evil = 'x --public'")
    assert plan(shell, "--engine-cmd $command").engine_cmd == 'serve --flag "a b" --port {port}'
    with pytest.raises(RequestError, match="'x --public' is not a model name"):
        plan(shell, "--model $evil")


def test_the_engines_placeholders_are_kept_and_other_names_filled(shell: TestingShell) -> None:
    shell.run("model = 'mine'; flags = '--fast'")
    for given in (
        "--engine-cmd 'vllm serve {model} --port {port} $flags'",
        "--engine-cmd='vllm serve {model} --port {port} {flags}'",
    ):
        assert plan(shell, given).engine_cmd == "vllm serve {model} --port {port} --fast"
    assert plan(shell, "--region {model}").region == "mine"


def test_a_name_that_is_not_there_is_our_error(shell: TestingShell) -> None:
    for line, name in (("--gpu $nope", "$nope"), ("--gpu {nope + 1}", "{nope + 1}"), ("--gpu {1/0}", "{1/0}")):
        error, _ = shell.failed(f"%tuna {DRY} {line}")
        assert isinstance(error, UsageError)
        assert f"can't expand {name}" in error.message


def test_a_plain_dollar_can_be_written(shell: TestingShell) -> None:
    assert plan(shell, "--region 'a$$b'").region == "a$b"


def test_the_locals_of_a_function_are_seen(shell: TestingShell) -> None:
    shell.run(f"def f(gpu):\n    return get_ipython().run_line_magic('tuna', '{DRY} --gpu $gpu')\n")
    shell.run(f"def g(gpu):\n    plan = %tuna {DRY} --gpu $gpu\n    return plan\n")
    assert shell.run("g('A100')").result.request.gpu == "A100_80GB"


def test_a_cell_body_is_not_expanded(shell: TestingShell) -> None:
    with pytest.raises(UsageError, match=r"'\$n'"):
        shell.run(f"%%tuna {DRY}\nspot:\n  max_replicas: $n\n")


def test_an_open_quote_is_our_error(shell: TestingShell) -> None:
    error, shown = shell.failed("%tuna list 'x")
    assert isinstance(error, UsageError)
    assert "close the quote" in shown


# -- cells and errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("spot:\n  max_replica: 2", "cell line 3, column 3: unknown key 'max_replica'", "did you mean 'max_replicas'?"),
        ("spot:\n  max_replicas: x", "cell line 3, column 17: spot.max_replicas is 'x'", "whole number"),
        ("serverles:\n  concurrency: 2", "cell line 2, column 1: unknown key 'serverles'", "did you mean 'serverless'?"),
        ("spot: {max_replicas: 1", "cell line", "sections spot: and serverless:"),
        ("spot:\n  min_replicas: 9", "spot.min_replicas is 9, above its maximum of 5", "raise the maximum"),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_refused_at_its_place(
    shell: TestingShell, home: Terminal, body: str, message: str, hint: str
) -> None:
    error, shown = shell.failed(f"%%tuna {DEPLOY}\n{body}\n")
    assert isinstance(error, TunaError)
    assert error.message.startswith(message)
    assert hint in shown
    assert live_names(home.folder) == []


def test_a_verb_without_a_cell_refuses_one(shell: TestingShell) -> None:
    error, _ = shell.failed("%%tuna list\nspot:\n")
    assert isinstance(error, UsageError)
    assert error.message == "%%tuna list takes no cell body"


def test_an_error_is_two_lines_and_no_traceback(shell: TestingShell) -> None:
    for line, kind in (
        (f"{DEPLOY} --gpu L99", RequestError),
        ("lsit", UsageError),
        ("status --service-name nobody", NotFoundError),
        ("connect x --env --bogus", UsageError),
    ):
        error, shown = shell.failed(f"%tuna {line}")
        assert isinstance(error, kind)
        assert "Traceback" not in shown
        assert "File " not in shown
        lines = shown.strip().splitlines()
        assert len(lines) == 2, lines
        assert "tuna" in lines[0]
        assert error.message in lines[0]
        assert "hint: " in lines[1]
        assert error._render_traceback_() == [line for line in error._render_traceback_() if "\n" not in line]


def test_the_traceback_is_still_there_for_who_wants_it(shell: TestingShell) -> None:
    shell.failed("%tuna lsit")
    kind, error, trace = shell.last_execution_result.error_in_exec.__class__, *shell._get_exc_info()[1:]
    assert kind is UsageError
    assert isinstance(error, UsageError)
    assert trace is not None


# -- work ---------------------------------------------------------------------------------------------------


def test_a_deploy_in_ipython_returns_at_once_and_can_be_awaited(shell: TestingShell, home: Terminal) -> None:
    job = shell.run(f"job = %tuna {DEPLOY}\njob")
    assert not job.snapshot.final
    assert repr(job).startswith("<tuna job cell: deploy, running")
    # Re-running the cell finds the job that is under way.
    assert shell.run(f"%tuna {DEPLOY}")._job is job._job
    assert shell.run("%tuna jobs cell")._job is job._job
    status = shell.run("done = await job\ndone")
    assert (status.name, status.state) == ("cell", "running")
    assert shell.printed("%tuna destroy --service-name cell").count("is gone") == 3
    assert live_names(home.folder) == []


def test_wait_blocks_until_spot_is_ready(shell: TestingShell, monkeypatch: pytest.MonkeyPatch) -> None:
    status = shell.run(f"%tuna {DEPLOY} --wait")
    assert status.result.spot_state == "READY"
    shell.run("%tuna destroy --service-name cell")


def test_an_interrupt_of_a_waiting_cell_undoes_the_deploy(shell: TestingShell, home: Terminal) -> None:
    import os
    import threading

    def interrupt() -> None:
        job = jobs.get("cell")
        while job is None or job.snapshot.step != "spot is booting; serverless answers meanwhile":
            job = jobs.get("cell")
        os.kill(os.getpid(), signal.SIGINT)

    from tuna_nb import _loaded

    jobs = _loaded[id(shell)][0].jobs
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    error, shown = shell.failed(f"%tuna {DEPLOY} --wait --option boot_s=60")
    watcher.join()
    assert isinstance(error, CancelledError)
    assert "everything it had created is gone" in shown
    nothing_may_be_left(home.folder)


def test_an_interrupt_before_the_cell_waits_undoes_the_deploy_too(shell: TestingShell, home: Terminal) -> None:
    import os
    import threading

    from tuna_nb import _loaded

    jobs = _loaded[id(shell)][0].jobs

    def interrupt() -> None:
        while jobs.get("cell") is None:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    error, _ = shell.failed(f"%tuna {DEPLOY} --wait --option boot_s=60")
    watcher.join()
    assert isinstance(error, CancelledError)
    nothing_may_be_left(home.folder)


def test_cancel_ends_a_job_of_this_kernel(shell: TestingShell, home: Terminal) -> None:
    job = shell.run(f"job = %tuna {DEPLOY} --option boot_s=60\njob")
    assert shell.run("%tuna cancel cell").result == "cancelling cell: what it had created is being removed"
    error, _ = shell.failed("await job")
    assert isinstance(error, CancelledError)
    assert job.snapshot.state == "cancelled"
    nothing_may_be_left(home.folder)


def test_unloading_cancels_what_runs_and_takes_everything_out(shell: TestingShell, home: Terminal) -> None:
    matchers = len(shell.Completer.custom_matchers)
    shell.run(f"job = %tuna {DEPLOY} --option boot_s=60")
    shell.run("%unload_ext tuna_nb")
    assert "tuna" not in shell.magics_manager.magics["line"]
    assert "tuna" not in shell.magics_manager.magics["cell"]
    assert len(shell.Completer.custom_matchers) == matchers - 1
    assert shell.user_ns["job"].snapshot.state == "cancelled"
    assert live_names(home.folder) == []
    # And in again.
    shell.run("%load_ext tuna_nb")
    assert "deploy" in texts(shell, "%tuna ")


def test_reloading_keeps_one_matcher(shell: TestingShell) -> None:
    before = len(shell.Completer.custom_matchers)
    shell.run("%reload_ext tuna_nb")
    assert len(shell.Completer.custom_matchers) == before
    assert texts(shell, "%tuna lis") == ["list"]


# -- connect ------------------------------------------------------------------------------------------------


def test_connect_binds_a_client_that_shows_no_key(there: TestingShell, served: Terminal) -> None:
    import json

    (path,) = (served.folder / "secrets").glob("*.json")
    key = json.loads(path.read_text())["api_key"]
    said = there.printed("%tuna connect served as client")
    assert said.startswith("client talks to http://127.0.0.1:")
    answer = there.run(
        f"client.chat.completions.create(model={MODEL!r}, max_tokens=3, messages=[dict(role='user', content='hi')])"
    )
    assert answer.usage.completion_tokens == 3
    formatted = there.display_formatter.format(there.user_ns["client"])[0]["text/plain"]
    shown = there.run("%tuna connect served")
    for text in (
        said,
        formatted,
        repr(shown),
        str(shown._repr_mimebundle_()),
        repr(shown.result),
        str(shown.result),
    ):
        assert key not in text
    error, text = there.failed("%tuna connect served --env")
    assert isinstance(error, UsageError)
    assert "would stay in the notebook" in text
    assert key not in text


def test_logs_are_printed_in_the_cell(there: TestingShell) -> None:
    said = there.printed("%tuna logs --service-name served --role serverless")
    assert " serverless " in said
    assert there.run("%tuna logs --service-name served --role router") is None


# -- completion ---------------------------------------------------------------------------------------------


def texts(shell: TestingShell, line: str) -> list[str]:
    with provisionalcompleter():
        return [c.text for c in shell.Completer.completions(line, len(line))]


@pytest.mark.parametrize("start", ["%tuna ", "%%tuna ", "x = %tuna ", "  %tuna ", "import os\n%tuna "])
def test_verbs_complete_wherever_the_magic_stands(shell: TestingShell, start: str) -> None:
    assert set(texts(shell, start)) >= {"deploy", "destroy", "status", "list", "cost", "connect"}
    assert texts(shell, start + "des") == ["destroy"]


def test_flags_and_their_values_complete(shell: TestingShell) -> None:
    assert texts(shell, "%tuna deploy --mod") == ["--model"]
    assert "H100" in texts(shell, "%tuna deploy --model x --gpu ")
    assert texts(shell, "%tuna deploy --gpu H20") == ["H200"]
    assert texts(shell, "%tuna deploy --cold-start-mode ") == ["fast_boot", "no_fast_boot"]
    assert texts(shell, "%tuna list --status a") == ["active"]
    assert set(texts(shell, "%tuna local ")) >= {"preempt", "bill"}
    # A flag that was given is not offered again.
    assert "--gpu" not in texts(shell, "%tuna deploy --gpu L4 --gp")


def test_names_that_this_kernel_has_dealt_with_complete(there: TestingShell) -> None:
    assert texts(there, "%tuna status --service-name ser") == []
    there.run("%tuna status --service-name served")
    assert texts(there, "%tuna status --service-name ser") == ["served"]


def test_a_name_completes_without_a_flag_too(there: TestingShell) -> None:
    there.run("%tuna status --service-name served")
    assert texts(there, "%tuna connect ser") == ["served"]


def test_pythons_own_completion_is_left_alone(shell: TestingShell) -> None:
    shell.run("tuna_fish = 1")
    assert "tuna_fish" in texts(shell, "tuna_f")
    assert "deploy" not in texts(shell, "print(")


def test_completion_touches_no_file_and_starts_nothing(shell: TestingShell, home: Terminal) -> None:
    texts(shell, "%tuna destroy --service-name ")
    assert not home.folder.exists()
    assert processes_of(home.folder) == []


# -- modes --------------------------------------------------------------------------------------------------


def test_the_mode_is_seen_from_the_session_and_can_be_forced() -> None:
    terminal = SimpleNamespace()
    executed = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=False))
    watched = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
    assert mode.detect(terminal, None) == "terminal"
    assert mode.detect(executed, None) == "headless"
    assert mode.detect(watched, None) == "widget"
    for forced in ("terminal", "headless", "widget"):
        assert mode.detect(executed, forced) == forced
    assert mode.detect(executed, "nonsense") == "headless"


def test_forced_headless_waits_without_being_asked(shell: TestingShell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNA_NB_MODE", "headless")
    assert shell.run(f"%tuna {DEPLOY}").result.spot_state == "READY"
    shell.run("%tuna destroy --service-name cell")


def test_a_failed_background_deploy_says_so(shell: TestingShell, home: Terminal) -> None:
    job = shell.run(f"%tuna {DEPLOY} --serverless-only --engine-cmd no-such-engine")
    with pytest.raises(TunaError, match="no-such-engine"):
        asyncio.run(_awaited(job))
    assert job.snapshot.state == "failed"
    assert live_names(home.folder) == []


async def _awaited(job: Any) -> Any:
    return await job
