"""A refill by what was foreseen: for whom it holds, for whom not, what it reads (docs/rules.md §4.3)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.refill import RefillReport, refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.worlds import at, catalog, dump, feed, lots

MAY, JUNE = at("05-02"), at("06-02")
ENDS = "2027-04-20T00:00:00Z"


def subscribe(ledger: Ledger, user: str, product: str = "pro-year") -> Story:
    """Let a user subscribe for a year from 1 April, heard in one event."""
    life = Story(user, at=at("04-01"), interval="year")
    feed(ledger, [e for e in life.purchase(product) if e["type"] == "subscription.created"])
    return life


def sums(report: RefillReport) -> tuple[int, ...]:
    """What a report says, but for how it was done."""
    return (report.considered, report.granted, report.expired, report.credits_granted, report.credits_expired)


def change(ledger: Ledger, sql: str) -> None:
    """Change the database behind the program's back."""
    with ledger.begin() as connection:
        connection.execute(text(sql))


def test_the_common_case_needs_no_facts(ledger: Ledger) -> None:
    """Month after month, with and without spending, even after an outage: by the outlook alone."""
    for user in ("ann", "ben", "cid"):
        subscribe(ledger, user)
    ledger.deduct("ben", 137, at=at("04-07"))
    ledger.deduct("cid", 5400, at=at("04-07"))
    report = refill(ledger, at=MAY)
    assert report.foreseen == report.considered == 3
    assert sums(report) == (3, 3, 2, 15000, 5000 + 4863)
    assert lots(ledger, "ben", MAY) == [("allowance", 5000, 0, 5000), ("lifetime", 1000, 0, 1000)]
    assert lots(ledger, "cid", MAY) == [("allowance", 5000, 0, 5000), ("lifetime", 1000, 400, 600)]
    ledger.deduct("ann", 5100, at=at("05-07"))
    later = refill(ledger, at=at("08-15"))
    assert later.foreseen == later.considered == 3
    assert (later.granted, later.expired) == (9, 8)
    assert lots(ledger, "ann", at("08-15")) == [("allowance", 5000, 0, 5000), ("lifetime", 1000, 100, 900)]
    assert refill(ledger, at=at("08-15")).considered == 0


def test_a_batch_takes_the_same_statements_whatever_its_size(ledger: Ledger) -> None:
    """Nothing is asked or told user by user."""
    counts = []
    for size in (2, 12):
        for number in range(size):
            subscribe(ledger, f"user-{size}-{number}")
        seen: list[str] = []

        def count(*args: Any, seen: list[str] = seen) -> None:
            seen.append(args[2])

        event.listen(ledger.database.engine, "before_cursor_execute", count)
        assert refill(ledger, at=MAY).foreseen == size
        event.remove(ledger.database.engine, "before_cursor_execute", count)
        counts.append(len(seen))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "news",
    [
        "UPDATE outlooks SET rules = 0",
        "UPDATE accounts SET plan = 'free'",
        "UPDATE customers SET deleted = 1",
        "DELETE FROM outlooks",
    ],
)
def test_an_outlook_that_does_not_fit_is_left_to_reconcile(ledger: Ledger, news: str) -> None:
    """Of other rules, of another plan, of an account since closed, or none: the facts decide."""
    subscribe(ledger, "ann")
    change(ledger, news)
    report = refill(ledger, at=MAY)
    assert (report.foreseen, *sums(report)) == (0, 1, 1, 1, 5000, 5000)
    with ledger.database.engine.connect() as connection:
        shown, closed = connection.execute(
            text("SELECT plan, closed FROM accounts JOIN credit_balances ON account_id = id")
        ).one()
    assert (shown, closed) == ("pro", int("deleted" in news))


