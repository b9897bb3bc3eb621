"""The gateway and the stand-in against an OpenAPI document: python -m tests.contract FILE

Every kind of call that the gateway makes is made, and both sides of each exchange are checked:
what we send, and what the stand-in answers. Polar publishes its document; it is not kept here.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest, MockResponse
from openapi_schema_validator import OAS31Validator

from polarcredits.errors import PolarCreditsError
from polarcredits.ledger.ledger import Ledger
from polarcredits.plans import parse_catalog
from polarcredits.polar_api import PolarApi
from polarcredits.polar_transport import Transport
from polarcredits.sync import sync, sync_overdue
from polarcredits.webhooks.endpoints import EVENTS
from polarcredits.webhooks.fixtures import Story
from tests.stand_in.server import TOKEN, Exchange, PolarStandIn


def tour() -> tuple[list[Exchange], list[str]]:
    """Make every call of the gateway; return what went over the wire, and what was refused on the way."""
    with PolarStandIn() as polar, TemporaryDirectory() as folder:
        _furnish(polar)
        refused: list[str] = []
        database = f"sqlite:///{Path(folder) / 'tour.db'}"
        with (
            PolarApi(Transport(TOKEN, environment="sandbox", base_url=polar.url)) as api,
            Ledger(database, parse_catalog(None, pro_product_id=None), actor="tour") as ledger,
        ):
            try:
                _visit(polar, api, ledger)
            except PolarCreditsError as error:
                refused.append(f"the tour ended early: {error.message}")
        refused += [f"stand-in: {fault}" for fault in polar.faults]
        polar.faults.clear()
        return polar.exchanges, refused


def _furnish(polar: PolarStandIn) -> None:
    state = polar.state
    story = Story("ann", at=datetime.now(UTC) - timedelta(days=9), metadata={"user_id": "ann"})
    events = story.purchase(state.add_product("Pro"))
    story.refund(500)
    state.add_product("Pack", interval=None)
    state.load_story(story)
    state.put("dispute", {"order_id": story.orders[0]["id"], "status": "lost"})
    state.add_delivery(state.add_endpoint()["id"], events[0], succeeded=True)


def _visit(polar: PolarStandIn, api: PolarApi, ledger: Ledger) -> None:
    state, now = polar.state, datetime.now(UTC)
    orders = list(state.objects["order"])
    for options in ({}, {"since": now - timedelta(days=60)}, {"user": "ann"}):
        sync(ledger, api, environment="sandbox", **options)
    sync_overdue(ledger, api, environment="sandbox", at=now + timedelta(days=60))
    ann = api.customer_of("ann")
    assert ann is not None
    api.billable(ann.id)
    api.get("order", orders[0])
    api.get("subscription", next(iter(state.objects["subscription"])))
    api.get("customer", ann.id)
    api.customer_by_email("ann@example.com")
    api.create_customer("bob", email="bob@example.com", name="Bob")
    for product in api.products():
        api.product(product.id)
    sold = [product.id for product in api.products() if product.interval]
    opened = api.open_checkout(
        {
            "products": sold,
            "external_customer_id": "bob",
            "metadata": {"user_id": "bob"},
            "success_url": "https://example.com/?c={CHECKOUT_ID}",
            "return_url": "https://example.com/",
        }
    )
    polar.misbehave("500", method="POST", path="checkouts", after=True)
    api.open_checkout({"products": sold, "customer_email": "eve@example.com"})
    api.checkout(opened.id)
    list(api.rows("order", checkout_id=opened.id))
    api.portal(user="ann", return_url="https://example.com/")
    api.portal(customer=ann.id)
    endpoint = api.create_endpoint("https://example.com/webhooks", EVENTS)
    api.repair_endpoint(endpoint.id, EVENTS)
    api.endpoints()
    for each in api.endpoints():
        list(api.deliveries(now - timedelta(days=2), endpoint=each.id))
    api.allows_several_subscriptions()
    api.lacking_scopes()


def check(exchanges: Iterable[Exchange], document: Mapping[str, Any]) -> list[str]:
    """Return what the document does not allow, of requests and of answers."""
    contract = OpenAPI.from_dict(_readable(document))
    host = document["servers"][0]["url"]
    schemas = _deep_objects(document)
    problems = []
    for each in exchanges:
        parts = urlsplit(each.target)
        request = MockRequest(
            host,
            each.method.lower(),
            parts.path,
            args=_arguments(parts.query),
            headers={"Authorization": each.request_headers["authorization"]},
            data=each.request_body or None,
            content_type="application/json",
        )
        response = MockResponse(each.response_body, status_code=each.status, content_type="application/json")
        where = f"{each.method} {each.target[:100]} ({each.status})"
        unknown = _unknown_parameters(each, document)
        if unknown:
            problems.append(f"{where}: request: unknown parameters {sorted(unknown)}")
        problems += [f"{where}: request: {told}" for told in _wrong_objects(each, schemas)]
        try:
            contract.validate_request(request)
        except OpenAPIError as error:
            problems.append(f"{where}: request: {_told(error)}")
        if each.status == 500:
            continue
        try:
            contract.validate_response(request, response)
        except OpenAPIError as error:
            problems.append(f"{where}: answer: {_told(error)}")
    return problems


def _readable(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with query parameters that the library can read.

    A query cannot hold null, and one value may always stand for a list of one. The library reads no
    objects in a query: those are looked at by `_wrong_objects`.
    """
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for path in copy["paths"].values():
        for operation in path.values():
            kept = []
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _plain(parameter.get("schema", {}))
                if parameter.get("style") != "deepObject":
                    kept.append(parameter)
            operation["parameters"] = kept
    return copy


