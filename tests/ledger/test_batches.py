"""Many deliveries in one transaction: each its own outcome, one ledger however they are cut (§8)."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from polarcredits.errors import DatabaseError, InsufficientCredits, UnknownUser
from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify as verify_ledger
from polarcredits.periods import from_micros
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story, deliver, make_id
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.signature import Delivery, verify
from tests.ledger.worlds import at, catalog, dump, feed, item, restart
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
    deliveries += [deliveries[0], replace(deliveries[4], id=deliveries[1].id)]
    outcomes = open_inbox(ledger).take_many(deliveries, now=start + timedelta(hours=1))
    assert [o.id for o in outcomes] == [d.id for d in deliveries]
    assert [o.status for o in outcomes if o.status not in ("applied", "ignored")] == ["failed"]
    assert outcomes[3].status == "failed"
    assert "names no customer" in str(outcomes[3].error)
    assert outcomes[4].status == "ignored"
    assert [o.duplicate for o in outcomes] == [False] * (len(outcomes) - 2) + [True] * 2
    assert outcomes[-1].status == "applied"
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
    eve, dan = Story("eve", at=start), Story("dan", at=start)
    told += dan.purchase("nowhere") + dan.plan_change("pro", at("04-02")) + dan.renewal(at("05-01"))
    less = item(-1000, at("04-10"), at("05-01"), proration=True)
    told += eve.purchase("pro") + restart(eve, "pro-year", at("04-10"), at("07-10"), less)
    told += eve.plan_change("max", at("04-12")) + eve.revoke(at("05-20"))
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
        for user in ("ann", "eve"):
            with contextlib.suppress(InsufficientCredits, UnknownUser):
                ledger.deduct(user, 400 * number + 1, at=now)
    assert verify_ledger(ledger).problems == []
    return history(ledger)


def test_however_they_are_cut_the_ledger_is_the_same(ledger: Ledger) -> None:
    """Every row but the wall's clock: entries, causes, grants, carries, terms, facts and events."""
    ledger.catalog = catalog(pro="rollover = 2500")
    for seed in range(8 if ledger.database.sqlite else 3):
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


def test_what_a_batch_writes_names_its_causes(ledger: Ledger) -> None:
    """§6.3: each grant and entry is that event's which brought it about, at the time when it counts."""
    life = Story("ann", at=at("04-01"))
    told = life.purchase("pro") + life.refund(500, at("04-01 06:00"))
    deliveries = signed(told)
    open_inbox(ledger).take_many(deliveries, now=NOW)
    ids = {
        each["type"]: delivery.id for each, delivery in zip(reversed(told), reversed(deliveries), strict=True)
    }
    first = deliveries[0].id

    def work(connection: Connection) -> list[Any]:
        tx, g = t.transactions.c, t.grants.c
        join = t.transactions.join(t.grants, g.id == tx.grant_id)
        query = select(g.source, tx.type, tx.amount, tx.actor, g.cause_event, tx.occurred_at)
        return list(connection.execute(query.select_from(join).order_by(tx.sequence)).all())

    lifetime, allowance, clawed = ledger.reading(work)
    assert lifetime[:5] == ("lifetime", "grant", 1000, f"webhook:{first}", first)
    bought = ids["subscription.created"]
    assert allowance[:5] == ("allowance", "grant", 5000, f"webhook:{bought}", bought)
    assert clawed[:3] == ("allowance", "clawback", -1250)
    assert clawed[3] in {
        f"webhook:{ids[kind]}" for kind in ("refund.created", "order.refunded", "order.updated")
    }
    refunded = datetime.fromisoformat(next(e["timestamp"] for e in told if e["type"] == "refund.created"))
    assert abs(from_micros(clawed.occurred_at) - refunded) < timedelta(seconds=5)


def test_what_fell_due_before_the_news_is_written_first(ledger: Ledger) -> None:
    """§1.4: a change that is heard late finds the allowance that the facts of its day had granted."""
    life = Story("ann", at=at("01-31"), interval="year")
    open_inbox(ledger).take_many(signed(life.purchase("pro-year")), now=at("01-31 01:00"))
    open_inbox(ledger).take_many(signed(life.plan_change("max", at("02-10"))), now=at("03-21"))

    def work(connection: Connection) -> list[int]:
        tx = t.transactions.c
        query = select(tx.amount).where(tx.type == "grant").order_by(tx.sequence)
        return list(connection.execute(query).scalars())

    assert ledger.reading(work) == [1000, 5000, 5000]
    assert ledger.balance("ann", at=at("03-21")).balance == 21000
    assert verify_ledger(ledger).problems == []


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


_SPOILED = {
    "sqlite": [
        "CREATE TRIGGER spoil BEFORE INSERT ON credit_transactions WHEN NEW.type = 'clawback'"
        " BEGIN SELECT RAISE(ABORT, 'spoiled'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'spoiled' USING ERRCODE = '23514'; END $$",
        "CREATE TRIGGER spoil BEFORE INSERT ON credit_transactions FOR EACH ROW"
        " WHEN (NEW.type = 'clawback') EXECUTE FUNCTION spoil()",
    ],
}


def test_what_the_database_refuses_of_one_event_leaves_no_trace(ledger: Ledger) -> None:
    """§8.4: halfway written, it is undone whole, facts too; its neighbours are kept."""
    life = Story("ben", at=at("04-01"))
    bought, refunded = life.purchase("pro"), life.refund(500, at("04-01 12:00"))
    with ledger.begin() as connection:
        for statement in _SPOILED[connection.dialect.name]:
            connection.execute(text(statement))
    inbox = open_inbox(ledger)
    told = inbox.take_many(signed(bought + refunded + Story("ann", at=at("04-01")).purchase("pro")), now=NOW)
    failed = [o for o in told if o.status == "failed"]
    assert 0 < len(failed) <= len(refunded)
    assert all("spoiled" in str(o.error) for o in failed)
    lost = [one for row in inbox.list(status="failed") for one in json.loads(str(row.told))[1]]

    def work(connection: Connection) -> list[str]:
        return list(connection.execute(select(t.observations.c.digest)).scalars())

    assert not {digest for _, _, _, digest in lost} & set(ledger.reading(work))
    assert [ledger.balance(user, at=NOW).balance for user in ("ann", "ben")] == [6000, 6000]
    assert verify_ledger(ledger).problems == []


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
