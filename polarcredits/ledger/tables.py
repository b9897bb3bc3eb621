"""The tables, with named constraints that repeat the rules (docs/rules.md §6).

Times are microseconds since 1970, JSON is text, truth is 0 or 1: the same on SQLite and PostgreSQL.
Annotations are not postponed: to compile each again costs every command a hundredth of a second.
"""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, Table, Text, text
from sqlalchemy import LargeBinary as Bytes
from sqlalchemy import UniqueConstraint as Unique
from sqlmodel import Field, SQLModel

from polarcredits.ledger.naming import NAMING

SQLModel.metadata.naming_convention = NAMING
_INT = BigInteger().with_variant(Integer, "sqlite")
_STRICT = {"sqlite_strict": True}


def _int(*, key: bool = False, default: int | None = None, to: str | None = None) -> Any:
    return _field(_INT, key=key, default=default, to=to)


def _text(*, key: bool = False) -> Any:
    return _field(Text(), key=key)


def _field(kind: Any, *, key: bool, default: int | None = None, to: str | None = None) -> Any:
    return Field(
        default=default,
        primary_key=key,
        sa_type=kind,
        sa_column_args=[ForeignKey(to)] if to else [],
        sa_column_kwargs={} if default is None else {"server_default": str(default)},
    )


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def _where_set(name: str, *columns: str, unique: bool = False) -> Index:
    """Return an index of the rows in which the last column is set: most deductions are in none."""
    rows = text(f"{columns[-1]} IS NOT NULL")
    return Index(name, *columns, unique=unique, sqlite_where=rows, postgresql_where=rows)


class Account(SQLModel, table=True):
    """A user; an account merged into another stays as its alias."""

    __tablename__ = "accounts"
    __table_args__ = (Unique("user_id"), Index("ix_accounts_alias", "alias_of"), _STRICT)
    id: int | None = _int(key=True)
    user_id: str = _text()
    email: str | None = _text()
    name: str | None = _text()
    plan: str = _text()
    alias_of: int | None = _int(to="accounts.id")
    created_at: int = _int()


class CreditBalance(SQLModel, table=True):
    """The fast look-up: one row an account, and all that the hot path reads and writes."""

    __tablename__ = "credit_balances"
    __table_args__ = (
        CheckConstraint("held >= 0", name="held"),
        CheckConstraint("closed IN (0, 1)", name="closed"),
        Index("ix_credit_balances_due", "next_due_at"),
        _STRICT,
    )
    account_id: int = _int(key=True, to="accounts.id")
    balance: int = _int(default=0)
    held: int = _int(default=0)
    sequence: int = _int(default=0)
    unsettled: int = _int(default=0)
    settled_sequence: int = _int(default=0)
    next_due_at: int = _int(default=0)
    closed: int = _int(default=0)
    last_occurred_at: int = _int(default=0)


class CreditTransaction(SQLModel, table=True):
    """The ledger: append-only, guarded by triggers."""

    __tablename__ = "credit_transactions"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount"),
        CheckConstraint(
            "type IN ('grant','deduct','reversal','expire','clawback','adjust','transfer')",
            name="type",
        ),
        _where_set("uq_credit_transactions_key", "account_id", "idempotency_key", unique=True),
        _where_set("uq_credit_transactions_reverses", "reverses_account", "reverses_sequence", unique=True),
        _where_set("ix_credit_transactions_grant", "grant_id"),
        _STRICT,
    )
    account_id: int = _int(key=True, to="accounts.id")
    sequence: int = _int(key=True)
    type: str = _text()
    amount: int = _int()
    balance_after: int = _int()
    grant_id: int | None = _int()
    operation: str | None = _text()
    reason: str | None = _text()
    meta: str | None = _text()
    actor: str = _text()
    idempotency_key: str | None = _text()
    request: str | None = _text()
    reverses_account: int | None = _int()
    reverses_sequence: int | None = _int()
    occurred_at: int = _int()
    recorded_at: int = _int()


