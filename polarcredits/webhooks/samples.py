"""Polar's objects and events as it sends them, every field of them: no I/O, no chance."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from polarcredits.periods import format_time
from polarcredits.webhooks.signature import sign

Payload = dict[str, Any]

API_VERSION = "2026-10"


def make_id(*parts: object) -> str:
    """Return the UUID that stands for *parts*, always the same."""
    return str(uuid5(NAMESPACE_URL, "polarcredits/" + "/".join(map(str, parts))))


def event(type: str, at: datetime, data: Payload) -> Payload:
    """Return the body of one event; *data* is copied, so that later changes do not reach it."""
    return {
        "type": type,
        "timestamp": format_time(at),
        "api_version": API_VERSION,
        "data": json.loads(json.dumps(data)),
    }


def deliver(payload: Payload, *, id: str, secret: str, at: datetime) -> Payload:
    """Return *payload* as a stored delivery, signed at *at*."""
    body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    headers = {"user-agent": "polar.sh webhooks", "content-type": "application/json"}
    return {"headers": headers | sign(body.encode(), id=id, secret=secret, at=at), "body": body}


def customer(id: str, *, external_id: str | None, email: str, name: str | None, at: datetime) -> Payload:
    """Return a customer as it was made."""
    return {
        "id": id,
        "created_at": format_time(at),
        "modified_at": None,
        "metadata": {},
        "external_id": external_id,
        "email": email,
        "email_verified": False,
        "type": "individual",
        "name": name,
        "billing_name": name,
        "billing_address": None,
        "tax_id": None,
        "locale": "en",
        "organization_id": make_id("organization"),
        "default_payment_method_id": None,
        "deleted_at": None,
        "first_user_event_at": None,
        "avatar_url": None,
    }


def subscription(
    id: str, *, customer_id: str, product_id: str, start: datetime, end: datetime, **fields: Any
) -> Payload:
    """Return an active subscription in its first period, without what is embedded in it."""
    base: Payload = {
        "created_at": format_time(start),
        "modified_at": None,
        "id": id,
        "amount": 2000,
        "currency": "usd",
        "recurring_interval": "month",
        "recurring_interval_count": 1,
        "status": "active",
        "current_period_start": format_time(start),
        "current_period_end": format_time(end),
        "current_meter_period_start": None,
        "current_meter_period_end": None,
        "trial_start": None,
        "trial_end": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "started_at": format_time(start),
        "ends_at": None,
        "ended_at": None,
        "past_due_at": None,
        "pause_at_period_end": False,
        "paused_at": None,
        "resumes_at": None,
        "customer_id": customer_id,
        "product_id": product_id,
        "discount_id": None,
        "checkout_id": None,
        "seats": None,
        "units": None,
        "customer_cancellation_reason": None,
        "customer_cancellation_comment": None,
        "metadata": {},
    }
    return base | fields


def order(
    id: str, *, customer_id: str, product_id: str, reason: str, at: datetime, amount: int,
    **fields: Any,
) -> Payload:  # fmt: skip
    """Return a paid order without its customer, subscription and items; no tax, no discount."""
    base: Payload = {
        "id": id,
        "created_at": format_time(at),
        "modified_at": None,
        "status": "paid",
        "paid": True,
        "subtotal_amount": amount,
        "discount_amount": 0,
        "net_amount": amount,
        "tax_amount": 0,
        "total_amount": amount,
        "applied_balance_amount": 0,
        "due_amount": max(0, amount),
        "refunded_amount": 0,
        "refunded_tax_amount": 0,
        "currency": "usd",
        "billing_reason": reason,
        "billing_name": None,
        "billing_address": None,
        "invoice_number": f"DEMO-{id[:8].upper()}",
        "is_invoice_generated": False,
        "receipt_number": None,
        "seats": None,
        "units": None,
        "customer_id": customer_id,
        "product_id": product_id,
        "discount_id": None,
        "subscription_id": None,
        "checkout_id": None,
        "next_payment_attempt_at": None,
        "metadata": {},
        "platform_fee_amount": 0,
        "platform_fee_currency": None,
        "discount": None,
        "subscription": None,
        "items": [],
        "description": "Demo",
        "refundable_amount": max(0, amount),
        "refundable_tax_amount": 0,
    }
    return base | fields


def order_item(
    id: str, *, product_id: str, at: datetime, amount: int, proration: bool, held: Payload | None
) -> Payload:
    """Return an order's only item; *held* is the subscription of whose period it is, if any."""
    return {
        "created_at": format_time(at),
        "modified_at": None,
        "id": id,
        "label": "Demo",
        "amount": amount,
        "tax_amount": 0,
        "proration": proration,
        "product_price_id": make_id("price", product_id),
        "start_timestamp": held and held["current_period_start"],
        "end_timestamp": held and held["current_period_end"],
    }


def refunded(order: Payload, amount: int, at: datetime) -> Payload:
    """Return what of *order* is new once *amount* more of it is refunded; a negative one gives back."""
    total = order["refunded_amount"] + amount
    status = "refunded" if total >= order["net_amount"] else "partially_refunded"
    return {
        "refunded_amount": total,
        "refundable_amount": order["net_amount"] - total,
        "status": status if total > 0 else "paid",
        "modified_at": format_time(at),
    }


def refund(id: str, *, order: Payload, amount: int, status: str, at: datetime) -> Payload:
    """Return a refund of *order*; as Polar's, it says nothing about the customer but the id."""
    return {
        "created_at": format_time(at),
        "modified_at": None,
        "id": id,
        "metadata": {},
        "status": status,
        "reason": "customer_request",
        "amount": amount,
        "tax_amount": 0,
        "currency": order["currency"],
        "organization_id": make_id("organization"),
        "order_id": order["id"],
        "subscription_id": order["subscription_id"],
        "customer_id": order["customer_id"],
        "revoke_benefits": False,
        "dispute": None,
    }
