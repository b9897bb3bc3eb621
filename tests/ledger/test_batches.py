"""Many deliveries in one transaction: each its own outcome, one ledger however they are cut (§8)."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import random
import threading
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from polarcredits.errors import DatabaseError, InsufficientCredits, UnknownUser
from polarcredits.ledger import tables as t
from polarcredits.ledger.applying import READER, memo
from polarcredits.ledger.events import Wanted, in_order
from polarcredits.ledger.facts import observe
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify as verify_ledger
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story, deliver, make_id
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.payloads import read_facts
from polarcredits.webhooks.signature import Delivery, verify
from tests.ledger.worlds import at, catalog, dump, feed
from tests.webhooks.recordings import FILES, SECRET, recorded

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


def history(ledger: Ledger) -> dict[str, list[Any]]:
    """Return all that was written, but for the clock on the wall and the numbers of rows."""

    def work(connection: Connection) -> dict[str, list[Any]]:
        a, g = t.accounts.c, t.grants.c
        users = {row.id: row.user_id for row in connection.execute(select(a.id, a.user_id))}
        keys = {row.id: row.key for row in connection.execute(select(g.id, g.key))}
        named = dict.fromkeys(("account_id", "alias_of"), users) | dict.fromkeys(
            ("grant_id", "source_id", "target_id"), keys
        )
        told = {}
        for table in _TABLES:
            hidden = {"recorded_at", "received_at"} | ({"id"} if table in _NUMBERED else set())
            rows = [row._asdict() for row in connection.execute(select(table))]
            for row in rows:
                row |= {name: named[name].get(row[name]) for name in named.keys() & row.keys()}
            told[table.name] = sorted(
                repr([(name, row[name]) for name in row if name not in hidden]) for row in rows
            )
        return told

    return ledger.reading(work)


_NUMBERED = (t.accounts, t.grants)
_TABLES = (
    t.accounts,
    t.balances,
    t.transactions,
    t.grants,
    t.draws,
    t.carries,
    t.terms,
    t.unknown_products,
    t.observations,
    t.customers,
    t.subscriptions,
    t.payments,
    t.refunds,
    t.events,
)


def world(luck: random.Random) -> list[Delivery]:
    """Return recorded and told deliveries of several users in a random order, some twice, one bad."""
    start = at("04-01")
    ann, ben, cid = Story("ann", at=start), Story("ben", at=start, interval="year"), Story(None, at=start)
    told = ann.purchase("max") + ann.refund(500, at("04-03")) + ann.plan_change("pro", at("04-05"))
    told += ben.purchase("pro-year") + ben.revoke(at("04-06"))
    told += cid.purchase("team", seats=3) + cid.pack("pack", at("04-02")) + cid.refund(400, at("04-04"))
    known = cid.customer | {"external_id": luck.choice(["cid", "ann"]), "modified_at": "2027-04-04T00:00:00Z"}
    told += [{"type": "customer.updated", "timestamp": "2027-04-04T01:00:00Z", "data": known}]
    told += [{"type": "order.paid", "timestamp": "2027-04-01T00:00:00Z", "data": {"id": "o-1"}}]
    told += [{"type": "product.updated", "timestamp": "2027-04-01T00:00:00Z", "data": {"id": "p-1"}}]
    gina = [element for path in FILES if "gina" in path.name for element in recorded(path)]
    deliveries = signed(told) + [verify(each.raw, each.headers, [SECRET], now=None) for each in gina]
    deliveries = luck.sample(deliveries, k=len(deliveries) * 3 // 4)
    mixed = deliveries + luck.choices(deliveries, k=len(deliveries) // 4)
    luck.shuffle(mixed)
    return mixed


def tell(ledger: Ledger, batches: list[list[Delivery]], *, together: bool) -> dict[str, list[Any]]:
    """Take batches, whole or one by one, each later than the last, with spending and refills in between."""
    inbox = open_inbox(ledger)
    for number, batch in enumerate(batches):
        now = at("04-07") + number * timedelta(days=5)
        if together:
            inbox.take_many(batch, now=now)
        else:
            for delivery in batch:
                inbox.take(delivery, now=now)
        if number % 3 == 1:
            refill(ledger, at=now)
        with contextlib.suppress(InsufficientCredits, UnknownUser):
            ledger.deduct("ann", 400 * number + 1, at=now)
    assert verify_ledger(ledger).problems == []
    return history(ledger)


def test_however_they_are_cut_the_ledger_is_the_same(ledger: Ledger) -> None:
    """Every row but the wall's clock: entries, causes, grants, carries, terms, facts and events."""
    for seed in range(12 if ledger.database.sqlite else 5):
        luck = random.Random(seed)
        left = world(luck)
        batches = []
        while left:
            size = luck.choice([1, 2, 7, 20])
            batches.append(left[:size])
            left = left[size:]
        found = []
        for together in (False, True):
            with ledger.database.writer.connect() as connection:
                transaction = connection.begin()
                found.append(tell(ledger.using(connection), batches, together=together))
                transaction.rollback()
        for table, rows in found[0].items():
            assert found[1][table] == rows, (seed, table)


