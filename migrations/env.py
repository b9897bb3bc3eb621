"""Alembic's environment: runs on the connection it is given, else on POLARCREDITS_DATABASE_URL."""

import os

from alembic import context

from polarcredits.ledger import archived
from polarcredits.ledger.database import Database, sqlite_path
from polarcredits.ledger.sqlite_file import empty_database


def run(connection):
    context.configure(
        connection=connection,
        target_metadata=archived.SQLModel.metadata,
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
