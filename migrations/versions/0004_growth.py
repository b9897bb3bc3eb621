"""Indexes for what would read a whole table as it grows: a grant's draws, the newest purchases."""

from alembic import op

revision = "0004"
down_revision = "0001"

INDEXES = (
    ("ix_grant_draws_grant", "grant_draws", "grant_id"),
    ("ix_payments_created", "payments", "created_at"),
    ("ix_subscriptions_created", "subscriptions", "created_at"),
)


def upgrade():
    for name, table, column in INDEXES:
        op.create_index(name, table, [column])


def downgrade():
    for name, table, _ in INDEXES:
        op.drop_index(name, table)
