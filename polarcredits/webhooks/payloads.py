"""Tolerant readers: a payload's fields that we need become facts; anything else is let be (§8.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from polarcredits.errors import InvalidInput
from polarcredits.facts import (
    CustomerFact,
    DisputeFact,
    Fact,
    OrderFact,
    OrderItem,
    RefundFact,
    Snapshot,
    SubscriptionFact,
)
from polarcredits.webhooks.signature import read_time

_MOST = 2**53
_CUSTOMER_TYPES = frozenset(
    {"customer.created", "customer.updated", "customer.deleted", "customer.state_changed"}
)


class PayloadError(InvalidInput):
    """A payload of a known type that names no object."""


def canonical_json(value: object) -> str:
    """Return *value* as JSON with sorted keys and no spaces, the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def read_facts(type: str, data: object, as_of: datetime) -> list[Fact]:
    """Return the facts in a payload, its own object's first; none for a type without effect.

    Raises PayloadError where a known type's data names no object.
    """
    noun = type.partition(".")[0]
    if noun not in ("subscription", "order", "refund") and type not in _CUSTOMER_TYPES:
        return []
    if not isinstance(data, dict):
        raise PayloadError(f"{type}: data is not an object")
    if noun == "subscription":
        return _with_customer(_subscription(data, as_of, type), data, as_of)
    if noun == "order":
        order = _order(data, as_of)
        facts = _with_customer(order, data, as_of)
        inner = data.get("subscription")
        if isinstance(inner, dict) and _id(inner.get("id")):
            whole = {"customer_id": order.customer_id, **inner}
            facts.append(replace(_subscription(whole, as_of, "order"), embedded=True))
        return facts
    if noun == "refund":
        return _refund(data, as_of)
    return [_customer(data, as_of, embedded=False, deleted=type == "customer.deleted")]


def _snapshot(data: Mapping[str, Any], as_of: datetime) -> Snapshot:
    return Snapshot(
        as_of=as_of, modified_at=read_time(data.get("modified_at")), body=canonical_json(data)
    )


def _with_customer(
    fact: SubscriptionFact | OrderFact, data: Mapping[str, Any], as_of: datetime
) -> list[Fact]:
    customer = data.get("customer")
    if isinstance(customer, dict) and _id(customer.get("id")) == fact.customer_id:
        return [fact, _customer(customer, as_of, embedded=True)]
    body = {"id": fact.customer_id}
    return [fact, _customer(body, as_of, embedded=True)]


def _customer(
    data: Mapping[str, Any], as_of: datetime, *, embedded: bool, deleted: bool = False
) -> CustomerFact:
    return CustomerFact(
        id=_required(data, "id", "customer"),
        snapshot=_snapshot(data, as_of),
        external_id=_user(data.get("external_id")),
        email=_text(data.get("email")),
        name=_text(data.get("name")),
        created_at=read_time(data.get("created_at")),
        deleted_at=read_time(data.get("deleted_at")) or (as_of if deleted else None),
        embedded=embedded,
    )


def _subscription(data: Mapping[str, Any], as_of: datetime, type: str) -> SubscriptionFact:
    ends_at, ended_at = read_time(data.get("ends_at")), read_time(data.get("ended_at"))
    if type == "subscription.revoked" and ended_at is None:
        ended_at = ends_at if ends_at and ends_at <= as_of else as_of
    customer = data.get("customer")
    nested = customer.get("id") if isinstance(customer, dict) else None
    return SubscriptionFact(
        id=_required(data, "id", "subscription"),
        snapshot=_snapshot(data, as_of),
        customer_id=_id(data.get("customer_id")) or _required({"id": nested}, "id", "customer"),
        status=_text(data.get("status")) or "unknown",
        product_id=_id(data.get("product_id")),
        seats=_count(data.get("units")) or _count(data.get("seats")),
        user_id=_metadata_user(data),
        created_at=read_time(data.get("created_at")),
        started_at=read_time(data.get("started_at")),
        current_period_start=read_time(data.get("current_period_start")),
        current_period_end=read_time(data.get("current_period_end")),
        trial_start=read_time(data.get("trial_start")),
        trial_end=read_time(data.get("trial_end")),
        cancel_at_period_end=data.get("cancel_at_period_end") is True,
        ends_at=ends_at,
        ended_at=ended_at,
        pause_at_period_end=data.get("pause_at_period_end") is True,
    )


