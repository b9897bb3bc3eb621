"""Which scopes an access token lacks, found out without making or changing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polarcredits.errors import PolarRefused
from polarcredits.polar_transport import Transport

_NOBODY = "00000000-0000-0000-0000-000000000000"
_PROBES: Sequence[tuple[str, str, str, Mapping[str, Any] | None]] = (
    ("organizations:read", "GET", "/v1/organizations/", None),
    ("products:read", "GET", "/v1/products/", None),
    ("customers:read", "GET", "/v1/customers/", None),
    ("customers:write", "PATCH", f"/v1/customers/{_NOBODY}", {}),
    ("customer_sessions:write", "POST", "/v1/customer-sessions/", {"customer_id": _NOBODY}),
    ("checkouts:read", "GET", "/v1/checkouts/", None),
    ("checkouts:write", "POST", "/v1/checkouts/", {"products": [_NOBODY]}),
    ("subscriptions:read", "GET", "/v1/subscriptions/", None),
    ("orders:read", "GET", "/v1/orders/", None),
    ("refunds:read", "GET", "/v1/refunds/", None),
    ("disputes:read", "GET", "/v1/disputes/", None),
    ("webhooks:read", "GET", "/v1/webhooks/endpoints", None),
    ("webhooks:write", "PATCH", f"/v1/webhooks/endpoints/{_NOBODY}", {}),
)
"""What a scope allows; what is to be written refers to nothing, so that it is refused in any case."""
SCOPES = tuple(scope for scope, *_ in _PROBES)
"""What the commands need."""


def lacking_scopes(transport: Transport) -> list[str]:
    """Return those of SCOPES that the token lacks. Raises PolarUnavailable."""
    lacking = []
    for scope, method, path, body in _PROBES:
        query = {"limit": 1} if method == "GET" else None
        try:
            transport.send(method, path, query=query, body=body, repeatable=body is None)
        except PolarRefused as refusal:
            if refusal.fields.get("status") in (401, 403):
                lacking.append(scope)
    return lacking
