"""Opening balances, which stand for archived entries."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
GUARD_SQLITE = """
CREATE TRIGGER {table}_no_{lower} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
"""
GUARD_REPLACE = """
CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}
WHEN EXISTS (SELECT 1 FROM {table} AS o WHERE {same})
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
"""
GUARD_FUNCTION = """
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
"""
GUARD_POSTGRESQL = """
CREATE TRIGGER {table}_no_{lower} BEFORE {verb} ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION append_only()
"""
KEYS = {
    "openings": ("account_id", "sequence"),
    "grant_openings": ("account_id", "sequence", "grant_id", "type"),
}


def guard():
    """Refuse to change or delete an opening."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    if not sqlite:
        op.execute(GUARD_FUNCTION)
    for table, key in KEYS.items():
        for verb in ("UPDATE", "DELETE") if sqlite else ("UPDATE", "DELETE", "TRUNCATE"):
            sql = GUARD_SQLITE if sqlite else GUARD_POSTGRESQL
            op.execute(sql.format(table=table, verb=verb, lower=verb.lower()))
        if sqlite:
            same = " AND ".join(f"o.{column} = NEW.{column}" for column in key)
            op.execute(GUARD_REPLACE.format(table=table, same=same))


def upgrade():
    op.create_table(
        "openings",
        sa.Column("account_id", INT, nullable=False),
        sa.Column("sequence", INT, nullable=False),
        sa.Column("balance", INT, nullable=False),
        sa.Column("occurred_at", INT, nullable=False),
        sa.Column("recorded_at", INT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_openings_account_id")),
        sa.PrimaryKeyConstraint("account_id", "sequence", name=op.f("pk_openings")),
        sqlite_strict=True,
    )
    op.create_table(
        "grant_openings",
        sa.Column("account_id", INT, nullable=False),
        sa.Column("sequence", INT, nullable=False),
        sa.Column("grant_id", INT, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("amount", INT, nullable=False),
        sa.Column("occurred_at", INT, nullable=False),
        sa.CheckConstraint(
            "type IN ('grant','deduct','reversal','expire','clawback','adjust','transfer')",
            name=op.f("ck_grant_openings_type"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_grant_openings_account_id")),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_grant_openings_grant_id")),
        sa.PrimaryKeyConstraint("account_id", "sequence", "grant_id", "type", name=op.f("pk_grant_openings")),
        sqlite_strict=True,
    )
    op.create_index("ix_grant_openings_grant", "grant_openings", ["grant_id"])
    guard()


def downgrade():
    archived = op.get_bind().execute(sa.text("SELECT count(*) FROM openings")).scalar_one()
    if archived:
        raise RuntimeError("Entries are archived; without their openings the ledger would not add up.")
    op.drop_table("grant_openings")
    op.drop_table("openings")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION append_only()")
