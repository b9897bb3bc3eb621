"""The gateway to Polar: the calls that we make, our values in and out (Polar's API 2026-10).

Every method raises PolarUnavailable (try again later) and PolarRefused (it will not be done); what
is not there is None. Making something twice is avoided by looking for it before and after.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import uuid4

from polarcredits import polar_values as values
from polarcredits.billing import LIVE
from polarcredits.errors import ConfigError, InvalidInput, PolarRefused, PolarUnavailable
from polarcredits.periods import format_time
from polarcredits.polar_scopes import lacking_scopes
from polarcredits.polar_transport import PATIENT, UNNAMEABLE, Answer, OutcomeUnknown, Patience, Transport
from polarcredits.polar_values import Page
from polarcredits.settings import Settings
from polarcredits.webhooks.values import as_count, as_object, usable_time

if TYPE_CHECKING:
    from polar.v2026_10.inputs import (
        CheckoutCreate,
        CustomerIndividualCreate,
        WebhookEndpointCreate,
        WebhookEndpointUpdate,
    )
    from polar.v2026_10.literals import WebhookEventType

API_VERSION: Literal["2026-10"] = "2026-10"
PAGE = 100
REQUEST_KEY = "polarcredits_request"
"""The metadata key by which a checkout that may or may not have been made is found again."""
_LOOK_BACK = 2
_PASSES = 3
Kind = Literal["customer", "subscription", "order", "refund", "dispute"]
_LISTS: Mapping[Kind, tuple[str, str]] = {
    "customer": ("/v1/customers/", "created_at"),
    "subscription": ("/v1/subscriptions/", "started_at"),
    "order": ("/v1/orders/", "created_at"),
    "refund": ("/v1/refunds/", "created_at"),
    "dispute": ("/v1/disputes/", "created_at"),
}


class PolarApi:
    """One organization at Polar; a context manager that closes its connections."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __enter__(self) -> PolarApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def rows(self, kind: Kind, **filters: Any) -> Iterator[Page]:
        """Yield all rows of a kind, oldest first.

        Pages are numbers on a list that moves while it is read: a row that comes twice is left
        out, and a list that changed its length, or of which too few rows came, is read again.
        """
        path, order = _LISTS[kind]
        for _ in range(_PASSES):
            came = 0
            totals: set[int] = set()
            before: set[Any] = set()
            for page in self._pages(path, {"sorting": [order], **filters}):
                fresh = tuple(row for row in page.rows if row.get("id") not in before)
                before = {row.get("id") for row in page.rows}
                came += len(fresh)
                totals.add(page.total)
                yield Page(rows=fresh, told_at=page.told_at, total=page.total)
            if len(totals) == 1 and came >= max(totals):
                return

    def newest(self, kind: Kind, since: datetime, **filters: Any) -> Iterator[Page]:
        """Yield the rows made at *since* or later, for the kinds that Polar cannot filter by date."""
        path, order = _LISTS[kind]
        for page in self._pages(path, {"sorting": [f"-{order}"], **filters}):
            made = [usable_time(row.get("created_at")) for row in page.rows]
            young = tuple(row for row, at in zip(page.rows, made, strict=True) if at is None or at >= since)
            yield Page(rows=young, told_at=page.told_at, total=page.total)
            if len(young) < len(page.rows):
                return

    def get(self, kind: Kind, id: str) -> Page | None:
        """Return one object as a page of one row."""
        answer = self._transport.send("GET", f"{_LISTS[kind][0]}{{id}}", ids={"id": id})
        if answer is None:
            return None
        return Page(rows=(_object(answer),), told_at=answer.told_at, total=1)

    def _pages(self, path: str, query: Mapping[str, Any]) -> Iterator[Page]:
        number = 1
        while True:
            answer = self._send("GET", path, query={**query, "page": number, "limit": PAGE})
            document = _object(answer)
            rows = document.get("items")
            if not isinstance(rows, list):
                raise PolarUnavailable(f"Polar's list {path} has no items. Try again later.")
            pagination = as_object(document.get("pagination"))
            total = as_count(pagination.get("total_count")) or 0
            kept = tuple(row for row in rows if isinstance(row, Mapping))
            yield Page(rows=kept, told_at=answer.told_at, total=total)
            if number >= (as_count(pagination.get("max_page")) or 0) or not rows:
                return
            number += 1

    def customer_of(self, user: str) -> values.CustomerRow | None:
        """Return the customer whose external id is *user*."""
        row = self._customer_of(user)
        return values.customer_row(row) if row else None

    def customer(self, id: str) -> values.CustomerRow | None:
        """Return a customer by Polar's own id."""
        page = self.get("customer", id)
        return values.customer_row(page.rows[0]) if page else None

    def create_customer(self, user: str, *, email: str, name: str | None) -> values.CustomerRow:
        """Make the customer of *user*, once; nobody is claimed by e-mail (§7.3).

        Raises InvalidInput where the address belongs to another customer.
        """
        body: CustomerIndividualCreate = {"email": email, "external_id": user, "name": name}
        try:
            made = self._make("/v1/customers/", body, lambda: self._customer_of(user))
        except PolarRefused:
            made = self._customer_of(user) or {}
            if not made:
                self._refuse_taken(email, user)
                raise
        return values.customer_row(made)

    def _customer_of(self, user: str) -> Mapping[str, Any] | None:
        if user in UNNAMEABLE:  # no address can name them, and the list cannot be asked for one
            rows = (row for page in self.rows("customer") for row in page.rows)
            return next((row for row in rows if row.get("external_id") == user), None)
        answer = self._transport.send(
            "GET", "/v1/customers/external/{external_id}", ids={"external_id": user}
        )
        return _object(answer) if answer else None

    def customer_by_email(self, email: str) -> values.CustomerRow | None:
        """Return the customer who has an e-mail address; it is nobody's proof of identity."""
        for page in self._pages(_LISTS["customer"][0], {"email": email}):
            for row in map(values.customer_row, page.rows):
                if (row.email or "").lower() == email.lower():
                    return row
        return None

    def _refuse_taken(self, email: str, user: str) -> None:
        row = self.customer_by_email(email)
        if row is None:
            return
        owner = f"user {row.external_id!r}" if row.external_id else f"customer {row.id}"
        advice = (
            "Use another address."
            if row.external_id
            else f"If they are one: polarcredits sync polar:{row.id}, "
            f"then: polarcredits users link polar:{row.id} {shlex.quote(user)}"
        )
        raise InvalidInput(
            f"The e-mail address {email} belongs to Polar's {owner}. {advice}", user=user, customer=row.id
        )

    def billable(self, customer: str) -> list[values.SubscriptionSummary]:
        """Return the subscriptions that keep a customer from buying another one."""
        pages = self.rows("subscription", customer_id=customer, status=sorted(LIVE))
        return [values.subscription_summary(row) for page in pages for row in page.rows]

    def allows_several_subscriptions(self) -> bool:
        """Say whether the organization lets a customer have several; False if the token may not ask."""
        try:
            pages = list(self._pages("/v1/organizations/", {}))
        except PolarRefused:
            return False
        settings = [as_object(row.get("subscription_settings")) for page in pages for row in page.rows]
        return any(each.get("allow_multiple_subscriptions") is True for each in settings)

    def open_checkout(self, body: CheckoutCreate) -> values.CheckoutRow:
        """Make a checkout session, once whatever happens to the answer."""
        request = str(uuid4())
        whole: CheckoutCreate = {**body, "metadata": {**body.get("metadata", {}), REQUEST_KEY: request}}

        def find() -> Mapping[str, Any] | None:
            newest = self._pages("/v1/checkouts/", {"sorting": ["-created_at"]})
            for page in islice(newest, _LOOK_BACK):
                for row in page.rows:
                    if as_object(row.get("metadata")).get(REQUEST_KEY) == request:
                        return row
            return None

        return values.checkout_row(self._make("/v1/checkouts/", whole, find))

    def checkout(self, id: str) -> values.CheckoutRow | None:
        """Return a checkout as it now stands."""
        answer = self._transport.send("GET", "/v1/checkouts/{id}", ids={"id": id})
        return values.checkout_row(_object(answer)) if answer else None

    def portal(
        self, *, user: str | None = None, customer: str | None = None, return_url: str | None = None
    ) -> values.PortalSession:
        """Return a link to the customer portal. Raises PolarRefused where there is no such customer."""
        whose = {"external_customer_id": user} if user is not None else {"customer_id": customer}
        body = whose if return_url is None else {**whose, "return_url": return_url}
        return values.portal_session(_object(self._send("POST", "/v1/customer-sessions/", body=body)))

    def products(self) -> list[values.Product]:
        """Return every product, archived ones too."""
        pages = self._pages("/v1/products/", {"sorting": ["created_at"]})
        found = {row.id: row for page in pages for row in map(values.product, page.rows)}
        return list(found.values())

    def product(self, id: str) -> values.Product | None:
        """Return a product."""
        try:
            answer = self._transport.send("GET", "/v1/products/{id}", ids={"id": id})
        except PolarRefused as refusal:
            if refusal.fields.get("status") == 422:  # no product's id looks like this
                return None
            raise
        return values.product(_object(answer)) if answer else None

    def endpoints(self) -> list[values.Endpoint]:
        """Return the webhook endpoints."""
        pages = self._pages("/v1/webhooks/endpoints", {})
        found = {row.id: row for page in pages for row in map(values.endpoint, page.rows)}
        return list(found.values())

    def create_endpoint(self, url: str, events: Sequence[str]) -> values.Endpoint:
        """Make a webhook endpoint, once whatever happens to the answer."""
        body: WebhookEndpointCreate = {
            "url": url,
            "format": "raw",
            "events": cast("list[WebhookEventType]", list(events)),
            "api_version": API_VERSION,
        }

        def find() -> Mapping[str, Any] | None:
            rows = (row for page in self._pages("/v1/webhooks/endpoints", {}) for row in page.rows)
            return next((row for row in rows if row.get("url") == url), None)

        return values.endpoint(self._make("/v1/webhooks/endpoints", body, find))

    def repair_endpoint(self, id: str, events: Sequence[str]) -> values.Endpoint:
        """Enable an endpoint, and give it the events and the version that we read."""
        body: WebhookEndpointUpdate = {
            "events": cast("list[WebhookEventType]", list(events)),
            "enabled": True,
            "format": "raw",
            "api_version": API_VERSION,
        }
        answer = self._send("PATCH", "/v1/webhooks/endpoints/{id}", ids={"id": id}, body=body)
        return values.endpoint(_object(answer))

    def deliveries(
        self, since: datetime, *, endpoint: str | None = None
    ) -> Iterator[tuple[values.LoggedDelivery, int]]:
        """Yield Polar's log of attempts since a time, newest first, each with the number of all."""
        query = {"start_timestamp": format_time(since), "endpoint_id": endpoint}
        for page in self._pages("/v1/webhooks/deliveries", query):
            for row in page.rows:
                yield values.logged_delivery(row), page.total

    def last_deliveries(self, since: datetime, *, endpoint: str) -> list[values.LoggedDelivery]:
        """Return the newest hundred attempts since a time."""
        query = {"start_timestamp": format_time(since), "endpoint_id": endpoint}
        page = next(self._pages("/v1/webhooks/deliveries", query))
        return [values.logged_delivery(row) for row in page.rows]

    def lacking_scopes(self) -> list[str]:
        """Return the scopes that the token lacks; nothing is made to find out."""
        return lacking_scopes(self._transport)

    def first_products(self) -> Page:
        """Return one page of products: whose the token is, and what time it is at Polar."""
        return next(self._pages("/v1/products/", {}))

    def _send(self, method: str, path: str, **request: Any) -> Answer:
        answer = self._transport.send(method, path, **request)
        if answer is None:
            raise PolarRefused(f"Polar knows no {method} {path} (404). Check POLAR_BASE_URL.", status=404)
        return answer

    def _make(
        self, path: str, body: Mapping[str, Any], find: Callable[[], Mapping[str, Any] | None]
    ) -> Mapping[str, Any]:
        """POST, once: where the outcome is unknown, look for what was made before trying again.

        A request that may yet take effect is never sent again: what it makes is looked for some
        seconds more, and then the outcome is unknown.
        """
        attempts = self._transport.patience.attempts
        for attempt in range(1, attempts + 1):
            try:
                return _object(self._send("POST", path, body=body, repeatable=False))
            except OutcomeUnknown as failure:
                looks = attempts if failure.pending else 1
                found = self._found(find, looks)
                if found is not None:
                    return found
                if failure.pending:
                    raise OutcomeUnknown(
                        f"{failure.message} It may have been done all the same: look again in some minutes.",
                        pending=True,
                    ) from failure
                if attempt == attempts:
                    raise
                self._transport.pause(attempt)
        raise AssertionError("unreachable")

    def _found(self, find: Callable[[], Mapping[str, Any] | None], looks: int) -> Mapping[str, Any] | None:
        """Look at once, and with *looks* above 1 some times more, with growing pauses."""
        for look in range(1, looks + 1):
            found = find()
            if found is not None or look == looks:
                break
            self._transport.pause(look + 1)
        return found


def open_polar(settings: Settings, *, patience: Patience = PATIENT) -> PolarApi:
    """Return the gateway that the settings name. Raises ConfigError without an access token."""
    if settings.access_token is None:
        raise ConfigError(
            "POLAR_ACCESS_TOKEN is not set: neither in the environment nor in a .env file. Make an "
            "organization access token in Polar's settings.",
            setting="POLAR_ACCESS_TOKEN",
        )
    return PolarApi(
        Transport(
            settings.access_token.reveal(),
            environment="production" if settings.environment == "production" else "sandbox",
            base_url=settings.base_url,
            patience=patience,
        )
    )


def _object(answer: Answer) -> Mapping[str, Any]:
    if isinstance(answer.document, Mapping):
        return answer.document
    raise OutcomeUnknown("Polar's answer is no object; it may be changing. Try again later.")
