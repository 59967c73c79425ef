"""A database of its own on the PostgreSQL server that TUNA_TEST_POSTGRES_URL names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

SERVER = os.environ.get("TUNA_TEST_POSTGRES_URL")


@contextmanager
def database() -> Iterator[str]:
    """Its URL; skips where there is no server."""
    if SERVER is None:
        pytest.skip("no PostgreSQL here (TUNA_TEST_POSTGRES_URL=postgresql+psycopg://user@host/db)")
    name = f"tuna_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(SERVER, isolation_level="AUTOCOMMIT")
    with admin.connect() as c:
        c.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sa.make_url(SERVER).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as c:
            c.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        admin.dispose()
