"""`polarcredits db …`."""

from __future__ import annotations

from pathlib import Path

import typer

from polarcredits.cli import context
from polarcredits.cli.output import emit, say

app = typer.Typer(no_args_is_help=True)


def _tell(current: str | None, head: str) -> None:
    state = "up to date" if current == head else "run: polarcredits db upgrade"
    emit(
        {"current": current, "head": head, "up_to_date": current == head},
        lambda: say(f"The database is at {current or 'nothing'}, the newest is {head}: {state}."),
    )


@app.command("upgrade")
def upgrade() -> None:
    """Bring the database up to date. Example: polarcredits db upgrade"""
    from polarcredits.ledger import schema
    from polarcredits.ledger.database import Database

    url = context.settings().database_url
    schema.make_if_absent(url)
    database = Database(url)
    try:
        schema.upgrade(database)
        _tell(database.read(schema.current), schema.HEAD)
    finally:
        database.close()


@app.command("current")
def current() -> None:
    """Say which version the database has. Example: polarcredits db current"""
    from polarcredits.ledger import schema
    from polarcredits.ledger.database import Database

    url = context.settings().database_url
    schema.make_if_absent(url)
    database = Database(url)
    try:
        _tell(database.read(schema.current), schema.HEAD)
    finally:
        database.close()


@app.command("backup")
def backup(file: Path) -> None:
    """Copy a SQLite database while it is in use. Example: polarcredits db backup copy.db"""
    from polarcredits.ledger import schema

    database = schema.open_database(context.settings().database_url)
    try:
        schema.backup(database, file)
        version = database.read(schema.current)
    finally:
        database.close()
    state = {"current": version, "head": schema.HEAD, "up_to_date": version == schema.HEAD}
    emit(state | {"file": str(file)}, lambda: say(f"Backed up to {file}."))
