"""Whose account has what a checkout sold, on both databases."""

from __future__ import annotations

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.views import buyer_of
from polarcredits.webhooks.fixtures import Story
from tests.ledger.worlds import at, feed


def test_the_buyer_of_a_checkout(ledger: Ledger) -> None:
    """Found once the order is known to be paid, by the checkout; it goes where the account goes."""
    story = Story(None, at=at("04-01"))
    customer = story.customer["id"]
    payloads = story.purchase("pro")
    for payload in payloads:
        if payload["type"].startswith("order."):
            payload["data"]["checkout_id"] = "c1"
    unpaid = [each for each in payloads if not each["type"].startswith("order.")]
    feed(ledger, unpaid)
    assert buyer_of(ledger, customer, "c1") is None
    feed(ledger, payloads)
    assert buyer_of(ledger, customer, "c1") == f"polar:{customer}"
    assert buyer_of(ledger, customer, "c2") is None
    assert buyer_of(ledger, "another", "c1") is None
    ledger.link(f"polar:{customer}", "mia")
    assert buyer_of(ledger, customer, "c1") == "mia"
