"""What stays of entries that were archived: opening balances (docs/scaling.md, docs/rules.md §6.5)."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Connection, Index, func, select
from sqlmodel import SQLModel

from polarcredits.errors import InvalidInput
from polarcredits.ledger import tables as t
from polarcredits.ledger.columns import STRICT, integer, text
from polarcredits.periods import format_time, from_micros


class Opening(SQLModel, table=True):
    """Stands for an account's entries up to `sequence`; later archiving adds another."""

    __tablename__ = "openings"
    __table_args__ = (STRICT,)
    account_id: int = integer(key=True, to="accounts.id")
    sequence: int = integer(key=True)
    balance: int = integer()
    occurred_at: int = integer()
    recorded_at: int = integer()


class GrantOpening(SQLModel, table=True):
    """What moved a grant among the entries from one opening to the next, by type."""

    __tablename__ = "grant_openings"
    __table_args__ = (
        CheckConstraint(
            "type IN ('grant','deduct','reversal','expire','clawback','adjust','transfer')",
            name="type",
        ),
        Index("ix_grant_openings_grant", "grant_id"),
        STRICT,
    )
    account_id: int = integer(key=True, to="accounts.id")
    sequence: int = integer(key=True)
    grant_id: int = integer(key=True, to="grants.id")
    type: str = text(key=True)
    amount: int = integer()
    occurred_at: int = integer()


openings = SQLModel.metadata.tables["openings"]
grant_openings = SQLModel.metadata.tables["grant_openings"]


def is_archived(connection: Connection, account: int, sequence: int) -> bool:
    """Say whether the entry was there and is archived."""
    o = openings.c
    beyond = select(o.sequence).where(o.account_id == account, o.sequence >= sequence)
    return sequence > 0 and connection.execute(beyond.limit(1)).first() is not None


def archived_until(connection: Connection, account: int) -> datetime | None:
    """Return the time of the last archived entry of an account and of those merged into it."""
    a, o = t.accounts.c, openings.c
    whose = select(a.id).where((a.id == account) | (a.alias_of == account))
    last = connection.execute(select(func.max(o.occurred_at)).where(o.account_id.in_(whose))).scalar()
    return None if last is None else from_micros(last)


def refuse_archived(connection: Connection, account: int, at: datetime) -> None:
    """Raise InvalidInput if the entries that tell how the account stood at *at* are archived."""
    last = archived_until(connection, account)
    if last is not None and at < last:
        raise InvalidInput(
            f"The user's entries up to {format_time(last)} are archived: ask for that time or a later one."
        )
