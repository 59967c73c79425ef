"""What a session says of money unasked: as the extension is loaded, and as a kernel or a terminal ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frontends.kernels import Kernel, started
from tests.frontends.terminals import MODEL, Terminal
from tuna_nb.costs.ledger import Seen, Terms, observe
from tuna_nb.settings import Settings
from tuna_nb.store import Store

pytestmark = pytest.mark.e2e

LOADED = "%load_ext tuna_nb"


@pytest.fixture
def running(own_data_folder: Path) -> str:
    """The records of a deployment that bills 0.50 dollars an hour since two hours."""
    store = Store(Settings.load())
    planned = {"role": "spot", "provider": "local", "name": "tuna-left-spot", "price_per_hour_usd": 0.5}
    record = store.add_deployment(
        "left", {"model": MODEL, "gpu": "L4", "gpu_count": 1}, {}, [planned], "id-of-left"
    )
    (resource,) = store.resources(record.id)
    store.update_resource(resource.id, state="created")
    now = time.time()
    observe(store.books, resource.id, [Seen("r", now - 7200, ready=True)], Terms(0.5), now)
    store.close()
    return "1 deployment runs: $0.50 per hour, $1.00 so far"


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with started() as one:
        yield one


def test_a_kernel_says_what_runs_as_it_begins_and_warns_as_it_ends(running: str, kernel: Kernel) -> None:
    assert kernel.run(LOADED) == f"{running} (`%tuna list`)\n"
    said, took = kernel.shut_down()
    assert said == (
        f"tuna: {running}. left goes on without this session; `tuna destroy --service-name left` ends it.\n"
    )
    assert took < 5


def test_a_restart_warns_of_nothing(running: str, kernel: Kernel) -> None:
    kernel.run(LOADED)
    assert kernel.shut_down(restart=True)[0] == ""


def test_where_nothing_runs_nothing_is_said(kernel: Kernel, own_data_folder: Path) -> None:
    assert kernel.run(LOADED) == ""
    assert kernel.shut_down()[0] == ""
    assert not own_data_folder.exists()


def test_a_damaged_store_does_not_keep_the_extension_from_loading(kernel: Kernel, own_data_folder: Path) -> None:
    own_data_folder.mkdir()
    (own_data_folder / "tuna.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 999)
    assert kernel.run(LOADED) == ""
    assert "%tuna deploy" in kernel.run("%tuna")
    assert kernel.shut_down()[0] == ""


def test_an_unloaded_extension_warns_of_nothing(running: str, kernel: Kernel) -> None:
    kernel.run(LOADED)
    kernel.run("%unload_ext tuna_nb")
    assert kernel.shut_down()[0] == ""


def test_ipython_in_a_terminal_warns_as_it_ends(running: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"],
        input=f"{LOADED}\nexit\n", capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert f"{running} (`%tuna list`)" in done.stdout
    assert done.stderr.count("left goes on without this session") == 1


def test_loading_takes_no_time_for_it(running: str) -> None:
    from tuna_nb.costs import meter

    settings = Settings.load()
    took = []
    for _ in range(20):
        began = time.perf_counter()
        assert meter.reading(settings) is not None
        took.append(time.perf_counter() - began)
    print(f"the meter takes {min(took) * 1000:.2f} ms")
    assert min(took) < 0.05


def test_loading_beside_a_store_imports_nothing_heavy(running: str) -> None:
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "InteractiveShell.instance().extension_manager.load_extension('tuna_nb')\n"
        "import sys; print([n for n in ('sqlalchemy', 'pandas', 'httpx', 'rich', 'ipywidgets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{running} (`%tuna list`)", "[]"]


def test_the_list_says_what_all_of_it_has_cost(home: Terminal, running: str) -> None:
    listed = home("list", "-o", "json").json
    assert listed["meter"]["names"] == ["left"]
    assert listed["meter"]["usd"] == pytest.approx(1.0, abs=0.01)
    assert "so far, by the records" in home("list").out
    forget(Settings.load())


def forget(settings: Settings) -> None:
    store = Store(settings)
    store.update_deployment("id-of-left", state="destroyed", destroyed_at=time.time())
    store.close()