def test_one_damaged_account_spoils_no_other(ledger: Ledger) -> None:
    """§8.4: those of a batch that cannot be applied are kept as failed, each with its reason."""
    start = at("04-01")
    stories = {name: Story(name, at=start) for name in ("ann", "ben", "cid")}
    feed(ledger, stories["ben"].purchase("pro"), now=start)
    with ledger.begin() as connection:
        connection.execute(text("UPDATE credit_balances SET unsettled = 99999"))
    before = dump(ledger)
    renewal = stories["ben"].refund(500, at("04-01 12:00"))
    told = stories["ann"].purchase("pro")[:5] + renewal + stories["cid"].purchase("max")
    outcomes = open_inbox(ledger).take_many(signed(told), now=NOW)
    failed = [o for o in outcomes if o.status == "failed"]
    assert len(failed) == len([each for each in renewal if each["type"].startswith(("order.", "refund."))])
    assert all("99999" in str(o.error) or "spent" in str(o.error) for o in failed)
    assert open_inbox(ledger).count(status="failed") == len(failed)
    after = dump(ledger)
    for name, rows in before.items():
        assert set(rows) <= set(after[name]), name
    assert ledger.balance("ann", at=NOW).balance == 6000
    assert ledger.balance("cid", at=NOW).balance == 21000


def _take(url: str, barrier: threading.Barrier, deliveries: list[Delivery]) -> None:
    with Ledger(url, catalog()) as ledger:
        barrier.wait()
        for batch in (deliveries[:20], deliveries[20:]):
            open_inbox(ledger).take_many(batch, now=NOW)


def test_two_processes_take_the_same_batch_at_once(url: str) -> None:
    """§8.2: each event is stored once, and applied once."""
    told = [event for n in range(4) for event in Story(f"u{n}", at=at("04-01")).purchase("pro")]
    deliveries = signed(told)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(2)
        orders = (deliveries, deliveries[::-1])
        workers = [context.Process(target=_take, args=(url, barrier, order)) for order in orders]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    with Ledger(url, catalog()) as ledger:
        rows = open_inbox(ledger).list(limit=None)
        assert sorted(row.id for row in rows) == sorted(each.id for each in deliveries)
        assert {(row.attempts, row.status) for row in rows} == {(1, "applied")}
        assert verify_ledger(ledger).problems == []
        assert [ledger.balance(f"u{n}", at=NOW).balance for n in range(4)] == [6000] * 4


