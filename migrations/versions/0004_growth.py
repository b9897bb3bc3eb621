"""Indexes for reads that would look at a whole table as it grows."""

from alembic import op

revision = "0004"
down_revision = "0003"

INDEXES = (
    ("ix_accounts_alias", "accounts", ["alias_of"]),
    ("ix_customers_linked", "customers", ["linked_user"]),
    ("ix_grant_draws_grant", "grant_draws", ["grant_id"]),
    ("ix_payments_created", "payments", ["created_at", "id"]),
    ("ix_subscriptions_created", "subscriptions", ["created_at", "id"]),
    ("ix_webhook_events_type", "webhook_events", ["type", "received_at", "id"]),
    ("ix_webhook_events_user", "webhook_events", ["user_id", "received_at", "id"]),
)


def upgrade():
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)


def downgrade():
    for name, table, _ in INDEXES:
        op.drop_index(name, table)