class Grant(SQLModel, table=True):
    """A lot of credits under its natural key."""

    __tablename__ = "grants"
    __table_args__ = (
        Unique("account_id", "key"),
        CheckConstraint("gross >= 0 AND clawed >= 0 AND used >= 0 AND held >= 0", name="amounts"),
        Index("ix_grants_live", "account_id", **_where("expired = 0")),
        _STRICT,
    )
    id: int | None = _int(key=True)
    account_id: int = _int(to="accounts.id")
    key: str = _text()
    source: str = _text()
    plan: str | None = _text()
    gross: int = _int()
    clawed: int = _int()
    used: int = _int()
    carried_in: int = _int()
    remaining: int = _int()
    held: int = _int()
    effective_at: int = _int()
    expires_at: int | None = _int()
    expired: int = _int()
    withdrawn: int = _int()
    clawback: str = _text()
    cause_kind: str = _text()
    cause_id: str | None = _text()
    cause_event: str | None = _text()
    period_start: int | None = _int()
    period_end: int | None = _int()


class OutlookRow(SQLModel, table=True):
    """What will befall an account if nothing new is heard; only what never falls due may lack its row.

    The columns from `prefix` on are the allowances that will begin, if there are any.
    """

    __tablename__ = "outlooks"
    __table_args__ = (_STRICT,)
    account_id: int = _int(key=True, to="accounts.id")
    rules: int = _int()
    until: int = _int()
    product_id: str | None = _text()
    prefix: str | None = _text()
    first_index: int | None = _int()
    bounds: str | None = _text()
    expires_at: int | None = _int()
    plan: str | None = _text()
    credits: int | None = _int()
    clawback: str | None = _text()
    subscription_id: str | None = _text()


class GrantDraw(SQLModel, table=True):
    """What a grant paid: the deductions whose balances lie between `balance_to` and `balance_from`."""

    __tablename__ = "grant_draws"
    __table_args__ = (Index("ix_grant_draws_grant", "grant_id"), _STRICT)
    account_id: int = _int(key=True, to="accounts.id")
    first_sequence: int = _int(key=True)
    position: int = _int(key=True)
    last_sequence: int = _int()
    grant_id: int = _int(to="grants.id")
    credits: int = _int()
    balance_from: int = _int()
    balance_to: int = _int()


class GrantCarry(SQLModel, table=True):
    """Credits used on one grant beyond its worth that count as used on another."""

    __tablename__ = "grant_carries"
    __table_args__ = (_STRICT,)
    account_id: int = _int(key=True, to="accounts.id")
    source_id: int = _int(key=True, to="grants.id")
    target_id: int = _int(key=True, to="grants.id")
    debt: int = _int(key=True)
    amount: int = _int()


class Hold(SQLModel, table=True):
    """A reservation; `parts` says which grants it is on, in spending order."""

    __tablename__ = "holds"
    __table_args__ = (
        Unique("key_account", "idempotency_key"),
        CheckConstraint("status IN ('open','captured','released','lapsed')", name="status"),
        Index("ix_holds_open", "account_id", "status"),
        _STRICT,
    )
    id: str = _text(key=True)
    account_id: int = _int(to="accounts.id")
    key_account: int = _int()
    amount: int = _int()
    captured: int = _int(default=0)
    status: str = _text()
    operation: str | None = _text()
    meta: str | None = _text()
    parts: str = _text()
    actor: str = _text()
    idempotency_key: str | None = _text()
    request: str | None = _text()
    placed_at: int = _int()
    expires_at: int = _int()
    closed_at: int | None = _int()


class Observation(SQLModel, table=True):
    """A snapshot of one of Polar's objects: a fact with its as-of, never changed."""

    __tablename__ = "observations"
    __table_args__ = (_STRICT,)
    kind: str = _text(key=True)
    object_id: str = _text(key=True)
    as_of: int = _int(key=True)
    digest: str = _text(key=True)
    fields: str = _text()


class Customer(SQLModel, table=True):
    """A Polar customer, as all its snapshots add up."""

    __tablename__ = "customers"
    __table_args__ = (
        Index("ix_customers_external", "external_id"),
        Index("ix_customers_linked", "linked_user"),
        _STRICT,
    )
    id: str = _text(key=True)
    external_id: str | None = _text()
    linked_user: str | None = _text()
    deleted: int = _int(default=0)
    email: str | None = _text()
    name: str | None = _text()


