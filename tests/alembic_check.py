"""`python -m tests.alembic_check`: the tables and the migrations agree, on SQLite and PostgreSQL."""

from __future__ import annotations

import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config

from polarcredits.ledger import schema
from polarcredits.ledger.database import Database
from tests.postgres import running_postgres


def check(url: str) -> None:
    """Migrate an empty database and raise if `alembic check` finds a difference."""
    schema.make_if_absent(url)
    database = Database(url)
    schema.upgrade(database)
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_directory()))
    with database.writer.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)
    database.close()


def main() -> None:
    """Check both databases."""
    with tempfile.TemporaryDirectory() as folder:
        check(f"sqlite:///{Path(folder) / 'check.db'}")
    with running_postgres() as url:
        check(url)


if __name__ == "__main__":
    main()
