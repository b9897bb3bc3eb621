"""Our webhook endpoint at Polar: made or repaired, with the events and the version that we read."""

from __future__ import annotations

from collections.abc import Sequence

from polarcredits.errors import InvalidInput, PolarUnavailable
from polarcredits.polar_api import API_VERSION, PolarApi
from polarcredits.polar_values import Endpoint
from polarcredits.webhooks.payloads import KNOWN_TYPES

EVENTS = tuple(sorted(KNOWN_TYPES - {"customer.state_changed", "subscription.migrated"}))
"""What an endpoint must send. The other two only repeat what comes with them, and not every server
has `subscription.migrated`."""


def register(polar: PolarApi, url: str, events: Sequence[str] | None = None) -> Endpoint:
    """Return the endpoint of *url*, made or repaired: enabled, with our events and version.

    An endpoint that is there keeps the further events that it sends. Raises InvalidInput for
    what is no address, PolarRefused where Polar will not have it.
    """
    if not url.startswith(("https://", "http://")) or len(url.split("/", 2)[2]) == 0:
        raise InvalidInput(f"{url!r} is no address such as https://example.com/webhooks/polar.")
    known = next((each for each in polar.endpoints() if each.url == url), None)
    wanted = tuple(events or EVENTS)
    if known is None:
        endpoint = polar.create_endpoint(url, wanted)
    elif is_right(known, wanted):
        endpoint = known
    else:
        endpoint = polar.repair_endpoint(known.id, sorted({*known.events, *wanted}))
    if endpoint.secret is None:
        raise PolarUnavailable(
            f"Polar did not tell the secret of {url}. Copy it from Polar's settings into "
            "POLAR_WEBHOOK_SECRET.",
            endpoint=endpoint.id,
        )
    return endpoint


def is_right(endpoint: Endpoint, events: Sequence[str] = EVENTS) -> bool:
    """Say whether an endpoint sends all that it must, in the form that we read."""
    return (
        endpoint.enabled
        and endpoint.format == "raw"
        and endpoint.api_version == API_VERSION
        and set(events) <= set(endpoint.events)
    )