def test_an_edited_catalog_is_heeded(ledger: Ledger) -> None:
    """§1.3: terms once written stand, so new credits change nothing; a new name of the plan shows."""
    subscribe(ledger, "ann")
    ledger.catalog = catalog(rest="[policy]\nclawback = 'floor'")
    assert refill(ledger, at=MAY).foreseen == 1
    named = next(p for p in ledger.catalog.plans if "pro-year" in p.product_ids)
    other = type(named)(name="gold", credits=9, interval="month", product_ids=named.product_ids)
    plans = tuple(other if plan is named else plan for plan in ledger.catalog.plans)
    ledger.catalog = type(ledger.catalog)(default_plan="free", plans=plans)
    report = refill(ledger, at=JUNE)
    assert (report.foreseen, report.granted, report.credits_granted) == (0, 1, 5000)
    with ledger.database.engine.connect() as connection:
        assert connection.execute(text("SELECT plan FROM accounts")).scalar_one() == "gold"


def test_what_is_not_plain_is_left_to_reconcile(ledger: Ledger) -> None:
    """A hold, credits owed, a rollover, two subscriptions, an end of access: each by its facts."""
    lives = {user: subscribe(ledger, user) for user in ("plain", "held", "owing", "twice", "ending")}
    ledger.hold("held", 10, ttl=timedelta(hours=24), at=at("04-30 12:00"))
    ledger.deduct("owing", 3000, at=at("04-07"))
    feed(ledger, lives["owing"].plan_change("team", at("04-08")))
    second = Story("twice", at=at("04-02"), interval="year", seed="second")
    feed(ledger, [e for e in second.purchase("max") if e["type"] == "subscription.created"])
    lives["ending"].subscription = (lives["ending"].subscription or {}) | {"current_period_end": ENDS}
    feed(ledger, lives["ending"].cancel_at_period_end(at("04-03")))
    ledger.catalog = catalog(pro="rollover = 100")
    subscribe(ledger, "rolls")
    report = refill(ledger, at=MAY)
    assert (report.considered, report.foreseen, report.downgraded) == (6, 1, 1)
    assert lots(ledger, "plain", MAY) == [("allowance", 5000, 0, 5000), ("lifetime", 1000, 0, 1000)]
    assert lots(ledger, "rolls", MAY)[0] == ("rollover", 100, 0, 100)


def test_a_product_named_since_is_granted_with_what_else_is_due(ledger: Ledger) -> None:
    """§1.3: whoever bought it is settled by the facts, and forgotten then."""
    subscribe(ledger, "ann")
    ledger.grant("ann", 5, expires_at=at("04-20"), at=at("04-02"))
    subscribe(ledger, "ben")
    change(ledger, "INSERT INTO unknown_products (product_id, account_id) VALUES ('max', 1)")
    report = refill(ledger, at=at("04-21"))
    assert (report.foreseen, *sums(report)) == (0, 1, 0, 1, 0, 5)
    change(ledger, "INSERT INTO unknown_products (product_id, account_id) VALUES ('max', 2)")
    quiet = refill(ledger, at=at("04-21"))
    assert (quiet.foreseen, quiet.considered) == (0, 0)
    with ledger.database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM unknown_products")).scalar_one() == 0


def test_a_row_in_the_way_stops_nobody(ledger: Ledger) -> None:
    """A grant that somebody wrote by hand: all of the batch are settled by their facts."""
    for user in ("ann", "ben"):
        subscribe(ledger, user)
    change(
        ledger,
        "INSERT INTO grants (account_id, key, source, plan, gross, clawed, used, carried_in, remaining, held,"
        " effective_at, expires_at, expired, withdrawn, clawback, cause_kind)"
        " SELECT account_id, prefix || '1', 'allowance', 'pro', 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 'owed', 'x'"
        " FROM outlooks WHERE account_id = 1",
    )
    report = refill(ledger, at=MAY)
    assert (report.foreseen, report.considered, report.failed) == (0, 2, [])
    assert lots(ledger, "ben", MAY)[0] == ("allowance", 5000, 0, 5000)


def test_many_who_are_not_plain_are_taken_a_few_at_a_time(ledger: Ledger) -> None:
    """One transaction settles at most a hundred by their facts; none is forgotten."""
    for number in range(120):
        ledger.grant(f"user-{number}", 7, expires_at=at("04-02"), create=True, at=at("04-01"))
    change(ledger, "UPDATE outlooks SET rules = 0")
    seen: list[tuple[int, int]] = []
    report = refill(ledger, at=MAY, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(100, 120), (120, 120)]
    assert (report.foreseen, report.expired) == (0, 120)


