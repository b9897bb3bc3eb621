"""What will befall each account, foreseen when it is written; an index of the grants that are live."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade():
    op.create_table(
        "outlooks",
        sa.Column("account_id", INT, nullable=False),
        sa.Column("rules", INT, nullable=False),
        sa.Column("until", INT, nullable=False),
        sa.Column("product_id", sa.Text(), nullable=True),
        sa.Column("prefix", sa.Text(), nullable=True),
        sa.Column("first_index", INT, nullable=True),
        sa.Column("bounds", sa.Text(), nullable=True),
        sa.Column("expires_at", INT, nullable=True),
        sa.Column("plan", sa.Text(), nullable=True),
        sa.Column("credits", INT, nullable=True),
        sa.Column("clawback", sa.Text(), nullable=True),
        sa.Column("subscription_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_outlooks_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_outlooks")),
        sqlite_strict=True,
    )
    live = sa.text("expired = 0")
    op.create_index("ix_grants_live", "grants", ["account_id"], sqlite_where=live, postgresql_where=live)


def downgrade():
    op.drop_index("ix_grants_live", "grants")
    op.drop_table("outlooks")
