"""Alembic's environment: runs on the connection it is given, else on POLARCREDITS_DATABASE_URL."""

import os

from alembic import context

from polarcredits.ledger import archived
from polarcredits.ledger.database import Database


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
    database = Database(os.environ["POLARCREDITS_DATABASE_URL"])
    with database.writer.begin() as opened:
        run(opened)
