"""The tables, with named constraints that repeat the rules (docs/rules.md §6).

Times are microseconds since 1970, JSON is text, truth is 0 or 1: the same on SQLite and PostgreSQL.
Annotations are not postponed: to compile each again costs every command a hundredth of a second.
"""

from sqlalchemy import CheckConstraint, Index, Table
from sqlalchemy import LargeBinary as Bytes
from sqlalchemy import UniqueConstraint as Unique
from sqlmodel import SQLModel

from polarcredits.ledger.columns import STRICT, column, integer, text, where, where_set
from polarcredits.ledger.naming import NAMING

SQLModel.metadata.naming_convention = NAMING


class Account(SQLModel, table=True):
    """A user; an account merged into another stays as its alias."""

    __tablename__ = "accounts"
    __table_args__ = (Unique("user_id"), where_set("ix_accounts_alias", "alias_of"), STRICT)
    id: int | None = integer(key=True)
    user_id: str = text()
    email: str | None = text()
    name: str | None = text()
    plan: str = text()
    alias_of: int | None = integer(to="accounts.id")
    created_at: int = integer()


class CreditBalance(SQLModel, table=True):
    """The fast look-up: one row an account, all that the hot path reads and writes; checked as the ledger."""

    __tablename__ = "credit_balances"
    __table_args__ = (
        CheckConstraint("held >= 0", name="held"),
        CheckConstraint("closed IN (0, 1)", name="closed"),
        Index("ix_credit_balances_due", "next_due_at"),
        STRICT,
    )
    account_id: int = integer(key=True, to="accounts.id")
    balance: int = integer(default=0)
    held: int = integer(default=0)
    sequence: int = integer(default=0)
    unsettled: int = integer(default=0)
    settled_sequence: int = integer(default=0)
    next_due_at: int = integer(default=0)
    closed: int = integer(default=0)
    last_occurred_at: int = integer(default=0)


class CreditTransaction(SQLModel, table=True):
    """The ledger: append-only, guarded by triggers; its CHECKs are domains on PostgreSQL (migration 0008)."""

    __tablename__ = "credit_transactions"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount"),
        CheckConstraint(
            "type = 'deduct' OR type = 'grant' OR type = 'reversal' OR type = 'expire'"
            " OR type = 'clawback' OR type = 'adjust' OR type = 'transfer'",
            name="type",
        ),
        where_set("uq_credit_transactions_key", "account_id", "idempotency_key", unique=True),
        where_set("uq_credit_transactions_reverses", "reverses_account", "reverses_sequence", unique=True),
        where_set("ix_credit_transactions_grant", "grant_id"),
        STRICT,
    )
    account_id: int = integer(key=True, to="accounts.id")
    sequence: int = integer(key=True)
    type: str = text()
    amount: int = integer()
    balance_after: int = integer()
    grant_id: int | None = integer()
    operation: str | None = text()
    reason: str | None = text()
    meta: str | None = text()
    actor: str = text()
    idempotency_key: str | None = text()
    request: str | None = text()
    reverses_account: int | None = integer()
    reverses_sequence: int | None = integer()
    occurred_at: int = integer()
    recorded_at: int = integer()


class Grant(SQLModel, table=True):
    """A lot of credits under its natural key."""

    __tablename__ = "grants"
    __table_args__ = (
        Unique("account_id", "key"),
        CheckConstraint("gross >= 0 AND clawed >= 0 AND used >= 0 AND held >= 0", name="amounts"),
        Index("ix_grants_live", "account_id", **where("expired = 0")),
        STRICT,
    )
    id: int | None = integer(key=True)
    account_id: int = integer(to="accounts.id")
    key: str = text()
    source: str = text()
    plan: str | None = text()
    gross: int = integer()
    clawed: int = integer()
    used: int = integer()
    carried_in: int = integer()
    remaining: int = integer()
    held: int = integer()
    effective_at: int = integer()
    expires_at: int | None = integer()
    expired: int = integer()
    withdrawn: int = integer()
    clawback: str = text()
    cause_kind: str = text()
    cause_id: str | None = text()
    cause_event: str | None = text()
    period_start: int | None = integer()
    period_end: int | None = integer()


class OutlookRow(SQLModel, table=True):
    """What will befall an account if nothing new is heard; only what never falls due may lack its row.

    The columns from `prefix` on are the allowances that will begin, if there are any.
    """

    __tablename__ = "outlooks"
    __table_args__ = (STRICT,)
    account_id: int = integer(key=True, to="accounts.id")
    rules: int = integer()
    until: int = integer()
    product_id: str | None = text()
    prefix: str | None = text()
    first_index: int | None = integer()
    bounds: str | None = text()
    expires_at: int | None = integer()
    plan: str | None = text()
    credits: int | None = integer()
    clawback: str | None = text()
    subscription_id: str | None = text()


class GrantDraw(SQLModel, table=True):
    """What a grant paid: the deductions whose balances lie between `balance_to` and `balance_from`."""

    __tablename__ = "grant_draws"
    __table_args__ = (Index("ix_grant_draws_grant", "grant_id"), STRICT)
    account_id: int = integer(key=True, to="accounts.id")
    first_sequence: int = integer(key=True)
    position: int = integer(key=True)
    last_sequence: int = integer()
    grant_id: int = integer(to="grants.id")
    credits: int = integer()
    balance_from: int = integer()
    balance_to: int = integer()


class GrantCarry(SQLModel, table=True):
    """Credits used on one grant beyond its worth that count as used on another."""

    __tablename__ = "grant_carries"
    __table_args__ = (STRICT,)
    account_id: int = integer(key=True, to="accounts.id")
    source_id: int = integer(key=True, to="grants.id")
    target_id: int = integer(key=True, to="grants.id")
    debt: int = integer(key=True)
    amount: int = integer()


