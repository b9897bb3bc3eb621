"""The ledger, the facts and the inbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

GUARD_SQLITE = """
CREATE TRIGGER credit_transactions_no_{lower} BEFORE {verb} ON credit_transactions
BEGIN SELECT RAISE(ABORT, 'credit_transactions is append-only'); END
"""
GUARD_REPLACE = """
CREATE TRIGGER credit_transactions_no_replace BEFORE INSERT ON credit_transactions
WHEN EXISTS (SELECT 1 FROM credit_transactions
 WHERE account_id = NEW.account_id AND sequence = NEW.sequence)
BEGIN SELECT RAISE(ABORT, 'credit_transactions is append-only'); END
"""
GUARD_KEYS = """
CREATE TRIGGER credit_transactions_no_replaced_key BEFORE INSERT ON credit_transactions
WHEN NEW.idempotency_key IS NOT NULL AND EXISTS (SELECT 1 FROM credit_transactions
 WHERE account_id = NEW.account_id AND idempotency_key = NEW.idempotency_key)
BEGIN SELECT RAISE(IGNORE); END
"""
GUARD_FUNCTION = """
CREATE FUNCTION credit_transactions_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'credit_transactions is append-only'; END $$
"""
GUARD_POSTGRESQL = """
CREATE TRIGGER credit_transactions_no_{lower} BEFORE {verb} ON credit_transactions
FOR EACH STATEMENT EXECUTE FUNCTION credit_transactions_append_only()
"""


def guard_transactions():
    """Refuse to change or delete a ledger entry."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(GUARD_SQLITE.format(verb=verb, lower=verb.lower()))
        # INSERT OR REPLACE deletes without firing DELETE triggers. A key in use is left to the caller,
        # who counts rows: ON CONFLICT DO NOTHING must stay silent.
        op.execute(GUARD_REPLACE)
        op.execute(GUARD_KEYS)
        return
    op.execute(GUARD_FUNCTION)
    for verb in ("UPDATE", "DELETE", "TRUNCATE"):
        op.execute(GUARD_POSTGRESQL.format(verb=verb, lower=verb.lower()))


