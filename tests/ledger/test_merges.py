"""An account that becomes its user's at the very moment at which something else is done with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import pytest

from polarcredits.ledger import failing
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from polarcredits.periods import format_time
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import all_wait, catalog, feed

PATIENCE = 30.0
BOUGHT = datetime.now(UTC) - timedelta(days=1)
LOCK = (
    "SELECT 1 FROM credit_balances WHERE account_id = (SELECT id FROM accounts WHERE user_id = %s) FOR UPDATE"
)


def one_after_the_other(url: str, user: str, *acts: Callable[[], object]) -> list[object]:
    """Let *acts* queue for the balance of *user* in their order, then let them go; return their results."""
    with (
        ThreadPoolExecutor(len(acts)) as pool,
        psycopg.connect(url) as holder,
        psycopg.connect(url, autocommit=True) as watch,
    ):
        holder.execute(LOCK, (user,))
        asked = []
        for act in acts:
            asked.append(pool.submit(act))
            all_wait(watch, len(asked))
        holder.rollback()
        return [each.result(PATIENCE) for each in asked]


def bought(ledger: Ledger, when: datetime) -> tuple[Story, str]:
    """Let a customer without a user buy 1,000 credits; return its story and its account's name."""
    story = Story(None, at=when)
    feed(ledger, story.pack("pack", when))
    return story, f"polar:{story.customer['id']}"


def adoption(story: Story, user: str) -> dict[str, object]:
    """Return the event that gives the customer its user's id."""
    told = BOUGHT + timedelta(hours=1)
    data = {**story.customer, "external_id": user, "modified_at": format_time(told)}
    return {"type": "customer.updated", "timestamp": format_time(told), "data": data}


ACTS: dict[str, tuple[Callable[[Ledger, str], Callable[[], object]], int]] = {
    "grant": (lambda ledger, user: lambda: ledger.grant(user, 100, idempotency_key="g"), 100),
    "deduct": (lambda ledger, user: lambda: ledger.deduct(user, 100, idempotency_key="d"), -100),
    "hold": (lambda ledger, user: lambda: ledger.hold(user, 1500, idempotency_key="h"), 0),
    "capture": (lambda ledger, user: ledger.hold(user, 50).capture, -50),
    "release": (lambda ledger, user: ledger.hold(user, 50).release, 0),
    "reverse": (lambda ledger, user: partial(ledger.reverse, ledger.deduct(user, 40).transaction.id), 0),
}
"""What is done, prepared before the merge, and by how much it changes the balance in all."""


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("name", ACTS)
def test_it_lands_on_the_account_that_answers(name: str, by_hand: bool, postgres: str) -> None:
    """As if it had come after the merge: nothing stays behind, and nothing is refused (§7.2)."""
    prepare, change = ACTS[name]
    url = copy_of_template(postgres)
    with Ledger(url, catalog(), actor="test") as ledger:
        ledger.add_user("ann")
        story, placeholder = bought(ledger, BOUGHT)
        act = prepare(ledger, placeholder)
        event = adoption(story, "ann")

        def merge() -> None:
            ledger.link(placeholder, "ann") if by_hand else feed(ledger, [event])

        one_after_the_other(url, placeholder, merge, act)
        assert verify(ledger).problems == []
        assert ledger.balance("ann").balance == 2000 + change
        assert ledger.balance("ann").held == (1500 if name == "hold" else 0)
        if name in ("grant", "deduct", "hold"):
            act()
            assert ledger.balance("ann").balance == 2000 + change
            assert ledger.balance("ann").held == (1500 if name == "hold" else 0)


@pytest.mark.parametrize("name", ["grant", "deduct", "hold"])
def test_a_key_that_the_user_has_used(name: str, postgres: str) -> None:
    """It is one request, though it was asked for by the other name just before the two became one."""
    prepare, change = ACTS[name]
    url = copy_of_template(postgres)
    with Ledger(url, catalog(), actor="test") as ledger:
        ledger.add_user("ann")
        ledger.grant("ann", 1000)
        _, placeholder = bought(ledger, BOUGHT)
        prepare(ledger, "ann")()
        one_after_the_other(
            url, placeholder, lambda: ledger.link(placeholder, "ann"), prepare(ledger, placeholder)
        )
        assert ledger.balance("ann").balance == 3000 + change
        assert ledger.balance("ann").held == (1500 if name == "hold" else 0)
        assert verify(ledger).problems == []


