"""Our webhook endpoint at Polar: made or repaired, with the events and the version that we read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from polarcredits.errors import ConfigError, InvalidInput, PolarUnavailable
from polarcredits.polar_api import API_VERSION, PolarApi
from polarcredits.polar_values import Endpoint
from polarcredits.webhooks.payloads import KNOWN_TYPES

EVENTS = tuple(sorted(KNOWN_TYPES - {"customer.state_changed"}))
"""What an endpoint must send; `customer.state_changed` only repeats what other events say."""


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
        raise PolarUnavailable("Polar did not tell the endpoint's secret. Try again later.")
    return endpoint


def is_right(endpoint: Endpoint, events: Sequence[str] = EVENTS) -> bool:
    """Say whether an endpoint sends all that it must, in the form that we read."""
    return (
        endpoint.enabled
        and endpoint.format == "raw"
        and endpoint.api_version == API_VERSION
        and set(events) <= set(endpoint.events)
    )


def save_secret(secret: str, *, folder: Path, config: Path | None) -> Path:
    """Write *secret* where the settings find it, beside the ones that are there, for its owner alone.

    That is the `.env` of the working *folder*, else the one beside the *config* file. Raises
    ConfigError where it cannot be written.
    """
    from dotenv import dotenv_values, set_key

    here = folder / ".env"
    path = config.parent / ".env" if config is not None and not here.is_file() else here
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
        before = dotenv_values(path).get("POLAR_WEBHOOK_SECRET") or ""
        kept = [each.strip() for each in before.split(",") if each.strip()]
        if secret not in kept:
            set_key(path, "POLAR_WEBHOOK_SECRET", ",".join((secret, *kept)), quote_mode="never")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be written: {error}", setting="POLAR_WEBHOOK_SECRET") from error
    return path