def _deep_objects(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schemas of the objects that a query may have, by name."""
    found: dict[str, dict[str, Any]] = {}
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter.get("style") == "deepObject":
                    found[parameter["name"]] = parameter["schema"] | {"components": document["components"]}
    return found


def _wrong_objects(each: Exchange, schemas: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Tell of objects in a query that are not written `name[key]=value`, or hold what they may not."""
    objects: dict[str, dict[str, Any]] = {}
    for name, values in _arguments(urlsplit(each.target).query).items():
        base, bracket, rest = name.partition("[")
        if base in schemas and re.fullmatch(r"[^\[\]]+\]", rest):
            objects.setdefault(base, {})[rest[:-1]] = values[0] if len(values) == 1 else values
        elif base in schemas or bracket:
            yield f"{name} is no {base}[key]"
    for name, value in objects.items():
        for error in OAS31Validator(schemas[name]).iter_errors(value):
            yield f"{name}: {_fault(error)}"


def _unknown_parameters(each: Exchange, document: Mapping[str, Any]) -> set[str]:
    """Return the names in a query that no operation of that method and path knows."""
    parts = urlsplit(each.target)
    known: set[str] = set()
    for path, operations in document["paths"].items():
        if re.fullmatch(re.sub(r"\\{[^/]*\\}", "[^/]+", re.escape(path)), parts.path):
            listed = operations.get(each.method.lower(), {}).get("parameters", ())
            known |= {parameter["name"] for parameter in listed}
    return {name.partition("[")[0] for name in _arguments(parts.query)} - known


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    options = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    lists = [each for each in options if each.get("type") == "array"]
    chosen = (lists or options)[:1]
    return chosen[0] if chosen else schema


def _arguments(query: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return found


def _told(error: BaseException) -> str:
    """Return what is wrong, and where in the document's value, in a line."""
    cause: BaseException | None = error
    told = ""
    while cause is not None:
        faults = list(getattr(cause, "schema_errors", ()))
        if faults:
            return "; ".join(_fault(each) for each in faults)
        told, cause = f"{type(cause).__name__}: {str(cause)[:300]}", cause.__cause__
    return told


def _fault(error: Any) -> str:
    """Return the deepest fault of a value that fits none of several schemas."""
    deepest = error
    while deepest.context:
        deepest = max(deepest.context, key=lambda each: len(each.absolute_path))
    where = ".".join(map(str, deepest.absolute_path))
    return f"{where}: {deepest.message[:200]}"


def main(arguments: list[str]) -> int:
    """Check against the document that is named; 1 if anything is wrong."""
    if len(arguments) != 1:
        print("usage: python -m tests.contract FILE", file=sys.stderr)
        return 2
    document = json.loads(Path(arguments[0]).read_text("utf-8"))
    exchanges, refused = tour()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of how a token is got, which is not looked at
        problems = refused + check(exchanges, document)
    for problem in problems:
        print(problem)
    print(f"{len(exchanges)} exchanges, {len(problems)} problems.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
