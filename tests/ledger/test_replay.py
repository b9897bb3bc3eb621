"""Stored events taken again: only what is missing is written, and little is in memory (docs/rules.md §8)."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import timedelta

from sqlalchemy import Connection, RowMapping, delete, select, text

from polarcredits.ledger import tables as t
from polarcredits.ledger.applying import READER, memo
from polarcredits.ledger.events import Wanted, in_order
from polarcredits.ledger.facts import observe
from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.payloads import read_facts
from polarcredits.webhooks.signature import verify
from tests.ledger.test_batches import NOW, history, open_inbox, signed
from tests.ledger.worlds import at
from tests.webhooks.recordings import FILES, SECRET, recorded


def test_a_replay_of_everything_writes_nothing(ledger: Ledger) -> None:
    """In pages, in the order they came; not even the events' rows."""
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
    assert history(ledger) == before


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


def test_a_replay_restores_any_observation_that_was_lost(ledger: Ledger) -> None:
    """Each is known by all of its key: others of its object, or of its moment, do not stand for it."""
    inbox = open_inbox(ledger)
    told = Story("ann", at=at("04-01")).purchase("pro")
    told += [each | {"data": each["data"] | {"status": "past_due"}} for each in told if "sub" in each["type"]]
    inbox.take_many(signed(told), now=NOW)
    before, key = observations(ledger), t.observations.primary_key.columns
    moments = Counter((row.kind, row.object_id, row.as_of) for row in before)
    assert max(moments.values()) > 1 < len(moments)
    for row in before:
        with ledger.begin() as connection:
            lost = delete(t.observations).where(*(column == row[column.name] for column in key))
            assert connection.execute(lost).rowcount == 1
        for page in inbox.pages():
            inbox.again_many(page, now=NOW)
        assert observations(ledger) == before


def observations(ledger: Ledger) -> list[RowMapping]:
    """Return all facts that are stored."""

    def work(connection: Connection) -> list[RowMapping]:
        key = t.observations.primary_key.columns
        return list(connection.execute(select(t.observations).order_by(*key)).mappings())

    return ledger.reading(work)


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
    assert (READER, digest.hexdigest()[:16]) == (2, "ef9199000f4482d3")
