"""Facts: what Polar last said about each object, as plain values (docs/rules.md §1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a fact stands among others of the same object: the greater `rank` is the newer."""

    as_of: datetime
    modified_at: datetime | None
    body: str
    """Canonical JSON of the object (sorted keys, no spaces)."""
    delivered: bool = True
    """False for a row read from Polar's API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerFact:
    """A customer, whole or as far as another object names it."""

    id: str
    snapshot: Snapshot
    external_id: str | None = None
    email: str | None = None
    name: str | None = None
    created_at: datetime | None = None
    deleted_at: datetime | None = None
    embedded: bool = False
    """True when it came inside an order or a subscription."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionFact:
    """A subscription as one snapshot shows it."""

    id: str
    snapshot: Snapshot
    customer_id: str
    status: str
    product_id: str | None
    seats: int | None
    user_id: str | None
    """The application's user, from the metadata our checkout put there."""
    created_at: datetime | None
    started_at: datetime | None
    current_period_start: datetime | None
    current_period_end: datetime | None
    trial_start: datetime | None
    trial_end: datetime | None
    cancel_at_period_end: bool
    ends_at: datetime | None
    ended_at: datetime | None
    pause_at_period_end: bool
    embedded: bool = False
    """True when it came inside an order: it may be stale, so a snapshot of its own wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderItem:
    """A line of an order, in cents."""

    amount_cents: int
    proration: bool
    metered: bool
    starts_at: datetime | None
    ends_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderFact:
    """An order (payment) as one snapshot shows it; money in cents, before tax where it says net."""

    id: str
    snapshot: Snapshot
    customer_id: str
    status: str
    billing_reason: str
    subscription_id: str | None
    product_id: str | None
    user_id: str | None
    created_at: datetime | None
    net_cents: int
    total_cents: int
    discounted: bool
    refunded_cents: int
    currency: str
    quantity: int
    """`units`, else `seats`, else 1."""
    items: tuple[OrderItem, ...]
    embedded_period_start: datetime | None
    """The `current_period_start` of the subscription inside this snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundFact:
    """A refund; `amount_cents` is before tax."""

    id: str
    snapshot: Snapshot
    order_id: str
    customer_id: str | None
    status: str
    amount_cents: int
    created_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DisputeFact:
    """A dispute of an order's payment."""

    id: str
    snapshot: Snapshot
    order_id: str
    status: str


Fact = CustomerFact | SubscriptionFact | OrderFact | RefundFact | DisputeFact
