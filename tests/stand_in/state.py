"""What the stand-in knows: an organization with customers, products, subscriptions and orders."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from polarcredits.periods import boundary, format_time, parse_time
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.samples import customer, make_id, order, subscription
from tests.stand_in.documents import complete, outputs

Document = dict[str, Any]
MODELS: Mapping[str, Any] = {
    "customer": outputs.CustomerIndividual,
    "product": outputs.Product,
    "subscription": outputs.Subscription,
    "order": outputs.Order,
    "refund": outputs.Refund,
    "dispute": outputs.Dispute,
    "checkout": outputs.Checkout,
    "endpoint": outputs.WebhookEndpoint,
    "delivery": outputs.WebhookDelivery,
    "organization": outputs.Organization,
}


class State:
    """Objects by kind and id, kept without what is embedded in them: that is added when they are read."""

    def __init__(self, now: datetime | None) -> None:
        self.clock = now
        self.organization_id = make_id("organization")
        self.objects: dict[str, dict[str, Document]] = {kind: {} for kind in MODELS}
        self.several_subscriptions = False
        self.site = "https://polar.example"
        """Where buyers see Polar's pages."""

    def now(self) -> datetime:
        """Return Polar's time."""
        return self.clock or datetime.now(UTC)

    def stamp(self) -> str:
        """Return Polar's time as its API writes it."""
        return format_time(self.now())

    def put(self, kind: str, partial: Mapping[str, Any]) -> Document:
        """Keep an object, completed."""
        base = {"id": str(uuid.uuid4()), "created_at": self.stamp(), "modified_at": None}
        made = complete({**base, **partial}, MODELS[kind])
        self.objects[kind][made["id"]] = made
        return made

    def all(self, kind: str) -> list[Document]:
        """Return all objects of a kind that the API shows."""
        return [each for each in self.objects[kind].values() if not self._is_gone(kind, each)]

    def find(self, kind: str, id: str) -> Document | None:
        """Return an object that the API shows."""
        found = self.objects[kind].get(id)
        return None if found is None or self._is_gone(kind, found) else found

    def _is_gone(self, kind: str, document: Document) -> bool:
        return kind == "customer" and document.get("deleted_at") is not None

    def shown(self, kind: str, document: Document) -> Document:
        """Return an object as the API shows it: what is embedded is that of today."""
        whole = dict(document)
        if kind in ("subscription", "order"):
            whole["customer"] = self.objects["customer"].get(document["customer_id"])
            whole["product"] = self.objects["product"].get(document["product_id"] or "")
        if kind == "order":
            whole["subscription"] = self.objects["subscription"].get(document["subscription_id"] or "")
        if kind == "organization":
            whole["subscription_settings"]["allow_multiple_subscriptions"] = self.several_subscriptions
        return complete(whole, MODELS[kind])

    def add_product(
        self, name: str, *, interval: str | None = "month", price: int = 2000, archived: bool = False,
        id: str | None = None,
    ) -> str:  # fmt: skip
        """Sell something, once or by subscription; return its id."""
        price_document = complete(
            {"id": str(uuid.uuid4()), "price_amount": price, "price_currency": "usd", "amount_type": "fixed"},
            outputs.ProductPriceFixed,
        )
        made = {
            "name": name,
            "recurring_interval": interval,
            "recurring_interval_count": 1 if interval else None,
            "is_recurring": interval is not None,
            "is_archived": archived,
            "organization_id": self.organization_id,
            "prices": [price_document],
        }
        return str(self.put("product", made | ({"id": id} if id else {}))["id"])

    def add_customer(self, email: str, external_id: str | None = None, name: str | None = None) -> Document:
        """Make a customer."""
        made = customer(str(uuid.uuid4()), external_id=external_id, email=email, name=name, at=self.now())
        return self.put("customer", made | {"organization_id": self.organization_id})

    def add_endpoint(self, **fields: Any) -> Document:
        """Make a webhook endpoint with a secret of the standard form."""
        seed = hashlib.sha256(f"{len(self.objects['endpoint'])}".encode()).digest()
        made = {
            "url": "https://example.com/webhooks/polar",
            "format": "raw",
            "enabled": True,
            "events": [],
            "api_version": "2026-10",
            "organization_id": self.organization_id,
            "secret": f"whsec_{base64.b64encode(seed).decode()}",
            "uses_standard_webhook_signature": True,
        }
        return self.put("endpoint", made | fields)

    def add_delivery(
        self, endpoint: str, payload: Mapping[str, Any], *, succeeded: bool, event: str | None = None,
        http_code: int | None = None, erased: bool = False,
    ) -> str:  # fmt: skip
        """Log one attempt to deliver an event; return the event's id."""
        id = event or str(uuid.uuid4())
        told = {
            "id": id,
            "created_at": self.stamp(),
            "type": payload["type"],
            "payload": None if erased else json.dumps(payload),
            "api_version": "2026-10",
            "is_archived": erased,
        }
        made = self.put(
            "delivery",
            {
                "succeeded": succeeded,
                "http_code": http_code or (202 if succeeded else 500),
                "webhook_event": complete(told, outputs.WebhookEvent),
            },
        )
        made["endpoint"] = endpoint
        return id

    def pay(self, checkout: str, *, email: str | None = None) -> None:
        """Let the buyer finish a checkout: an e-mail that is known wins over an external id."""
        held = self.objects["checkout"][checkout]
        buyer = self._buyer(held, email)
        product = self.objects["product"][held["products"][0]["id"]]
        now, recurring = self.now(), bool(product["is_recurring"])
        sold = None
        if recurring:
            end = boundary(now, product["recurring_interval"], 1, anchor=now.day)
            sold = self.put(
                "subscription",
                subscription(
                    str(uuid.uuid4()), customer_id=buyer["id"], product_id=product["id"], start=now, end=end,
                    metadata=held["metadata"], checkout_id=checkout,
                ),
            )  # fmt: skip
        self.put(
            "order",
            order(
                str(uuid.uuid4()), customer_id=buyer["id"], product_id=product["id"], at=now, amount=2000,
                reason="subscription_create" if recurring else "purchase", metadata=held["metadata"],
                subscription_id=sold["id"] if sold else None, checkout_id=checkout,
            ),
        )  # fmt: skip
        held |= {
            "status": "succeeded",
            "customer_id": buyer["id"],
            "subscription_id": sold["id"] if sold else None,
        }

    def _buyer(self, held: Document, email: str | None) -> Document:
        if held["customer_id"]:
            return self.objects["customer"][held["customer_id"]]
        address = email or held["customer_email"] or "buyer@example.com"
        known = next((each for each in self.all("customer") if each["email"] == address), None)
        return known or self.add_customer(address, held["external_customer_id"])

    def load_payloads(self, payloads: Iterable[Mapping[str, Any]]) -> None:
        """Take the last word of events about every object in them."""
        for payload in sorted(payloads, key=lambda each: parse_time(each["timestamp"])):
            kind, data = payload["type"].partition(".")[0], payload["data"]
            if kind not in ("customer", "subscription", "order", "refund", "product"):
                continue
            if payload["type"] == "customer.state_changed":
                continue
            if payload["type"] == "customer.deleted":
                data = data | {"deleted_at": data.get("deleted_at") or payload["timestamp"]}
            self._take(kind, data)
            for inner in ("customer", "product"):
                if isinstance(data.get(inner), dict) and data[inner]["id"] not in self.objects[inner]:
                    self._take(inner, data[inner])
            embedded = data.get("subscription")
            if isinstance(embedded, dict) and embedded["id"] not in self.objects["subscription"]:
                self._take("subscription", embedded)

    def load_story(self, story: Story) -> None:
        """Take a told story as it now stands."""
        self._take("customer", story.customer)
        if story.subscription:
            self._take("subscription", story.subscription)
        for each in story.orders:
            self._take("order", each)
        for each in story.refunds:
            self._take("refund", each)

    def _take(self, kind: str, data: Mapping[str, Any]) -> None:
        kept = {
            key: value for key, value in data.items() if key not in ("customer", "product", "subscription")
        }
        product = data.get("product_id")
        if kind in ("subscription", "order") and product and product not in self.objects["product"]:
            self.add_product("Something", id=product)
        self.put(kind, kept)

    def end_of_checkout(self) -> str:
        """Return when a checkout that is opened now expires."""
        return format_time(self.now() + timedelta(hours=24))