def _order(data: Mapping[str, Any], as_of: datetime) -> OrderFact:
    customer, subscription = data.get("customer"), data.get("subscription")
    nested = customer.get("id") if isinstance(customer, dict) else None
    inner = subscription if isinstance(subscription, dict) else {}
    items = data.get("items")
    discount = _int(data.get("discount_amount"))
    net = data.get("net_amount")
    return OrderFact(
        id=_required(data, "id", "order"),
        snapshot=_snapshot(data, as_of),
        customer_id=_id(data.get("customer_id")) or _required({"id": nested}, "id", "customer"),
        status=_text(data.get("status")) or "unknown",
        billing_reason=_text(data.get("billing_reason")) or "unknown",
        subscription_id=_id(data.get("subscription_id")) or _id(inner.get("id")),
        product_id=_id(data.get("product_id")),
        user_id=_metadata_user(data),
        created_at=read_time(data.get("created_at")),
        net_cents=_int(data.get("subtotal_amount")) - discount if net is None else _int(net),
        total_cents=_int(data.get("total_amount")),
        discounted=discount > 0 or bool(data.get("discount_id")) or bool(data.get("discount")),
        refunded_cents=max(0, _int(data.get("refunded_amount"))),
        currency=_text(data.get("currency")) or "",
        quantity=_count(data.get("units")) or _count(data.get("seats")) or 1,
        items=tuple(
            _item(item) for item in items if isinstance(item, dict)
        ) if isinstance(items, list) else (),
        embedded_period_start=read_time(inner.get("current_period_start")),
    )


def _item(item: Mapping[str, Any]) -> OrderItem:
    price = item.get("product_price") or item.get("price")
    kind = price.get("amount_type") if isinstance(price, dict) else item.get("amount_type")
    return OrderItem(
        amount_cents=_int(item.get("amount")),
        proration=item.get("proration") is True,
        metered=kind == "metered_unit",
        starts_at=read_time(item.get("start_timestamp")),
        ends_at=read_time(item.get("end_timestamp")),
    )


def _refund(data: Mapping[str, Any], as_of: datetime) -> list[Fact]:
    refund = RefundFact(
        id=_required(data, "id", "refund"),
        snapshot=_snapshot(data, as_of),
        order_id=_required({"id": data.get("order_id")}, "id", "order"),
        customer_id=_id(data.get("customer_id")),
        status=_text(data.get("status")) or "unknown",
        amount_cents=max(0, _int(data.get("amount"))),
        created_at=read_time(data.get("created_at")),
    )
    facts: list[Fact] = [refund]
    dispute = data.get("dispute")
    if isinstance(dispute, dict) and _id(dispute.get("id")):
        facts.append(
            DisputeFact(
                id=_required(dispute, "id", "dispute"),
                snapshot=_snapshot(dispute, as_of),
                order_id=_id(dispute.get("order_id")) or refund.order_id,
                status=_text(dispute.get("status")) or "unknown",
            )
        )
    return facts


def _required(data: Mapping[str, Any], key: str, noun: str) -> str:
    id = _id(data.get(key))
    if id is None:
        raise PayloadError(f"the payload names no {noun} id")
    return id


def _id(value: object) -> str | None:
    """Return *value* if it can be an id: printable, not blank at the ends, at most 255 long."""
    if not isinstance(value, str) or not value or len(value) > 255:
        return None
    return value if value.isprintable() and value == value.strip() else None


def _user(value: object) -> str | None:
    id = _id(value)
    return None if id is None or id.startswith("polar:") else id


def _metadata_user(data: Mapping[str, Any]) -> str | None:
    metadata = data.get("metadata")
    return _user(metadata.get("user_id")) if isinstance(metadata, dict) else None


def _text(value: object) -> str | None:
    if not isinstance(value, str) or "\x00" in value:
        return None
    return value.encode("utf-8", "replace").decode() or None


def _int(value: object) -> int:
    return value if type(value) is int and abs(value) <= _MOST else 0


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= 1_000_000 else None
