"""Alembic's environment: runs on the connection it is given, else on POLARCREDITS_DATABASE_URL."""

import os

from alembic import context

from polarcredits.ledger import archived
from polarcredits.ledger.database import Database, sqlite_path
from polarcredits.ledger.sqlite_file import empty_database


def differ(migrations, _inspected, _column, found, wanted):
    """Say whether a column has another type; a domain has that which it is made of. None: the usual way."""
    made_of = getattr(found, "data_type", None)
    if made_of is None:
        return None
    kind, _, _collation = made_of.compile(migrations.dialect).partition(" COLLATE ")
    return kind != wanted.compile(migrations.dialect)


def run(connection):
    context.configure(
        connection=connection,
        target_metadata=archived.SQLModel.metadata,
        compare_type=differ,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = os.environ["POLARCREDITS_DATABASE_URL"]
    file = sqlite_path(url)
    if file is not None and not file.exists():
        empty_database(file, file)
    database = Database(url)
    with database.writer.begin() as opened:
        run(opened)
    database.close()
