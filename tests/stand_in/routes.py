"""The routes of Polar's API that the stand-in answers, and what each accepts and returns."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from polar.v2026_10.services.checkouts import CheckoutsSync
from polar.v2026_10.services.customers import CustomersSync
from polar.v2026_10.services.disputes import DisputesSync
from polar.v2026_10.services.orders import OrdersSync
from polar.v2026_10.services.organizations import OrganizationsSync
from polar.v2026_10.services.products import ProductsSync
from polar.v2026_10.services.refunds import RefundsSync
from polar.v2026_10.services.subscriptions import SubscriptionsSync
from polar.v2026_10.services.webhooks import WebhooksSync

from polarcredits.periods import parse_time
from tests.stand_in.documents import inputs, outputs
from tests.stand_in.state import MODELS, Document, State

Query = Mapping[str, list[str]]


class Refused(Exception):
    """A request that Polar refuses with 422: where, and why."""

    def __init__(self, where: list[str], why: str) -> None:
        super().__init__(why)
        self.detail = [{"loc": where, "msg": why, "type": "value_error"}]


@dataclass(frozen=True, kw_only=True)
class Route:
    """A method and a path of segments, where `{}` stands for an id."""

    method: str
    path: tuple[str, ...]
    answers: Any
    work: Callable[[State, list[str], Query, Document], Any]
    lists: Any = None
    """The SDK's method whose parameters are the query's; None where there is no query."""
    takes: tuple[Any, ...] = ()
    """polar-sdk's types for the body; none where there is no body."""
    status: int = 200

    def parameters(self) -> set[str]:
        """Return the names that a query may have."""
        if self.lists is None:
            return set()
        return set(inspect.signature(self.lists).parameters) - {
            "self",
            "request_timeout",
            "request_access_token",
        }


def _list(kind: str, model: Any, method: Any, path: str) -> Route:
    def work(state: State, ids: list[str], query: Query, body: Document) -> Document:
        found = [state.shown(kind, each) for each in state.all(kind) if _fits(kind, each, query, state)]
        order = query.get("sorting", ["-started_at" if kind == "subscription" else "-created_at"])[0]
        found.sort(key=lambda each: str(each.get(order.lstrip("-"))), reverse=order.startswith("-"))
        return page_of(found, query)

    return Route(method="GET", path=tuple(path.split("/")), answers=model, work=work, lists=method)


