"""Whose account has what a checkout sold, on both databases."""

from __future__ import annotations

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.views import Buyer, buyer_of
from polarcredits.webhooks.fixtures import Payload, Story
from tests.ledger.worlds import at, feed


def bought(story: Story, checkout: str) -> list[Payload]:
    """Return the events of buying the plan with a checkout."""
    payloads = story.purchase("pro")
    for payload in payloads:
        if payload["type"].startswith("order."):
            payload["data"]["checkout_id"] = checkout
    return payloads


def test_the_buyer_of_a_checkout(ledger: Ledger) -> None:
    """Found once the order is known to be paid, by the checkout; it goes where the account goes."""
    story = Story(None, at=at("04-01"))
    customer = story.customer["id"]
    payloads = bought(story, "c1")
    unpaid = [each for each in payloads if not each["type"].startswith("order.")]
    feed(ledger, unpaid)
    assert buyer_of(ledger, customer, "c1") is None
    feed(ledger, payloads)
    assert buyer_of(ledger, customer, "c1") == Buyer(f"polar:{customer}", opened=True)
    assert buyer_of(ledger, customer, "c2") is None
    assert buyer_of(ledger, "another", "c1") is None
    ledger.link(f"polar:{customer}", "mia")
    assert buyer_of(ledger, customer, "c1") == Buyer("mia", opened=False)


def test_a_checkout_that_was_opened_for_its_buyer(ledger: Ledger) -> None:
    """The order's metadata names the user, as every checkout of ours does."""
    story = Story("mia", at=at("04-01"), metadata={"user_id": "mia"})
    feed(ledger, bought(story, "c1"))
    assert buyer_of(ledger, story.customer["id"], "c1") == Buyer("mia", opened=True)


def test_a_checkout_in_which_somebody_s_address_was_typed(ledger: Ledger) -> None:
    """Polar gives the order to a customer whom it knew; whoever paid need not be that customer."""
    known = Story("mia", at=at("04-01"))
    feed(ledger, bought(known, "c1"))
    assert buyer_of(ledger, known.customer["id"], "c1") == Buyer("mia", opened=False)
    nameless = Story(None, at=at("04-01"))
    customer = nameless.customer["id"]
    feed(ledger, bought(nameless, "c2"))
    feed(ledger, bought(nameless, "c3"))
    for checkout in ("c2", "c3"):
        assert buyer_of(ledger, customer, checkout) == Buyer(f"polar:{customer}", opened=False)