def test_a_replay_of_everything_writes_nothing_but_attempts(ledger: Ledger) -> None:
    """In pages, in the order they came; what was lost of the facts comes back, with its credits."""
    inbox = open_inbox(ledger)
    told = [event for n in range(3) for event in Story(f"u{n}", at=at("04-01")).purchase("pro")]
    inbox.take_many(signed(told[:15]), now=NOW)
    inbox.take_many(signed(told[15:]), now=NOW + timedelta(hours=1))
    before = history(ledger)
    pages = list(in_order(ledger, Wanted(), 7))
    assert [len(page) for page in pages][:-1] == [7] * (len(told) // 7)
    assert sorted(pages[0] + pages[1], key=lambda row: (row.received_at, row.id)) == pages[0] + pages[1]
    for page in pages:
        outcomes = inbox.again_many(page, now=NOW + timedelta(hours=2))
        assert [(o.id, o.status, o.user) for o in outcomes] == [(r.id, r.status, r.user) for r in page]
    after = history(ledger)
    assert after.pop("webhook_events") != before.pop("webhook_events")
    assert after == before
    assert {row.attempts for row in inbox.list(limit=None)} == {2}


def test_a_page_is_read_when_it_is_asked_for(ledger: Ledger) -> None:
    """However many events are stored, few are in memory."""
    inbox = open_inbox(ledger)
    inbox.take_many(signed(Story("ann", at=at("04-01")).purchase("pro")), now=NOW)
    pages = in_order(ledger, Wanted(), 2)
    assert len(next(pages)) == 2
    with ledger.begin() as connection:
        connection.execute(text("DELETE FROM webhook_events"))
    assert list(pages) == []


def test_a_replay_restores_facts_that_were_lost(ledger: Ledger) -> None:
    """What the rows are folded from is read again from the events, whatever is remembered of them."""
    inbox = open_inbox(ledger)
    inbox.take_many(signed(Story("ann", at=at("04-01")).purchase("pro")), now=NOW)
    before = history(ledger)
    with ledger.begin() as connection:
        lost = text("DELETE FROM observations WHERE kind IN ('order', 'subscription')")
        assert connection.execute(lost).rowcount > 0
        connection.execute(text("DELETE FROM payments"))
        connection.execute(text("DELETE FROM subscriptions"))
    for page in inbox.pages():
        assert {o.status for o in inbox.again_many(page, now=NOW)} <= {"applied", "ignored"}
    after = history(ledger)
    assert after.pop("webhook_events") != before.pop("webhook_events")
    assert after == before


def test_another_edition_of_the_reader_reads_everything_again(ledger: Ledger) -> None:
    """What an older edition told is not trusted; then it is remembered anew."""
    inbox = open_inbox(ledger)
    inbox.take_many(signed(Story("ann", at=at("04-01")).purchase("pro")), now=NOW)
    with ledger.begin() as connection:
        connection.execute(text("UPDATE webhook_events SET told = '[0,[]]'"))
        connection.execute(text("DELETE FROM observations WHERE kind = 'order'"))
        connection.execute(text("DELETE FROM payments"))
    for page in inbox.pages():
        inbox.again_many(page, now=NOW)
    with ledger.begin() as connection:
        orders = text("SELECT count(*) FROM observations WHERE kind = 'order'")
        assert connection.execute(orders).scalar_one() > 0
    assert all(str(row.told).startswith(f"[{READER},") for row in inbox.list())


def test_the_edition_of_the_reader_is_raised_with_what_it_reads() -> None:
    """Where this differs the reader tells other facts: raise READER, and put the new digest here."""
    digest = hashlib.sha256()
    for path in FILES:
        for element in recorded(path):
            delivery = verify(element.raw, element.headers, [SECRET], now=None)
            assert delivery.timestamp is not None
            data = delivery.payload["data"]
            told = [observe(fact) for fact in read_facts(str(delivery.type), data, delivery.timestamp)]
            digest.update(memo(told).encode())
    assert (READER, digest.hexdigest()[:16]) == (1, "ea2489e057d855fc")


def test_a_failure_of_the_database_stores_nothing_of_a_batch(ledger: Ledger) -> None:
    """§8.4: it is raised for the whole batch, which Polar sends again."""
    deliveries = signed(Story("ann", at=at("04-01")).purchase("pro"))
    with ledger.begin() as connection:
        connection.execute(text("ALTER TABLE grant_draws RENAME TO elsewhere"))
        connection.execute(text("ALTER TABLE credit_transactions RENAME TO gone"))
    before = [row.id for row in open_inbox(ledger).list()]
    with pytest.raises(DatabaseError):
        open_inbox(ledger).take_many(deliveries, now=NOW)
    assert [row.id for row in open_inbox(ledger).list()] == before == []
    with ledger.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO credit_transactions"))
        connection.execute(text("ALTER TABLE elsewhere RENAME TO grant_draws"))
    told = open_inbox(ledger).take_many(deliveries, now=NOW)
    assert not any(o.duplicate or o.status == "failed" for o in told)