def test_an_idle_refill_reads_only_the_index(ledger: Ledger) -> None:
    """Nobody is read who is not due, on either database."""
    subscribe(ledger, "ann")
    seen: list[tuple[str, Any]] = []

    def listen(*args: Any) -> None:
        if "next_due_at" in args[2] and "credit_balances" in args[2]:
            seen.append((args[2], args[3]))

    event.listen(ledger.database.engine, "before_cursor_execute", listen)
    refill(ledger, at=at("04-02"))
    idle = list(seen)
    refill(ledger, at=MAY)
    event.remove(ledger.database.engine, "before_cursor_execute", listen)
    sqlite = ledger.database.sqlite
    assert idle
    listing = [(sql, values) for sql, values in seen if sql.lstrip().startswith("SELECT") and "ORDER" in sql]
    with ledger.database.engine.begin() as connection:
        if not sqlite:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        for sql, values in [*idle, *listing]:
            if "FOR UPDATE" in sql or "json_each" in sql or "unnest" in sql:
                continue
            explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
            plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + sql, values))
            assert "ix_credit_balances_due" in plan or "unknown_products" in plan, plan
            assert "SCAN credit_balances" not in plan


def _refill(url: str, batch: int) -> None:
    with Ledger(url, catalog(), actor="refill") as ledger:
        refill(ledger, at=MAY, batch=batch)


def test_refills_and_webhooks_at_once(url: str) -> None:
    """Two refills and news of the same users meanwhile: every allowance once, and the laws hold."""
    context = multiprocessing.get_context("spawn")
    with Ledger(url, catalog()) as ledger:
        lives = [subscribe(ledger, f"user-{number}") for number in range(24)]
        workers = [context.Process(target=_refill, args=(url, 3)) for _ in range(2)]
        for worker in workers:
            worker.start()
        news = [threading.Thread(target=_change_plans, args=(ledger, lives[start::2])) for start in (0, 1)]
        for thread in news:
            thread.start()
        for thread in news:
            thread.join()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        refill(ledger, at=MAY)
        for life in lives:
            granted = lots(ledger, life.customer["external_id"] or "", at("05-03"))
            assert [lot[0] for lot in granted] == ["allowance", "lifetime"]
            assert granted[0][1] in (20000, 5000 + 15000 * 30 // 31)
        assert verify(ledger).transactions >= 24 * 4


def _change_plans(ledger: Ledger, lives: list[Story]) -> None:
    for life in lives:
        feed(ledger, life.plan_change("max", at("05-01")), now=MAY)


def test_a_killed_refill_is_made_good_by_the_next(url: str) -> None:
    """What a kill leaves is a number of whole batches."""
    context = multiprocessing.get_context("spawn")
    with Ledger(url, catalog()) as ledger:
        for number in range(120):
            ledger.grant(f"user-{number}", 7, expires_at=at("04-02"), create=True, at=at("04-01"))
        worker = context.Process(target=_refill, args=(url, 1))
        worker.start()
        for _ in range(2000):
            if verify_expired(ledger):
                break
            time.sleep(0.005)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        done = verify_expired(ledger)
        assert 0 < done < 120
        assert verify(ledger).problems == []
        assert refill(ledger, at=MAY).expired == 120 - done
        assert verify_expired(ledger) == 120
        assert verify(ledger).problems == []


def verify_expired(ledger: Ledger) -> int:
    """Count the expiries that are on disk."""
    with ledger.database.engine.connect() as connection:
        found = text("SELECT count(*) FROM credit_transactions WHERE type = 'expire'")
        return int(connection.execute(found).scalar_one())


def test_a_refused_refill_of_one_user_moves_nothing(ledger: Ledger) -> None:
    """A dry run by outlook leaves every row as it was."""
    subscribe(ledger, "ann")
    ledger.deduct("ann", 10, at=at("04-07"))
    before = dump(ledger)
    tried = refill(ledger, at=MAY, dry_run=True)
    assert (tried.foreseen, dump(ledger)) == (1, before)
    assert sums(refill(ledger, at=MAY)) == sums(tried)