@pytest.mark.parametrize("linked_first", [True, False])
def test_a_pack_paid_while_its_buyer_is_linked(linked_first: bool, postgres: str) -> None:
    """The user has it, whichever of the two comes first."""
    url = copy_of_template(postgres)
    with Ledger(url, catalog(), actor="test") as ledger:
        ledger.add_user("ann")
        story, placeholder = bought(ledger, BOUGHT)
        pack = story.pack("pack", BOUGHT + timedelta(hours=1))
        paid = [each for each in pack if each["type"] == "order.paid"]
        feed(ledger, pack[: pack.index(paid[0])])
        acts = [lambda: ledger.link(placeholder, "ann"), lambda: feed(ledger, paid)]
        one_after_the_other(url, placeholder, *(acts if linked_first else reversed(acts)))
        assert ledger.balance("ann").balance == 3000
        refill(ledger)
        assert ledger.balance("ann").balance == 3000
        assert verify(ledger).problems == []


@pytest.mark.parametrize("known_first", [True, False])
def test_a_customer_s_own_name_answers_for_its_user(known_first: bool, ledger: Ledger) -> None:
    """For whom it is known to stand, whatever it was known of it when the account was made (§7.1)."""
    for user in ("ann", "ben"):
        ledger.add_user(user)
    ledger.grant("ben", 5)
    story = Story(None, at=BOUGHT, metadata={"user_id": "ann"})
    told = story.purchase("pro")
    customer = [{"type": "customer.created", "timestamp": told[0]["timestamp"], "data": story.customer}]
    sold = [each for each in told if not each["type"].startswith("customer.")]
    feed(ledger, customer + sold if known_first else sold)
    placeholder = f"polar:{story.customer['id']}"
    assert ledger.balance(placeholder) == ledger.balance("ann")
    feed(ledger, [adoption(story, "ben")])
    assert ledger.balance(placeholder) == ledger.balance("ben") != ledger.balance("ann")
    ledger.deduct(placeholder, 3, idempotency_key="k")
    assert ledger.deduct("ben", 3, idempotency_key="k").replayed
    assert verify(ledger).problems == []


def test_a_link_waits_as_whoever_spends_does(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the balance before the account: else each would wait for the other, and one would fail."""
    monkeypatch.setattr(failing, "_TRIES", 1)
    url = copy_of_template(postgres)
    with (
        Ledger(url, catalog(), actor="test") as ledger,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(url, autocommit=True) as watch,
    ):
        _, placeholder = bought(ledger, BOUGHT)
        with ledger.begin() as connection:
            connection.exec_driver_sql(LOCK, (placeholder,))
            linking = pool.submit(ledger.link, placeholder, "ann")
            all_wait(watch, 1)
            ledger.using(connection).deduct(placeholder, 1)
        linking.result(PATIENCE)
        assert ledger.balance("ann").balance == 1999
        assert verify(ledger).problems == []


def test_a_key_is_one_for_both_names(ledger: Ledger) -> None:
    """Whoever is asked for by the old name is the user: one key, one hold, one deduction (§5.4)."""
    ledger.add_user("ann")
    _, placeholder = bought(ledger, BOUGHT)
    ledger.link(placeholder, "ann")
    held = ledger.hold(placeholder, 100, idempotency_key="h")
    again = ledger.hold("ann", 100, idempotency_key="h")
    assert (again.id, again.state.replayed) == (held.id, True)
    assert ledger.balance("ann").held == 100
    ledger.deduct(placeholder, 7, idempotency_key="d")
    assert ledger.deduct("ann", 7, idempotency_key="d").replayed
    assert len(history(ledger, "ann", type="deduct")) == 1