def upgrade():
    op.create_table(
        "accounts",
        sa.Column("id", INT, nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("alias_of", INT, nullable=True),
        sa.Column("created_at", INT, nullable=False),
        sa.ForeignKeyConstraint(["alias_of"], ["accounts.id"], name=op.f("fk_accounts_alias_of")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("user_id", name=op.f("uq_accounts_user_id")),
        sqlite_strict=True,
    )
    op.create_table(
        "customers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("linked_user", sa.Text(), nullable=True),
        sa.Column("deleted", INT, nullable=False, server_default="0"),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_customers")),
        sqlite_strict=True,
    )
    op.create_index("ix_customers_external", "customers", ["external_id"])
    op.create_table(
        "observations",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("as_of", INT, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "object_id", "as_of", "digest", name=op.f("pk_observations")),
        sqlite_strict=True,
    )
    op.create_table(
        "payments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("subscription_id", sa.Text(), nullable=True),
        sa.Column("product_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("billing_reason", sa.Text(), nullable=False),
        sa.Column("net_cents", INT, nullable=False),
        sa.Column("refunded_cents", INT, nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sqlite_strict=True,
    )
    op.create_index("ix_payments_customer", "payments", ["customer_id"])
    op.create_index("ix_payments_owner", "payments", ["owner"])
    op.create_table(
        "refunds",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name=op.f("pk_refunds")),
        sqlite_strict=True,
    )
    op.create_index("ix_refunds_order", "refunds", ["order_id"])
    op.create_table(
        "settings",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_settings")),
        sqlite_strict=True,
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("product_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("current_period_start", INT, nullable=True),
        sa.Column("current_period_end", INT, nullable=True),
        sa.Column("cancel_at_period_end", INT, nullable=False),
        sa.Column("ends_at", INT, nullable=True),
        sa.Column("ended_at", INT, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscriptions")),
        sqlite_strict=True,
    )
    op.create_index("ix_subscriptions_customer", "subscriptions", ["customer_id"])
    op.create_index("ix_subscriptions_owner", "subscriptions", ["owner"])
    op.create_table(
        "terms",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "product_id", name=op.f("pk_terms")),
        sqlite_strict=True,
    )
    op.create_table(
        "unknown_products",
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("account_id", INT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_unknown_products_account_id")),
        sa.PrimaryKeyConstraint("product_id", "account_id", name=op.f("pk_unknown_products")),
        sqlite_strict=True,
    )
    op.create_table(
        "webhook_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempts", INT, nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("occurred_at", INT, nullable=True),
        sa.Column("received_at", INT, nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "status IN ('applied','ignored','failed')",
            name=op.f("ck_webhook_events_ck_webhook_events_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_events")),
        sqlite_strict=True,
    )
    op.create_index("ix_webhook_events_received", "webhook_events", ["received_at"])
    op.create_table(
        "credit_balances",
        sa.Column("account_id", INT, nullable=False),
        sa.Column("balance", INT, nullable=False, server_default="0"),
        sa.Column("held", INT, nullable=False, server_default="0"),
        sa.Column("sequence", INT, nullable=False, server_default="0"),
        sa.Column("unsettled", INT, nullable=False, server_default="0"),
        sa.Column("settled_sequence", INT, nullable=False, server_default="0"),
        sa.Column("next_due_at", INT, nullable=False, server_default="0"),
        sa.Column("closed", INT, nullable=False, server_default="0"),
        sa.Column("last_occurred_at", INT, nullable=False, server_default="0"),
        sa.CheckConstraint("closed IN (0, 1)", name=op.f("ck_credit_balances_ck_credit_balances_closed")),
        sa.CheckConstraint("held >= 0", name=op.f("ck_credit_balances_ck_credit_balances_held")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_credit_balances_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_credit_balances")),
        sqlite_strict=True,
    )
    op.create_index("ix_credit_balances_due", "credit_balances", ["next_due_at"])
    op.create_table(
        "credit_transactions",
        sa.Column("account_id", INT, nullable=False),
        sa.Column("sequence", INT, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("amount", INT, nullable=False),
        sa.Column("balance_after", INT, nullable=False),
        sa.Column("grant_id", INT, nullable=True),
        sa.Column("operation", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("meta", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("reverses_account", INT, nullable=True),
        sa.Column("reverses_sequence", INT, nullable=True),
        sa.Column("occurred_at", INT, nullable=False),
        sa.Column("recorded_at", INT, nullable=False),
        sa.CheckConstraint("amount <> 0", name=op.f("ck_credit_transactions_ck_credit_transactions_amount")),
        sa.CheckConstraint(
            "type IN ('grant','deduct','reversal','expire','clawback','adjust','transfer')",
            name=op.f("ck_credit_transactions_ck_credit_transactions_type"),
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_credit_transactions_account_id")
        ),
        sa.PrimaryKeyConstraint("account_id", "sequence", name=op.f("pk_credit_transactions")),
        sa.UniqueConstraint(
            "account_id",
            "idempotency_key",
            name=op.f("uq_credit_transactions_account_id_idempotency_key"),
        ),
        sa.UniqueConstraint(
            "reverses_account",
            "reverses_sequence",
            name=op.f("uq_credit_transactions_reverses_account_reverses_sequence"),
        ),
        sqlite_strict=True,
    )
    op.create_index("ix_credit_transactions_grant", "credit_transactions", ["grant_id"])
    op.create_table(
        "grants",
        sa.Column("id", INT, nullable=False),
        sa.Column("account_id", INT, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=True),
        sa.Column("gross", INT, nullable=False),
        sa.Column("clawed", INT, nullable=False),
        sa.Column("used", INT, nullable=False),
        sa.Column("carried_in", INT, nullable=False),
        sa.Column("remaining", INT, nullable=False),
        sa.Column("held", INT, nullable=False),
        sa.Column("effective_at", INT, nullable=False),
        sa.Column("expires_at", INT, nullable=True),
        sa.Column("expired", INT, nullable=False),
        sa.Column("withdrawn", INT, nullable=False),
        sa.Column("clawback", sa.Text(), nullable=False),
        sa.Column("cause_kind", sa.Text(), nullable=False),
        sa.Column("cause_id", sa.Text(), nullable=True),
        sa.Column("cause_event", sa.Text(), nullable=True),
        sa.Column("period_start", INT, nullable=True),
        sa.Column("period_end", INT, nullable=True),
        sa.CheckConstraint(
            "gross >= 0 AND clawed >= 0 AND used >= 0 AND held >= 0",
            name=op.f("ck_grants_ck_grants_amounts"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_grants_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sa.UniqueConstraint("account_id", "key", name=op.f("uq_grants_account_id_key")),
        sqlite_strict=True,
    )
    op.create_table(
        "holds",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", INT, nullable=False),
        sa.Column("key_account", INT, nullable=False),
        sa.Column("amount", INT, nullable=False),
        sa.Column("captured", INT, nullable=False, server_default="0"),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=True),
        sa.Column("meta", sa.Text(), nullable=True),
        sa.Column("parts", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("placed_at", INT, nullable=False),
        sa.Column("expires_at", INT, nullable=False),
        sa.Column("closed_at", INT, nullable=True),
        sa.CheckConstraint(
            "status IN ('open','captured','released','lapsed')",
            name=op.f("ck_holds_ck_holds_status"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_holds_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        sa.UniqueConstraint(
            "key_account", "idempotency_key", name=op.f("uq_holds_key_account_idempotency_key")
        ),
        sqlite_strict=True,
    )
    op.create_index("ix_holds_open", "holds", ["account_id", "status"])
    op.create_table(
        "grant_carries",
        sa.Column("account_id", INT, nullable=False),
        sa.Column("source_id", INT, nullable=False),
        sa.Column("target_id", INT, nullable=False),
        sa.Column("debt", INT, nullable=False),
        sa.Column("amount", INT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_grant_carries_account_id")),
        sa.ForeignKeyConstraint(["source_id"], ["grants.id"], name=op.f("fk_grant_carries_source_id")),
        sa.ForeignKeyConstraint(["target_id"], ["grants.id"], name=op.f("fk_grant_carries_target_id")),
        sa.PrimaryKeyConstraint(
            "account_id", "source_id", "target_id", "debt", name=op.f("pk_grant_carries")
        ),
        sqlite_strict=True,
    )
    op.create_table(
        "grant_draws",
        sa.Column("account_id", INT, nullable=False),
        sa.Column("first_sequence", INT, nullable=False),
        sa.Column("position", INT, nullable=False),
        sa.Column("last_sequence", INT, nullable=False),
        sa.Column("grant_id", INT, nullable=False),
        sa.Column("credits", INT, nullable=False),
        sa.Column("balance_from", INT, nullable=False),
        sa.Column("balance_to", INT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_grant_draws_account_id")),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_grant_draws_grant_id")),
        sa.PrimaryKeyConstraint("account_id", "first_sequence", "position", name=op.f("pk_grant_draws")),
        sqlite_strict=True,
    )
    guard_transactions()


def downgrade():
    op.drop_table("grant_draws")
    op.drop_table("grant_carries")
    op.drop_table("holds")
    op.drop_table("grants")
    op.drop_table("credit_transactions")
    op.drop_table("credit_balances")
    op.drop_table("webhook_events")
    op.drop_table("unknown_products")
    op.drop_table("terms")
    op.drop_table("subscriptions")
    op.drop_table("settings")
    op.drop_table("refunds")
    op.drop_table("payments")
    op.drop_table("observations")
    op.drop_table("customers")
    op.drop_table("accounts")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION credit_transactions_append_only()")
