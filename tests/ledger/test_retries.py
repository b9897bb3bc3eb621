"""Failed events heal: tried again with growing pauses, given up at last, always to be seen (§8.4)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from polarcredits.doctor import check_database
from polarcredits.errors import InvalidInput
from polarcredits.ledger.events import ATTEMPTS, next_attempt
from polarcredits.ledger.health import waiting
from polarcredits.ledger.ledger import Ledger
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.test_batches import open_inbox, signed
from tests.ledger.worlds import at, catalog, dump, feed

MINUTE = timedelta(minutes=1)


def damage(ledger: Ledger, unsettled: int) -> None:
    """Let the only account say that more was spent than there is, or mend it."""
    with ledger.begin() as connection:
        connection.execute(text(f"UPDATE credit_balances SET unsettled = {unsettled}"))


def test_pauses_grow_until_it_is_given_up() -> None:
    """1, 2, 4 … minutes after the first nine attempts; none after the tenth."""
    now = at("04-01")
    waits = [next_attempt(n, now) for n in range(1, ATTEMPTS + 2)]
    assert waits == [now + 2**n * MINUTE for n in range(9)] + [None, None]


def test_an_event_heals_by_itself_once_it_can(ledger: Ledger) -> None:
    """Not before its time, and then once; the others that wait are left alone."""
    inbox, start = open_inbox(ledger), at("04-01")
    first, *rest = signed(Story("ann", at=start).purchase("pro"))
    inbox.take(first, now=start)
    damage(ledger, 99999)
    before = dump(ledger)
    told = inbox.take_many(rest[:3], now=start + MINUTE)
    assert {o.status for o in told} == {"failed"}
    assert dump(ledger) == before
    damage(ledger, 0)
    before = dump(ledger)
    assert inbox.retry_due(now=start + 2 * MINUTE - timedelta(seconds=1)) == []
    assert dump(ledger) == before
    assert waiting(ledger).oldest_failed == start + MINUTE
    assert [o.status for o in inbox.retry_due(now=start + 2 * MINUTE, most=2)] == ["applied"] * 2
    assert waiting(ledger).failed_events == 1
    assert [o.status for o in inbox.retry_due(now=start + 2 * MINUTE)] == ["applied"]
    assert inbox.retry_due(now=at("05-01")) == []
    assert [(row.attempts, row.next_attempt_at, row.error) for row in inbox.list()][:1] == [(2, None, None)]
    assert ledger.balance("ann", at=start + 3 * MINUTE).balance == 6000


def test_what_always_fails_is_given_up_and_stays_in_sight(ledger: Ledger) -> None:
    """Ten attempts; then only `webhooks retry` applies it, and every count names it."""
    inbox, now = open_inbox(ledger), at("04-01")
    data = {"id": "o-1"}
    (bad,) = signed([{"type": "order.paid", "timestamp": "2027-04-01T00:00:00Z", "data": data}])
    inbox.take(bad, now=now)
    assert (waiting(ledger).failed_events, waiting(ledger).dead_events) == (1, 0)
    for _ in range(2, ATTEMPTS + 1):
        row = inbox.stored(bad.id)
        assert row.next_attempt_at is not None
        assert not row.dead
        assert [o.status for o in inbox.retry_due(now=row.next_attempt_at)] == ["failed"]
    row = inbox.stored(bad.id)
    assert (row.dead, row.attempts) == (True, ATTEMPTS)
    assert inbox.retry_due(now=at("12-01")) == []
    assert (
        [r.id for r in inbox.list(status="failed")] == [r.id for r in inbox.list(status="dead")] == [bad.id]
    )
    work = waiting(ledger)
    assert (work.failed_events, work.dead_events, work.oldest_failed) == (1, 1, None)
    assert inbox.again(row, now=at("12-01")).status == "failed"
    assert inbox.stored(bad.id).attempts == ATTEMPTS + 1
    with pytest.raises(InvalidInput, match="'lost'"):
        inbox.list(status="lost")


def test_doctor_counts_failed_and_dead_events(tmp_path: Path) -> None:
    """Both figures, in one finding."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with Ledger(url, catalog()) as ledger:
        data = {"id": "o-1"}
        inbox = open_inbox(ledger)
        payload = {"type": "order.paid", "timestamp": "2027-04-01T00:00:00Z", "data": data}
        inbox.take_many(signed([payload, payload | {"x": 1}]), now=at("04-01"))
        with ledger.begin() as connection:
            connection.execute(text("UPDATE webhook_events SET next_attempt_at = NULL WHERE rowid = 1"))
    told = {finding.name: finding for finding in check_database(lambda: Ledger(url, catalog()), at("04-01"))}
    assert told["events"].status == "fail"
    assert told["events"].detail == "2 could not be applied, 1 of them given up"


def test_a_refill_of_everybody_is_written_down(ledger: Ledger) -> None:
    """Not a rehearsal, and not one user's."""
    feed(ledger, Story("ann", at=at("01-31"), interval="year").purchase("pro-year"))
    refill(ledger, dry_run=True)
    refill(ledger, user="ann")
    assert waiting(ledger).last_refill is None
    refill(ledger, at=at("03-15"))
    ran = waiting(ledger).last_refill
    assert ran is not None
    assert timedelta(0) <= ledger.call().wall - ran < timedelta(minutes=1)
