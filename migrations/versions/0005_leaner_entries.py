"""Index an entry's key, grant and reversal only where it has one: a deduction writes fewer pages.

SQLite cannot drop a table's UNIQUE constraint: there the table is made anew, and guarded again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = ("uq_credit_transactions_account_id_idempotency_key", ["account_id", "idempotency_key"])
REVERSES = (
    "uq_credit_transactions_reverses_account_reverses_sequence",
    ["reverses_account", "reverses_sequence"],
)
COLUMNS = (
    "account_id, sequence, type, amount, balance_after, grant_id, operation, reason, meta, actor,"
    " idempotency_key, request, reverses_account, reverses_sequence, occurred_at, recorded_at"
)
GUARD = """
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


def make_anew(*constraints):
    """Copy the table into one with further constraints; its indexes and triggers go with the old."""
    op.create_table(
        "credit_transactions_anew",
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
        *constraints,
        sqlite_strict=True,
    )
    op.execute(f"INSERT INTO credit_transactions_anew ({COLUMNS}) SELECT {COLUMNS} FROM credit_transactions")
    op.drop_table("credit_transactions")
    op.rename_table("credit_transactions_anew", "credit_transactions")
    for verb in ("UPDATE", "DELETE"):
        op.execute(GUARD.format(verb=verb, lower=verb.lower()))
    op.execute(GUARD_REPLACE)
    op.execute(GUARD_KEYS)


def index_where_set(name, columns, unique):
    rows = sa.text(f"{columns[-1]} IS NOT NULL")
    op.create_index(
        name, "credit_transactions", columns, unique=unique, sqlite_where=rows, postgresql_where=rows
    )


def upgrade():
    if op.get_bind().dialect.name == "sqlite":
        make_anew()
    else:
        for name, _ in (KEY, REVERSES):
            op.drop_constraint(name, "credit_transactions", type_="unique")
        op.drop_index("ix_credit_transactions_grant", "credit_transactions")
    index_where_set("uq_credit_transactions_key", KEY[1], True)
    index_where_set("uq_credit_transactions_reverses", REVERSES[1], True)
    index_where_set("ix_credit_transactions_grant", ["grant_id"], False)


def downgrade():
    if op.get_bind().dialect.name == "sqlite":
        make_anew(*(sa.UniqueConstraint(*columns, name=op.f(name)) for name, columns in (KEY, REVERSES)))
    else:
        for index in ("key", "reverses"):
            op.drop_index(f"uq_credit_transactions_{index}", "credit_transactions")
        op.drop_index("ix_credit_transactions_grant", "credit_transactions")
        for name, columns in (KEY, REVERSES):
            op.create_unique_constraint(name, "credit_transactions", columns)
    op.create_index("ix_credit_transactions_grant", "credit_transactions", ["grant_id"])