class Hold(SQLModel, table=True):
    """A reservation; `parts` says which grants it is on, in spending order."""

    __tablename__ = "holds"
    __table_args__ = (
        Unique("key_account", "idempotency_key"),
        CheckConstraint("status IN ('open','captured','released','lapsed')", name="status"),
        Index("ix_holds_open", "account_id", "status"),
        STRICT,
    )
    id: str = text(key=True)
    account_id: int = integer(to="accounts.id")
    key_account: int = integer()
    amount: int = integer()
    captured: int = integer(default=0)
    status: str = text()
    operation: str | None = text()
    meta: str | None = text()
    parts: str = text()
    actor: str = text()
    idempotency_key: str | None = text()
    request: str | None = text()
    placed_at: int = integer()
    expires_at: int = integer()
    closed_at: int | None = integer()


class Observation(SQLModel, table=True):
    """A snapshot of one of Polar's objects: a fact with its as-of, never changed."""

    __tablename__ = "observations"
    __table_args__ = (STRICT,)
    kind: str = text(key=True)
    object_id: str = text(key=True)
    as_of: int = integer(key=True)
    digest: str = text(key=True)
    fields: str = text()


class Customer(SQLModel, table=True):
    """A Polar customer, as all its snapshots add up."""

    __tablename__ = "customers"
    __table_args__ = (
        Index("ix_customers_external", "external_id"),
        where_set("ix_customers_linked", "linked_user"),
        STRICT,
    )
    id: str = text(key=True)
    external_id: str | None = text()
    linked_user: str | None = text()
    deleted: int = integer(default=0)
    email: str | None = text()
    name: str | None = text()


class SubscriptionRow(SQLModel, table=True):
    """The newest fact about a subscription."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        Index("ix_subscriptions_owner", "owner"),
        Index("ix_subscriptions_customer", "customer_id"),
        Index("ix_subscriptions_created", "created_at", "id"),
        STRICT,
    )
    id: str = text(key=True)
    customer_id: str = text()
    user_id: str | None = text()
    owner: str | None = text()
    product_id: str | None = text()
    status: str = text()
    created_at: int = integer()
    current_period_start: int | None = integer()
    current_period_end: int | None = integer()
    cancel_at_period_end: int = integer()
    ends_at: int | None = integer()
    ended_at: int | None = integer()


class Payment(SQLModel, table=True):
    """The newest fact about an order; cents before tax."""

    __tablename__ = "payments"
    __table_args__ = (
        Index("ix_payments_owner", "owner"),
        Index("ix_payments_customer", "customer_id"),
        Index("ix_payments_created", "created_at", "id"),
        STRICT,
    )
    id: str = text(key=True)
    customer_id: str = text()
    user_id: str | None = text()
    owner: str | None = text()
    subscription_id: str | None = text()
    product_id: str | None = text()
    status: str = text()
    billing_reason: str = text()
    net_cents: int = integer()
    refunded_cents: int = integer()
    currency: str = text()
    created_at: int = integer()


class RefundRow(SQLModel, table=True):
    """Which order a refund or dispute belongs to."""

    __tablename__ = "refunds"
    __table_args__ = (Index("ix_refunds_order", "order_id"), STRICT)
    kind: str = text(key=True)
    id: str = text(key=True)
    order_id: str = text()


class TermsRow(SQLModel, table=True):
    """What a plan or pack promised when a period or order was first confirmed; insert-only."""

    __tablename__ = "terms"
    __table_args__ = (STRICT,)
    subject: str = text(key=True)
    product_id: str = text(key=True)
    terms: str = text()


class UnknownProduct(SQLModel, table=True):
    """A product in no plan or pack that an account bought: once it is named, its grants are due."""

    __tablename__ = "unknown_products"
    __table_args__ = (STRICT,)
    product_id: str = text(key=True)
    account_id: int = integer(key=True, to="accounts.id")


class Event(SQLModel, table=True):
    """The inbox: every verified event, raw, once per webhook-id; failed ones with their next attempt."""

    __tablename__ = "webhook_events"
    __table_args__ = (
        CheckConstraint("status IN ('applied','ignored','failed')", name="status"),
        Index("ix_webhook_events_received", "received_at", "id"),
        Index("ix_webhook_events_failed", "next_attempt_at", **where("status = 'failed'")),
        Index("ix_webhook_events_user", "user_id", "received_at", "id"),
        Index("ix_webhook_events_type", "type", "received_at", "id"),
        STRICT,
    )
    id: str = text(key=True)
    type: str | None = text()
    status: str = text()
    attempts: int = integer()
    error: str | None = text()
    user_id: str | None = text()
    occurred_at: int | None = integer()
    received_at: int = integer()
    raw: bytes = column(Bytes(), key=False)
    next_attempt_at: int | None = integer()
    told: str | None = text()


class Setting(SQLModel, table=True):
    """Facts about the database itself, such as the Polar environment that it serves."""

    __tablename__ = "settings"
    __table_args__ = (STRICT,)
    name: str = text(key=True)
    value: str = text()


def _table(model: type[SQLModel]) -> Table:
    return SQLModel.metadata.tables[str(model.__tablename__)]


accounts, balances = _table(Account), _table(CreditBalance)
transactions = _table(CreditTransaction)
grants, draws, carries = _table(Grant), _table(GrantDraw), _table(GrantCarry)
outlooks = _table(OutlookRow)
holds = _table(Hold)
observations, customers = _table(Observation), _table(Customer)
subscriptions = _table(SubscriptionRow)
payments = _table(Payment)
refunds, terms = _table(RefundRow), _table(TermsRow)
unknown_products = _table(UnknownProduct)
events, settings = _table(Event), _table(Setting)
