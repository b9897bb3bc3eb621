"""What Polar's API answers, as our values: only the fields that are needed, read tolerantly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polarcredits.errors import PolarUnavailable
from polarcredits.webhooks.values import (
    as_cents,
    as_count,
    as_object,
    as_objects,
    as_text,
    as_word,
    usable_id,
    usable_time,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some rows of a list as Polar sent them, all true at `as_of`."""

    rows: tuple[Mapping[str, Any], ...]
    told_at: datetime | None
    """When it was told, by Polar's clock; None where the answer did not say."""
    total: int

    @property
    def as_of(self) -> datetime:
        """Since when the rows are true. Raises PolarUnavailable where nobody can say."""
        if self.told_at is None:
            raise PolarUnavailable("Polar's answer has no Date header, so nobody can say how old it is.")
        return self.told_at


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerRow:
    """A customer of Polar's."""

    id: str
    external_id: str | None
    email: str | None
    organization_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutRow:
    """A checkout session; `status` is open, confirmed, succeeded, failed or expired."""

    id: str
    url: str
    status: str
    expires_at: datetime | None
    customer_id: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalSession:
    """A link to the customer portal, and when it dies."""

    url: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product: recurring (`interval` is day, week, month or year) or sold once (None)."""

    id: str
    name: str
    archived: bool
    interval: str | None
    interval_count: int
    price_cents: int | None
    """Of its first fixed price; None where it has none."""
    currency: str
    organization_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSummary:
    """What a checkout must know of a subscription that the buyer has."""

    id: str
    status: str
    product_id: str | None
    amount_cents: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A webhook endpoint."""

    id: str
    url: str
    events: tuple[str, ...]
    enabled: bool
    api_version: str
    format: str
    secret: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedDelivery:
    """One attempt to deliver an event, from Polar's log."""

    event_id: str
    type: str | None
    succeeded: bool
    at: datetime | None
    http_code: int | None
    payload: str | None
    """The event's body; None once Polar has erased it (90 days)."""


def customer_row(row: Mapping[str, Any]) -> CustomerRow:
    """Read a customer."""
    return CustomerRow(
        id=_needed(row, "id"),
        external_id=usable_id(row.get("external_id")),
        email=as_text(row.get("email")),
        organization_id=usable_id(row.get("organization_id")),
    )


def checkout_row(row: Mapping[str, Any]) -> CheckoutRow:
    """Read a checkout."""
    return CheckoutRow(
        id=_needed(row, "id"),
        url=_needed(row, "url"),
        status=as_word(row.get("status")),
        expires_at=usable_time(row.get("expires_at")),
        customer_id=usable_id(row.get("customer_id")),
        metadata=as_object(row.get("metadata")),
    )


def portal_session(row: Mapping[str, Any]) -> PortalSession:
    """Read a customer session; its token is not kept."""
    return PortalSession(
        url=_needed(row, "customer_portal_url"), expires_at=usable_time(row.get("expires_at"))
    )


def product(row: Mapping[str, Any]) -> Product:
    """Read a product."""
    prices = [each for each in as_objects(row.get("prices")) if each.get("amount_type") != "metered_unit"]
    first = prices[0] if prices else {}
    return Product(
        id=_needed(row, "id"),
        name=as_text(row.get("name")) or "",
        archived=row.get("is_archived") is True,
        interval=usable_id(row.get("recurring_interval")) or usable_id(first.get("recurring_interval")),
        interval_count=as_count(row.get("recurring_interval_count")) or 1,
        price_cents=0 if first.get("amount_type") == "free" else as_cents(first.get("price_amount")),
        currency=as_word(first.get("price_currency")),
        organization_id=usable_id(row.get("organization_id")),
    )


def subscription_summary(row: Mapping[str, Any]) -> SubscriptionSummary:
    """Read a subscription."""
    return SubscriptionSummary(
        id=_needed(row, "id"),
        status=as_word(row.get("status")),
        product_id=usable_id(row.get("product_id")) or usable_id(as_object(row.get("product")).get("id")),
        amount_cents=as_cents(row.get("amount")),
    )


def endpoint(row: Mapping[str, Any]) -> Endpoint:
    """Read a webhook endpoint."""
    events = row.get("events")
    secret = row.get("secret")
    return Endpoint(
        id=_needed(row, "id"),
        url=_needed(row, "url"),
        events=tuple(each for each in events if isinstance(each, str)) if isinstance(events, list) else (),
        enabled=row.get("enabled") is not False,
        api_version=as_word(row.get("api_version")),
        format=as_word(row.get("format")),
        secret=secret if isinstance(secret, str) and secret.strip() else None,
    )


def logged_delivery(row: Mapping[str, Any]) -> LoggedDelivery:
    """Read a row of the deliveries' log."""
    event = as_object(row.get("webhook_event"))
    payload = event.get("payload")
    return LoggedDelivery(
        event_id=_needed(event, "id"),
        type=usable_id(event.get("type")),
        succeeded=row.get("succeeded") is True,
        at=usable_time(row.get("created_at")),
        http_code=as_count(row.get("http_code")),
        payload=payload if isinstance(payload, str) and payload.strip() else None,
    )


def _needed(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    text = value if isinstance(value, str) and key.endswith("url") and value.strip() else usable_id(value)
    if text is None:
        raise PolarUnavailable(f"Polar's answer lacks {key!r}; it may be changing. Try again later.")
    return text
