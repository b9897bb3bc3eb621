"""Missed deliveries, pulled from Polar's own log (docs/rules.md §8.5).

The log holds the attempts of up to 90 days, but of a disabled endpoint nothing: `sync` closes that gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from polarcredits.polar_api import PolarApi
from polarcredits.polar_values import LoggedDelivery
from polarcredits.webhooks.canonical import load_json
from polarcredits.webhooks.inbox import Inbox, Outcome
from polarcredits.webhooks.signature import Delivery
from polarcredits.webhooks.values import usable_id, usable_time

Progress = Callable[[int, int], None]


def logged(polar: PolarApi, since: datetime, progress: Progress) -> Iterator[LoggedDelivery]:
    """Yield every event that Polar tried to deliver since a time, once, whatever became of it."""
    seen: set[str] = set()
    rows = 0
    for endpoint in polar.endpoints():
        if endpoint.format != "raw":
            continue
        for delivery, total in polar.deliveries(since, endpoint=endpoint.id):
            rows += 1
            progress(rows, max(rows, total))
            if delivery.event_id not in seen:
                seen.add(delivery.event_id)
                yield delivery


def take_logged(inbox: Inbox, deliveries: Iterable[LoggedDelivery], *, now: datetime) -> Iterator[Outcome]:
    """Take what the inbox has not; Polar's API vouches for it in place of a signature."""
    for logged_one in deliveries:
        yield inbox.known(logged_one.event_id) or _take(inbox, logged_one, now)


def _take(inbox: Inbox, logged_one: LoggedDelivery, now: datetime) -> Outcome:
    if logged_one.payload is None:
        return _refused(logged_one, "Polar has erased its payload; polarcredits sync knows what came of it")
    try:
        payload = load_json(logged_one.payload.encode())
    except ValueError as error:
        return _refused(logged_one, f"its payload is no JSON: {error}")
    if not isinstance(payload, dict) or not {"type", "timestamp", "data"} <= payload.keys():
        return _refused(logged_one, "its payload is no event with type, timestamp and data")
    if logged_one.type not in (None, payload["type"]):
        return _refused(
            logged_one, f"the log calls it {logged_one.type}, its payload says {payload['type']!r}"
        )
    return inbox.take(
        Delivery(
            id=logged_one.event_id,
            type=usable_id(payload["type"]),
            timestamp=usable_time(payload["timestamp"]),
            raw=logged_one.payload.encode(),
            payload=payload,
            triggered=False,
            sent_at=logged_one.at or now,
        ),
        now=now,
    )


def _refused(logged_one: LoggedDelivery, why: str) -> Outcome:
    return Outcome(id=logged_one.event_id, type=None, status="refused", error=f"{logged_one.event_id}: {why}")


def written(deliveries: Iterable[LoggedDelivery]) -> Iterator[str]:
    """Write deliveries as lines of text."""
    for each in deliveries:
        yield json.dumps([each.event_id, each.type, each.payload])


def read(lines: Iterable[str]) -> Iterator[LoggedDelivery]:
    """Read what `written` wrote."""
    for line in lines:
        id, type, payload = json.loads(line)
        yield LoggedDelivery(
            event_id=id, type=type, payload=payload, succeeded=False, at=None, http_code=None
        )
