"""Records: kept whole, by several processes at once, in SQLite and in PostgreSQL alike."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.postgres import database
from tuna_nb.costs.amounts import quarters
from tuna_nb.costs.ledger import between
from tuna_nb.errors import ConflictError, NotFoundError, SettingsError, StoreError
from tuna_nb.records import PriceRecord
from tuna_nb.settings import Settings
from tuna_nb.store import SCHEMA_VERSION, Store

SIDES = [
    {"role": "serverless", "provider": "local", "name": "tuna-a-1-serverless", "price_per_hour_usd": 0.8},
    {"role": "spot", "provider": "local", "name": "tuna-a-1-spot", "price_per_hour_usd": None},
]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    if request.param == "sqlite":
        yield Settings.load({"TUNA_DATA_DIR": str(tmp_path / "data")})
        return
    with database() as url:
        yield Settings.load({"TUNA_DATA_DIR": str(tmp_path / "data"), "TUNA_DATABASE_URL": url})


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = Store(settings)
    yield opened
    opened.close()


def add(store: Store, name: str = "a", deployment_id: str = "id1") -> Any:
    return store.add_deployment(name, {"model": "m"}, {"worst": 1.5}, SIDES, deployment_id)


def test_a_deployment_and_all_its_resources_are_recorded_at_once(store: Store) -> None:
    record = add(store)
    assert (record.state, record.request, record.plan) == ("deploying", {"model": "m"}, {"worst": 1.5})
    assert [(r.role, r.state) for r in store.resources("id1")] == [("serverless", "planned"), ("spot", "planned")]


def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    settings = Settings.load({"TUNA_DATA_DIR": str(tmp_path)})
    path = sa.make_url(settings.database_url).database
    assert path is not None
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (x)")
    other.execute("BEGIN IMMEDIATE")
    refused = threading.Event()

    def end() -> None:
        refused.wait(5)
        other.rollback()

    ending = threading.Thread(target=end)
    ending.start()
    waiting = sqlite3.connect(path, timeout=10)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        waiting.execute("PRAGMA journal_mode=WAL")  # for all its ten seconds of patience
    waiting.close()
    threading.Timer(0.2, refused.set).start()
    store = Store(settings)
    assert store.deployments() == []
    store.close()
    ending.join()
    other.close()


def test_what_was_written_is_there_for_the_next_process(settings: Settings) -> None:
    first = Store(settings)
    add(first)
    first.update_deployment("id1", state="running", endpoint_url="http://127.0.0.1:1")
    first.close()
    again = Store(settings)
    assert again.deployment("a").endpoint_url == "http://127.0.0.1:1"
    again.close()


def test_a_live_name_is_taken_and_a_destroyed_one_is_free(store: Store) -> None:
    add(store)
    with pytest.raises(ConflictError, match="of that name exists"):
        add(store, deployment_id="id2")
    assert [d.id for d in store.deployments()] == ["id1"]
    assert len(store.resources("id2")) == 0
    store.update_deployment("id1", state="destroyed", destroyed_at=1.0)
    add(store, deployment_id="id2")
    assert store.deployment("a").id == "id2"
    assert store.live_deployment("a") is not None


def test_an_unknown_name_is_an_error_that_names_the_known(store: Store) -> None:
    add(store, name="known")
    with pytest.raises(NotFoundError) as e:
        store.deployment("unknown")
    assert "known" in str(e.value.hint)


def test_two_jobs_on_one_name_are_refused_while_the_first_lives(store: Store) -> None:
    job = store.claim_job("a", "deploy")
    with pytest.raises(ConflictError, match="a deploy is under way"):
        store.claim_job("a", "destroy")
    store.update_job(job.id, state="done", ended_at=1.0)
    assert store.claim_job("a", "destroy").verb == "destroy"


def test_a_job_whose_process_died_gives_way(store: Store, settings: Settings) -> None:
    code = (
        "import os, signal\nfrom tuna_nb.settings import Settings\nfrom tuna_nb.store import Store\n"
        f"Store(Settings.load({{'TUNA_DATA_DIR': {str(settings.data_dir)!r},"
        f" 'TUNA_DATABASE_URL': {settings.database_url!r}}})).claim_job('a', 'deploy')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    left = store.jobs(running_only=True)
    assert [j.alive for j in left] == [False]
    store.claim_job("a", "destroy")
    assert [(j.verb, j.state) for j in store.jobs()] == [("deploy", "interrupted"), ("destroy", "running")]


def test_a_cancel_request_reaches_the_job(store: Store) -> None:
    job = store.claim_job("a", "deploy")
    assert not store.cancel_requested(job.id)
    store.update_job(job.id, cancel_requested=True)
    assert store.cancel_requested(job.id)


def price(usd: float, at: float, region: str = "", gpu: str = "L4") -> PriceRecord:
    return PriceRecord("aws", "spot", gpu, region, at, usd)


def test_a_price_is_kept_when_it_differs_from_what_was_seen_last(store: Store) -> None:
    assert store.put_prices([price(0.3, 10.0), price(0.3, 10.0, "us-east-1"), price(4.0, 10.0, gpu="H100")]) == 3
    assert store.put_prices([price(0.3, 20.0), price(0.4, 20.0, "us-east-1")]) == 1
    assert store.put_prices([price(0.9, 15.0, "us-east-1")]) == 0, "older than what is known"
    assert store.put_prices([price(0.3, 30.0, "us-east-1")]) == 1, "back to an earlier price is a change"
    assert [(p.at, p.region, p.price_per_hour_usd) for p in store.prices_seen("L4")] == [
        (10.0, "", 0.3), (10.0, "us-east-1", 0.3), (20.0, "us-east-1", 0.4), (30.0, "us-east-1", 0.3),
    ]  # fmt: skip
    assert [p.gpu for p in store.prices_seen(since=5.0)].count("H100") == 1
    assert store.prices_seen("L4", since=25.0) == [price(0.3, 30.0, "us-east-1")]


def test_many_processes_write_at_once_and_lose_nothing(settings: Settings) -> None:
    code = (
        "import sys\nfrom tuna_nb.settings import Settings\nfrom tuna_nb.store import Store\n"
        f"store = Store(Settings.load({{'TUNA_DATA_DIR': {str(settings.data_dir)!r},"
        f" 'TUNA_DATABASE_URL': {settings.database_url!r}}}))\n"
        "who = sys.argv[1]\n"
        "for i in range(25):\n"
        "    store.add_deployment(f'{who}-{i}', {}, {}, [], f'{who}-{i}')\n"
        "    store.add_event(f'{who}-{i}', 'made')\n"
    )
    # All four open a store that does not exist yet: one of them makes the schema, the others wait for it.
    workers = [
        subprocess.Popen([sys.executable, "-c", code, f"w{n}"], stderr=subprocess.PIPE, text=True) for n in range(4)
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
    store = Store(settings)
    assert len(store.deployments()) == 100
    assert all(len(store.events(d.id)) == 1 for d in store.deployments())
    store.close()


def test_an_older_schema_is_brought_up_to_date_with_its_records(settings: Settings) -> None:
    import alembic.command
    import alembic.config

    settings.data_folder()
    engine = sa.create_engine(settings.database_url)
    config = alembic.config.Config()
    import tuna_nb

    config.set_main_option("script_location", str(Path(tuna_nb.__file__).parent / "migrations"))
    with engine.begin() as c:
        config.attributes["connection"] = c
        alembic.command.upgrade(config, "0001")
        c.exec_driver_sql(
            "INSERT INTO deployments (id, name, state, request, plan, created_at, updated_at)"
            " VALUES ('old', 'old', 'running', '{}', '{}', 1, 1)"
        )
        alembic.command.upgrade(config, "0003")
        c.exec_driver_sql(
            "INSERT INTO resources (id, deployment_id, role, provider, name, state, created_at)"
            " VALUES (7, 'old', 'spot', 'local', 'old-spot', 'created', 1)"
        )
        c.exec_driver_sql(
            "INSERT INTO usage (resource_id, replica_id, started_at, ended_at, price_per_hour_usd, granularity_s)"
            " VALUES (7, 'r1', 1000.5, 4000.2, 3.6, 1), (7, 'r2', 2000, NULL, 7.2, 1)"
        )
    engine.dispose()
    store = Store(settings)
    assert store.deployment("old").state == "running"
    ended, running = store.books.intervals(7)
    assert (ended.replica_id, ended.ended_at, ended.basis) == ("r1", 4000.2, "provider-reported")
    assert (running.replica_id, running.ended_at, running.prices) == ("r2", None, ((2000, 7.2),))
    # Its sums are those that the ledger itself would have written.
    kept = {s.quarter: (s.usd, s.seconds, s.starts) for s in store.books.spent([7], 0, 1e9)}
    assert kept == {s.quarter: pytest.approx((s.usd, s.seconds, s.starts)) for s in quarters(ended)}
    assert between(store.books, [7], 0, 5000).total.usd == pytest.approx(3.0 + 6.0)
    store.close()


def test_a_schema_of_a_newer_tuna_is_refused_and_left_alone(settings: Settings) -> None:
    Store(settings).close()
    engine = sa.create_engine(settings.database_url)
    with engine.begin() as c:
        c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="has schema 9999") as e:
        Store(settings)
    assert "pip install -U" in str(e.value.hint)
    with engine.begin() as c:
        assert c.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "9999"
    engine.dispose()


def test_the_newest_migration_is_the_one_the_store_expects() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import tuna_nb

    config = Config()
    config.set_main_option("script_location", str(Path(tuna_nb.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_VERSION


def test_a_damaged_file_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "tuna.db").write_bytes(b"this is no database at all, but it is long enough to be read as one" * 20)
    with pytest.raises(StoreError, match="is damaged") as e:
        Store(Settings.load({"TUNA_DATA_DIR": str(tmp_path)}))
    assert "--orphans" in str(e.value.hint)


def test_an_unwritable_folder_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match="not writable") as e:
        Store(Settings.load({"TUNA_DATA_DIR": str(tmp_path / "file" / "data")}))
    assert "TUNA_DATA_DIR" in str(e.value.hint)


def test_a_database_url_that_makes_no_sense_is_not_repeated_with_its_password(tmp_path: Path) -> None:
    for url in ("postgresql+psycopg://u:hunter2@127.0.0.1:1/none", "nonsense://u:hunter2@host/db", "hunter2"):
        with pytest.raises(StoreError) as e:
            Store(Settings.load({"TUNA_DATA_DIR": str(tmp_path), "TUNA_DATABASE_URL": url}))
        assert "hunter2" not in "\n".join(e.value.lines())


def test_sqlite_survives_a_writer_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    settings = Settings.load({"TUNA_DATA_DIR": str(tmp_path)})
    Store(settings).close()
    code = (
        "import os, signal, sqlite3\n"
        f"c = sqlite3.connect({str(tmp_path / 'tuna.db')!r}, isolation_level=None)\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        'c.execute("INSERT INTO deployments (id, name, state, request, plan, created_at, updated_at)'
        " VALUES ('x', 'x', 'deploying', '{}', '{}', 1, 1)\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    store = Store(settings)
    assert store.deployments() == []
    add(store)
    store.close()
    with sqlite3.connect(tmp_path / "tuna.db") as c:
        assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_job_of_a_machine_that_fell_silent_gives_way(store: Store) -> None:
    job = store.claim_job("a", "deploy")
    store.update_job(job.id, host="another-machine")
    assert store.jobs()[0].alive
    store.update_job(job.id, seen_at=job.seen_at - 120)
    assert not store.jobs()[0].alive
    store.claim_job("a", "destroy")
