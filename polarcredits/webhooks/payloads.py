"""What Polar's objects say, read tolerantly into facts (docs/rules.md §§1, 7.1, 8.3).

A value of the wrong type, an unusable id and a garbled time count as absent, so that Polar may add,
drop and rename what it likes; only an object that nothing could refer to is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from polarcredits.webhooks.canonical import canonical_json
from polarcredits.webhooks.values import (
    as_cents,
    as_count,
    as_object,
    as_objects,
    as_text,
    as_word,
    usable_id,
    usable_time,
    usable_user_id,
)

__all__ = [
    "KNOWN_TYPES",
    "PayloadError",
    "canonical_json",
    "read_facts",
    "read_row",
    "usable_id",
    "usable_time",
    "usable_user_id",
]

KNOWN_TYPES = frozenset(
    f"{noun}.{verb}"
    for noun, verbs in {
        "customer": "created updated deleted state_changed",
        "subscription": "created updated active cycled canceled uncanceled revoked past_due paused"
        " resumed migrated",
        "order": "created updated paid refunded",
        "refund": "created updated",
    }.items()
    for verb in verbs.split()
)
"""The types of event that say something about credits; every other one is ignored."""


class PayloadError(InvalidInput):
    """An object of a known type lacks the id without which it can be no fact."""


def read_facts(type: str, data: object, as_of: datetime) -> list[Fact]:
    """Return what an event's *data* says: its own object first, then those inside it.

    An ignored type says nothing.
    """
    if type not in KNOWN_TYPES:
        return []
    facts = _read(type.partition(".")[0], data, as_of, where=type)
    own = facts[0]
    if type == "subscription.revoked" and isinstance(own, SubscriptionFact) and not own.ended_at:
        past = own.ends_at is not None and own.ends_at <= as_of
        facts[0] = replace(own, ended_at=own.ends_at if past else as_of)
    if type == "customer.deleted" and isinstance(own, CustomerFact) and not own.deleted_at:
        facts[0] = replace(own, deleted_at=as_of)
    return facts


def read_row(kind: str, row: object, as_of: datetime) -> list[Fact]:
    """Return what a row of Polar's API says: its own object first, then those inside it.

    An order read today embeds today's subscription: its period tells nothing of an order that is
    older than it, and is left out.
    """
    facts = _read(kind, row, as_of, where=kind)
    order = facts[0]
    if isinstance(order, OrderFact) and order.embedded_period_start is not None:
        made = order.created_at
        if made is None or order.embedded_period_start > made:
            facts[0] = replace(order, embedded_period_start=None)
    return [replace(fact, snapshot=replace(fact.snapshot, delivered=False)) for fact in facts]


def _read(noun: str, data: object, as_of: datetime, *, where: str) -> list[Fact]:
    if not isinstance(data, Mapping):
        raise PayloadError(f"{where}: data is no object.", type=where)
    try:
        return list(_READERS[noun](data, as_of))
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"{where}: {error}.", type=where) from None


def _customer(data: Mapping[str, Any], as_of: datetime, embedded: bool = False) -> CustomerFact:
    return CustomerFact(
        id=_own_id(data),
        snapshot=_snapshot(data, as_of),
        external_id=usable_user_id(data.get("external_id")),
        email=as_text(data.get("email")),
        name=as_text(data.get("name")),
        created_at=usable_time(data.get("created_at")),
        deleted_at=usable_time(data.get("deleted_at")),
        embedded=embedded,
    )


def _subscription(
    data: Mapping[str, Any], as_of: datetime, customer_id: str | None = None, embedded: bool = False
) -> SubscriptionFact:
    subscription_id = _own_id(data)
    customer_id = _customer_id(data) or customer_id
    if customer_id is None:
        raise ValueError("the subscription names no customer")
    return SubscriptionFact(
        id=subscription_id,
        snapshot=_snapshot(data, as_of),
        customer_id=customer_id,
        status=as_word(data.get("status")),
        product_id=usable_id(data.get("product_id")) or _inner_id(data, "product"),
        seats=as_count(data.get("seats")),
        user_id=_metadata_user(data),
        created_at=usable_time(data.get("created_at")),
        started_at=usable_time(data.get("started_at")),
        current_period_start=usable_time(data.get("current_period_start")),
        current_period_end=usable_time(data.get("current_period_end")),
        trial_start=usable_time(data.get("trial_start")),
        trial_end=usable_time(data.get("trial_end")),
        cancel_at_period_end=data.get("cancel_at_period_end") is True,
        ends_at=usable_time(data.get("ends_at")),
        ended_at=usable_time(data.get("ended_at")),
        pause_at_period_end=data.get("pause_at_period_end") is True,
        embedded=embedded,
    )


def _order(data: Mapping[str, Any], as_of: datetime) -> OrderFact:
    order_id = _own_id(data)
    customer_id = _customer_id(data)
    if customer_id is None:
        raise ValueError("the order names no customer")
    subscription = as_object(data.get("subscription"))
    discount = as_cents(data.get("discount_amount")) or 0
    net = as_cents(data.get("net_amount"))
    if net is None:
        net = (as_cents(data.get("subtotal_amount")) or 0) - discount
    total = as_cents(data.get("total_amount"))
    if total is None:
        total = net + (as_cents(data.get("tax_amount")) or 0)
    return OrderFact(
        id=order_id,
        snapshot=_snapshot(data, as_of),
        customer_id=customer_id,
        status=as_word(data.get("status")),
        billing_reason=as_word(data.get("billing_reason")),
        subscription_id=usable_id(data.get("subscription_id")) or _inner_id(data, "subscription"),
        product_id=usable_id(data.get("product_id")) or _inner_id(data, "product"),
        user_id=_metadata_user(data),
        created_at=usable_time(data.get("created_at")),
        net_cents=net,
        total_cents=total,
        discounted=discount > 0
        or usable_id(data.get("discount_id")) is not None
        or bool(as_object(data.get("discount"))),
        refunded_cents=max(0, as_cents(data.get("refunded_amount")) or 0),
        currency=as_word(data.get("currency")),
        quantity=as_count(data.get("units")) or as_count(data.get("seats")) or 1,
        items=tuple(_items(data)),
        embedded_period_start=usable_time(subscription.get("current_period_start")),
    )


def _items(order: Mapping[str, Any]) -> Iterator[OrderItem]:
    metered = {
        price["id"]
        for holder in (order, as_object(order.get("product")), as_object(order.get("subscription")))
        for price in (*as_objects(holder.get("prices")), as_object(holder.get("product_price")))
        if _is_metered(price) and isinstance(price.get("id"), str)
    }
    for item in as_objects(order.get("items")):
        price_id = item.get("product_price_id")
        yield OrderItem(
            amount_cents=as_cents(item.get("amount")) or 0,
            proration=item.get("proration") is True,
            metered=_is_metered(as_object(item.get("product_price")))
            or _is_metered(as_object(item.get("price")))
            or (isinstance(price_id, str) and price_id in metered),
            starts_at=usable_time(item.get("start_timestamp")),
            ends_at=usable_time(item.get("end_timestamp")),
        )


def _read_customer(data: Mapping[str, Any], as_of: datetime) -> Iterator[Fact]:
    yield _customer(data, as_of)


def _read_subscription(data: Mapping[str, Any], as_of: datetime) -> Iterator[Fact]:
    yield _subscription(data, as_of)
    yield from _inner_customer(data, as_of)


def _read_order(data: Mapping[str, Any], as_of: datetime) -> Iterator[Fact]:
    order = _order(data, as_of)
    yield order
    if _inner_id(data, "subscription"):
        yield _subscription(data["subscription"], as_of, order.customer_id, embedded=True)
    yield from _inner_customer(data, as_of)


def _read_refund(data: Mapping[str, Any], as_of: datetime) -> Iterator[Fact]:
    refund_id = _own_id(data)
    order_id = usable_id(data.get("order_id")) or _inner_id(data, "order")
    if order_id is None:
        raise ValueError("the refund names no order")
    yield RefundFact(
        id=refund_id,
        snapshot=_snapshot(data, as_of),
        order_id=order_id,
        customer_id=_customer_id(data),
        status=as_word(data.get("status")),
        amount_cents=max(0, as_cents(data.get("amount")) or 0),
        created_at=usable_time(data.get("created_at")),
    )
    dispute = as_object(data.get("dispute"))
    if _inner_id(data, "dispute") and as_word(dispute.get("status")):
        yield _dispute(dispute, as_of, order_id)


def _read_dispute(data: Mapping[str, Any], as_of: datetime) -> Iterator[Fact]:
    yield _dispute(data, as_of)


def _dispute(data: Mapping[str, Any], as_of: datetime, order_id: str | None = None) -> DisputeFact:
    dispute_id = _own_id(data)
    disputed = usable_id(data.get("order_id")) or order_id
    if disputed is None:
        raise ValueError("the dispute names no order")
    return DisputeFact(
        id=dispute_id,
        snapshot=_snapshot(data, as_of),
        order_id=disputed,
        status=as_word(data.get("status")),
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any], datetime], Iterator[Fact]]] = {
    "customer": _read_customer,
    "subscription": _read_subscription,
    "order": _read_order,
    "refund": _read_refund,
    "dispute": _read_dispute,
}


def _inner_customer(data: Mapping[str, Any], as_of: datetime) -> Iterator[Fact]:
    if _inner_id(data, "customer"):
        yield _customer(data["customer"], as_of, embedded=True)


def _snapshot(data: Mapping[str, Any], as_of: datetime) -> Snapshot:
    return Snapshot(as_of=as_of, modified_at=usable_time(data.get("modified_at")), body=canonical_json(data))


def _own_id(data: Mapping[str, Any]) -> str:
    own = usable_id(data.get("id"))
    if own is None:
        raise ValueError("the object has no usable id")
    return own


def _inner_id(data: Mapping[str, Any], key: str) -> str | None:
    return usable_id(as_object(data.get(key)).get("id"))


def _customer_id(data: Mapping[str, Any]) -> str | None:
    return usable_id(data.get("customer_id")) or _inner_id(data, "customer")


def _metadata_user(data: Mapping[str, Any]) -> str | None:
    return usable_user_id(as_object(data.get("metadata")).get("user_id"))


def _is_metered(price: Mapping[str, Any]) -> bool:
    return price.get("amount_type") == "metered_unit"
