"""Many deliveries in one transaction: each its own outcome, one ledger however they are cut (§8)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.fixtures import Story, deliver, make_id
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.signature import Delivery, verify
from tests.ledger.worlds import at, dump
from tests.webhooks.recordings import SECRET

NOW = at("04-02")


def open_inbox(ledger: Ledger) -> Inbox:
    """Return the inbox of a ledger."""
    return Inbox(ledger, environment="sandbox", secrets=[SECRET])


def signed(payloads: Iterable[dict[str, Any]]) -> list[Delivery]:
    """Return payloads as deliveries whose signature was verified."""
    found = []
    for payload in payloads:
        stored = deliver(payload, id=make_id("event", str(payload)), secret=SECRET, at=NOW)
        found.append(verify(stored["body"].encode(), stored["headers"], [SECRET], now=None))
    return found


def test_each_of_a_batch_has_its_own_outcome(ledger: Ledger) -> None:
    """A bad event in the middle is kept as failed and undoes no other; a repeat is a duplicate."""
    start = at("04-01")
    bought = Story("ann", at=start).purchase("pro") + Story("ben", at=start).purchase("max")
    bad = {"type": "order.paid", "timestamp": "2027-04-01T00:00:00Z", "data": {"id": "o-1"}}
    quiet = {"type": "product.updated", "timestamp": "2027-04-01T00:00:00Z", "data": {"id": "p-1"}}
    deliveries = signed([*bought[:3], bad, quiet, *bought[3:]])
    deliveries.append(deliveries[0])
    outcomes = open_inbox(ledger).take_many(deliveries, now=start + timedelta(hours=1))
    assert [o.id for o in outcomes] == [d.id for d in deliveries]
    assert [o.status for o in outcomes if o.status not in ("applied", "ignored")] == ["failed"]
    assert outcomes[3].status == "failed"
    assert "names no customer" in str(outcomes[3].error)
    assert outcomes[4].status == "ignored"
    assert [o.duplicate for o in outcomes] == [False] * (len(outcomes) - 1) + [True]
    assert ledger.balance("ann", at=NOW).balance == 6000
    assert ledger.balance("ben", at=NOW).balance == 21000
    before = dump(ledger)
    again = open_inbox(ledger).take_many(deliveries, now=NOW)
    assert all(o.duplicate for o in again)
    assert dump(ledger) == before