class SubscriptionRow(SQLModel, table=True):
    """The newest fact about a subscription."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        Index("ix_subscriptions_owner", "owner"),
        Index("ix_subscriptions_customer", "customer_id"),
        Index("ix_subscriptions_created", "created_at", "id"),
        _STRICT,
    )
    id: str = _text(key=True)
    customer_id: str = _text()
    user_id: str | None = _text()
    owner: str | None = _text()
    product_id: str | None = _text()
    status: str = _text()
    created_at: int = _int()
    current_period_start: int | None = _int()
    current_period_end: int | None = _int()
    cancel_at_period_end: int = _int()
    ends_at: int | None = _int()
    ended_at: int | None = _int()


class Payment(SQLModel, table=True):
    """The newest fact about an order; cents before tax."""

    __tablename__ = "payments"
    __table_args__ = (
        Index("ix_payments_owner", "owner"),
        Index("ix_payments_customer", "customer_id"),
        Index("ix_payments_created", "created_at", "id"),
        _STRICT,
    )
    id: str = _text(key=True)
    customer_id: str = _text()
    user_id: str | None = _text()
    owner: str | None = _text()
    subscription_id: str | None = _text()
    product_id: str | None = _text()
    status: str = _text()
    billing_reason: str = _text()
    net_cents: int = _int()
    refunded_cents: int = _int()
    currency: str = _text()
    created_at: int = _int()


class RefundRow(SQLModel, table=True):
    """Which order a refund or dispute belongs to."""

    __tablename__ = "refunds"
    __table_args__ = (Index("ix_refunds_order", "order_id"), _STRICT)
    kind: str = _text(key=True)
    id: str = _text(key=True)
    order_id: str = _text()


class TermsRow(SQLModel, table=True):
    """What a plan or pack promised when a period or order was first confirmed; insert-only."""

    __tablename__ = "terms"
    __table_args__ = (_STRICT,)
    subject: str = _text(key=True)
    product_id: str = _text(key=True)
    terms: str = _text()


class UnknownProduct(SQLModel, table=True):
    """A product in no plan or pack that an account bought: once it is named, its grants are due."""

    __tablename__ = "unknown_products"
    __table_args__ = (_STRICT,)
    product_id: str = _text(key=True)
    account_id: int = _int(key=True, to="accounts.id")


class Event(SQLModel, table=True):
    """The inbox: every verified event, raw, once per webhook-id; failed ones with their next attempt."""

    __tablename__ = "webhook_events"
    __table_args__ = (
        CheckConstraint("status IN ('applied','ignored','failed')", name="status"),
        Index("ix_webhook_events_received", "received_at", "id"),
        Index("ix_webhook_events_failed", "next_attempt_at", **_where("status = 'failed'")),
        Index("ix_webhook_events_user", "user_id", "received_at", "id"),
        Index("ix_webhook_events_type", "type", "received_at", "id"),
        _STRICT,
    )
    id: str = _text(key=True)
    type: str | None = _text()
    status: str = _text()
    attempts: int = _int()
    error: str | None = _text()
    user_id: str | None = _text()
    occurred_at: int | None = _int()
    received_at: int = _int()
    raw: bytes = _field(Bytes(), key=False)
    next_attempt_at: int | None = _int()
    told: str | None = _text()


class Setting(SQLModel, table=True):
    """Facts about the database itself, such as the Polar environment that it serves."""

    __tablename__ = "settings"
    __table_args__ = (_STRICT,)
    name: str = _text(key=True)
    value: str = _text()


def _table(model: type[SQLModel]) -> Table:
    return SQLModel.metadata.tables[str(model.__tablename__)]


accounts = _table(Account)
balances = _table(CreditBalance)
transactions = _table(CreditTransaction)
grants = _table(Grant)
outlooks = _table(OutlookRow)
draws = _table(GrantDraw)
carries = _table(GrantCarry)
holds = _table(Hold)
observations = _table(Observation)
customers = _table(Customer)
subscriptions = _table(SubscriptionRow)
payments = _table(Payment)
refunds = _table(RefundRow)
terms = _table(TermsRow)
unknown_products = _table(UnknownProduct)
events = _table(Event)
settings = _table(Setting)
