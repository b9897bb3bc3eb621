"""Migrations: where they are, what the database has, and bringing it up to date."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from polarcredits.errors import DatabaseError
from polarcredits.ledger.database import Database, sqlite_path
from polarcredits.ledger.failing import failures
from polarcredits.ledger.sqlite_file import empty_database, private_file

HEAD = "0008"
"""The newest migration; a test holds it to what Alembic finds."""


def migrations_directory() -> Path:
    """Return the migrations of the checkout, else those shipped in the wheel."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "migrations"
    return checkout if (checkout / "env.py").is_file() else package / "migrations"


def current(connection: Connection) -> str | None:
    """Return the revision that the database is at, None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def check(connection: Connection) -> None:
    """Raise DatabaseError unless the database is at HEAD."""
    revision = current(connection)
    if revision == HEAD:
        return
    if revision is not None and revision > HEAD:
        raise DatabaseError(
            f"The database is at {revision}, newer than this polarcredits knows ({HEAD}). "
            "Install a newer version."
        )
    raise DatabaseError(
        f"The database is at {revision or 'nothing'}, behind {HEAD}. Run: polarcredits db upgrade"
    )


def upgrade(database: Database) -> None:
    """Bring the database to HEAD in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))

    def work(connection: Connection) -> None:
        if not database.sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(712905)"))
        revision = current(connection)
        if revision is not None and revision > HEAD:
            check(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    database.write(work)


def make_if_absent(url: str) -> None:
    """Make and migrate a SQLite database that does not exist yet; whoever is first wins, whole."""
    path = sqlite_path(url)
    if path is None:
        return
    if path.is_dir():
        raise DatabaseError(f"{path} is a directory, not a database; name a file.")
    if path.exists():
        return
    left = Path(f"{path}-wal")
    if left.is_file() and _size(left) and not path.exists():
        raise DatabaseError(
            f"{path} is gone, but {left.name} is still beside it, with what was last written to it. "
            "Put the database back, or move that file away to begin anew."
        )
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        empty_database(draft, path)
        fresh = Database(f"sqlite:///{draft}")
        try:
            upgrade(fresh)
        finally:
            fresh.close()
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError as error:
            raise DatabaseError(f"Cannot make the database {path}: {error.strerror}.") from error
    finally:
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            leftover.unlink(missing_ok=True)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def open_database(url: str) -> Database:
    """Return the database behind *url*, made first if it is SQLite and absent; never out of date."""
    database = Database(url)
    try:
        make_if_absent(url)
        database.read(check)
    except DatabaseError:
        database.close()
        raise
    return database


def backup(database: Database, target: Path) -> None:
    """Copy a SQLite database into *target* while it is in use."""
    if not database.sqlite:
        raise DatabaseError("This is PostgreSQL: make a backup with pg_dump.")
    if target.exists():
        raise DatabaseError(f"{target} exists already; name another file.")
    private_file(target, target)
    with failures, database.connect(database.engine) as connection:
        source = connection.connection.driver_connection
        copy = sqlite3.connect(target)
        try:
            if isinstance(source, sqlite3.Connection):
                source.backup(copy)
        finally:
            copy.close()
