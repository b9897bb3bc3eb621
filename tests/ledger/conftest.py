"""A ledger on SQLite and one on a real PostgreSQL: every test that asks for `ledger` runs on both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from polarcredits.ledger import schema
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from tests.ledger.worlds import catalog
from tests.postgres import running_postgres

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server with a migrated database, to copy for each test."""
    with running_postgres() as url:
        # Only a machine that fails could tell; without it a hundred databases take minutes to end.
        _statement(url, "ALTER SYSTEM SET fsync = off")
        _statement(url, "SELECT pg_reload_conf()")
        _statement(url, "CREATE DATABASE template_credits")
        database = Database(named(url, "template_credits"))
        schema.upgrade(database)
        database.close()
        yield url


def named(url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _statement(url: str, sql: str) -> None:
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    engine = create_engine(parsed, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(sql))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty, migrated database."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'credits.db'}"
        schema.make_if_absent(made)
        return made
    server: str = request.getfixturevalue("postgres")
    return copy_of_template(server)


def copy_of_template(server: str) -> str:
    """Return the URL of a new database, empty and migrated."""
    name = f"credits_{next(_NUMBERS)}"
    _statement(server, f"CREATE DATABASE {name} TEMPLATE template_credits")
    return named(server, name)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """An open ledger on an empty database."""
    with Ledger(url, catalog(), actor="test") as opened:
        yield opened
