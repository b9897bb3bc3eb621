"""When a failed event is tried again, what an event told, and an index to read events in their order."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WAITING = sa.text("status = 'failed'")


def upgrade():
    """Add the columns, let what has failed be tried at once, and make the indexes."""
    op.add_column("webhook_events", sa.Column("next_attempt_at", INT, nullable=True))
    op.add_column("webhook_events", sa.Column("told", sa.Text(), nullable=True))
    op.execute("UPDATE webhook_events SET next_attempt_at = received_at WHERE status = 'failed'")
    op.create_index(
        "ix_webhook_events_failed",
        "webhook_events",
        ["next_attempt_at"],
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    )
    op.drop_index("ix_webhook_events_received", "webhook_events")
    op.create_index("ix_webhook_events_received", "webhook_events", ["received_at", "id"])


def downgrade():
    """Take it all back."""
    op.drop_index("ix_webhook_events_received", "webhook_events")
    op.create_index("ix_webhook_events_received", "webhook_events", ["received_at"])
    op.drop_index("ix_webhook_events_failed", "webhook_events")
    op.drop_column("webhook_events", "told")
    op.drop_column("webhook_events", "next_attempt_at")