def page_of(found: list[Document], query: Query) -> Document:
    """Return one page of a list."""
    limit, page = int(query.get("limit", ["10"])[0]), int(query.get("page", ["1"])[0])
    pages = -(-len(found) // limit)
    return {
        "items": found[(page - 1) * limit : page * limit],
        "pagination": {"total_count": len(found), "max_page": pages},
    }


def _fits(kind: str, document: Document, query: Query, state: State) -> bool:
    for name, values in query.items():
        key, _, inner = name.partition("[")
        if key in ("page", "limit", "sorting", "organization_id"):
            continue
        if key == "metadata":
            held = document["metadata"].get(inner.rstrip("]"))
        elif key == "external_customer_id":
            held = state.objects["customer"].get(document["customer_id"], {}).get("external_id")
        elif key == "endpoint_id":
            held = document["endpoint"]
        elif key == "email":
            held, values = document["email"].lower(), [value.lower() for value in values]
        elif key.endswith(("_after", "_before", "_timestamp")):
            if not _in_time(document, key, values[0]):
                return False
            continue
        elif key in ("is_archived", "is_recurring", "succeeded"):
            held = str(document[key]).lower()
        else:
            held = document.get(key)
        if held not in values:
            return False
    return True


def _in_time(document: Document, key: str, bound: str) -> bool:
    """Say whether a document lies on the right side of `created_after`, `end_timestamp` and the like."""
    first, _, last = key.rpartition("_")
    if last == "timestamp":
        column, after = "created_at", first == "start"
    else:
        column, after = f"{first.removesuffix('_at')}_at", last == "after"
    held = document.get(column)
    if held is None:
        return False
    return parse_time(held) > parse_time(bound) if after else parse_time(held) < parse_time(bound)


def _get(kind: str, model: Any, path: str) -> Route:
    def work(state: State, ids: list[str], query: Query, body: Document) -> Document | None:
        found = state.find(kind, ids[0])
        return None if found is None else state.shown(kind, found)

    return Route(method="GET", path=tuple(path.split("/")), answers=model, work=work)


def _by_external_id(state: State, ids: list[str], query: Query, body: Document) -> Document | None:
    return next((each for each in state.all("customer") if each["external_id"] == ids[0]), None)


def _create_customer(state: State, ids: list[str], query: Query, body: Document) -> Document:
    if "." not in body["email"].partition("@")[2]:
        raise Refused(["body", "email"], "The part after the @-sign is not valid.")
    for key in ("email", "external_id"):
        given = str(body.get(key) or "").lower() if key == "email" else body.get(key)
        taken = [(each[key] or "").lower() if key == "email" else each[key] for each in state.all("customer")]
        if given and given in taken:
            raise Refused(["body", key], f"A customer with this {key} already exists.")
    return state.add_customer(body["email"], body.get("external_id"), body.get("name"))


def _update_customer(state: State, ids: list[str], query: Query, body: Document) -> Document | None:
    held = state.find("customer", ids[0])
    if held is not None:
        held |= body
    return held


def _create_checkout(state: State, ids: list[str], query: Query, body: Document) -> Document:
    products = [state.find("product", id) for id in body["products"]]
    sold = [each for each in products if each is not None and not each["is_archived"]]
    if len(sold) < len(products):
        raise Refused(["body", "products"], "Product does not exist.")
    if body.get("discount_id"):
        raise Refused(["body", "discount_id"], "Discount does not exist.")
    external = body.get("external_customer_id")
    named = state.find("customer", body.get("customer_id") or "")
    known = _by_external_id(state, [external], {}, {}) if external else named
    id = str(uuid.uuid4())
    made = {
        "id": id,
        "url": f"{state.site}/checkout/{id}",
        "client_secret": f"polar_c_{id}",
        "expires_at": state.end_of_checkout(),
        "success_url": body.get("success_url") or f"{state.site}/done",
        "metadata": body.get("metadata", {}),
        "customer_id": known["id"] if known else None,
        "external_customer_id": external,
        "customer_email": body.get("customer_email"),
        "subscription_id": body.get("subscription_id"),
        "products": sold,
        "product_id": sold[0]["id"],
        "organization_id": state.organization_id,
    }
    return state.put("checkout", made)


def _create_session(state: State, ids: list[str], query: Query, body: Document) -> Document:
    external = body.get("external_customer_id")
    known = (
        _by_external_id(state, [external], {}, {})
        if external
        else state.find("customer", body["customer_id"])
    )
    if known is None:
        raise Refused(["body", "customer_id"], "Customer does not exist.")
    id = str(uuid.uuid4())
    return {
        "id": id,
        "created_at": state.stamp(),
        "modified_at": None,
        "token": f"polar_cst_{id}",
        "expires_at": state.end_of_checkout(),
        "return_url": body.get("return_url"),
        "customer_portal_url": f"{state.site}/portal?customer_session_token=polar_cst_{id}",
        "customer_id": known["id"],
        "customer": known,
    }


def _create_endpoint(state: State, ids: list[str], query: Query, body: Document) -> Document:
    return state.add_endpoint(**body)


def _update_endpoint(state: State, ids: list[str], query: Query, body: Document) -> Document | None:
    held = state.find("endpoint", ids[0])
    if held is not None:
        held |= {key: value for key, value in body.items() if value is not None}
    return held


ROUTES = (
    _list("organization", outputs.ListResourceOrganization, OrganizationsSync.list, "v1/organizations/"),
    _list("customer", outputs.ListResourceCustomer, CustomersSync.list, "v1/customers/"),
    Route(
        method="GET",
        path=("v1", "customers", "external", "{}"),
        answers=MODELS["customer"],
        work=_by_external_id,
    ),
    _get("customer", MODELS["customer"], "v1/customers/{}"),
    Route(
        method="POST",
        path=("v1", "customers", ""),
        answers=MODELS["customer"],
        work=_create_customer,
        takes=(inputs.CustomerIndividualCreate,),
        status=201,
    ),
    Route(
        method="PATCH",
        path=("v1", "customers", "{}"),
        answers=MODELS["customer"],
        work=_update_customer,
        takes=(inputs.CustomerUpdate,),
    ),
    _list("product", outputs.ListResourceProduct, ProductsSync.list, "v1/products/"),
    _get("product", MODELS["product"], "v1/products/{}"),
    _list("checkout", outputs.ListResourceCheckout, CheckoutsSync.list, "v1/checkouts/"),
    _get("checkout", MODELS["checkout"], "v1/checkouts/{}"),
    Route(
        method="POST",
        path=("v1", "checkouts", ""),
        answers=MODELS["checkout"],
        work=_create_checkout,
        takes=(inputs.CheckoutCreate,),
        status=201,
    ),
    Route(
        method="POST",
        path=("v1", "customer-sessions", ""),
        answers=outputs.CustomerSession,
        work=_create_session,
        takes=(inputs.CustomerSessionCustomerExternalIDCreate, inputs.CustomerSessionCustomerIDCreate),
        status=201,
    ),
    _list("subscription", outputs.ListResourceSubscription, SubscriptionsSync.list, "v1/subscriptions/"),
    _get("subscription", MODELS["subscription"], "v1/subscriptions/{}"),
    _list("order", outputs.ListResourceOrder, OrdersSync.list, "v1/orders/"),
    _get("order", MODELS["order"], "v1/orders/{}"),
    _list("refund", outputs.ListResourceRefund, RefundsSync.list, "v1/refunds/"),
    _list("dispute", outputs.ListResourceDispute, DisputesSync.list, "v1/disputes/"),
    _list(
        "endpoint",
        outputs.ListResourceWebhookEndpoint,
        WebhooksSync.list_webhook_endpoints,
        "v1/webhooks/endpoints",
    ),
    Route(
        method="POST",
        path=("v1", "webhooks", "endpoints"),
        answers=MODELS["endpoint"],
        work=_create_endpoint,
        takes=(inputs.WebhookEndpointCreate,),
        status=201,
    ),
    Route(
        method="PATCH",
        path=("v1", "webhooks", "endpoints", "{}"),
        answers=MODELS["endpoint"],
        work=_update_endpoint,
        takes=(inputs.WebhookEndpointUpdate,),
    ),
    _list(
        "delivery",
        outputs.ListResourceWebhookDelivery,
        WebhooksSync.list_webhook_deliveries,
        "v1/webhooks/deliveries",
    ),
)


def route_of(method: str, segments: list[str]) -> tuple[Route, list[str]] | None:
    """Return the route of a request, and the ids in its path."""
    for route in ROUTES:
        if route.method != method or len(route.path) != len(segments):
            continue
        pairs = list(zip(route.path, segments, strict=True))
        if all(part in ("{}", segment) for part, segment in pairs):
            return route, [segment for part, segment in pairs if part == "{}"]
    return None
